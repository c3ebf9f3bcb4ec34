"""Dropout, batch norm of a single cell, linear maps with rows for categories."""

from __future__ import annotations

import pytest
import torch
from network_cases import cells, network

from vivace.nn.layers import CategoryLinear, Linear, dropout_mask


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_cell_trains(backend):
    """It is normalised with the running statistics, which are not updated."""
    net = network(backend=backend, dtype=torch.float32).train()
    statistics = {k: v.clone() for k, v in net.named_buffers() if "batch_norm" in k}
    assert len(statistics) == 6
    one = cells(1, dtype=torch.float32)
    losses = net(one, 1.0, torch.Generator().manual_seed(3))
    losses.loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    for name, value in statistics.items():
        assert torch.equal(net.get_buffer(name), value), name
    expected = net.eval()(one, 1.0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(losses.loss, expected.loss)


def test_dropout_uses_the_generator_that_is_passed():
    net, batch = network(dropout_rate=0.5).train(), cells()
    before = torch.random.get_rng_state()
    first, again, other = (
        net(batch, 1.0, torch.Generator().manual_seed(seed)).loss for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_stops_in_evaluation():
    net = network(dropout_rate=0.25)
    after = net.encoder.activations[0].train()
    ones = torch.ones(4000, 7, dtype=torch.float64)
    with torch.no_grad():
        after.batch_norm.weight.fill_(0)
        after.batch_norm.bias.fill_(1)
        dropped = after(ones, torch.Generator().manual_seed(6))
        assert torch.equal(after.eval()(ones), ones)
    assert dropped.unique().tolist() == [0.0, 1 / 0.75]
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / ones.numel()) ** 0.5


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_dropout_mask_keeps_the_rate_and_the_mean(rate):
    x = torch.empty(1001, 333)  # not a multiple of four
    mask = dropout_mask(x, rate, torch.Generator().manual_seed(6))
    rounded = min(round(rate * 2**16), 2**16 - 1) / 2**16
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rounded)])
    dropped = (mask == 0).double().mean().item()
    assert dropped == pytest.approx(rounded, abs=5 * (rounded * (1 - rounded) / x.numel()) ** 0.5)
    neighbours = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).double().mean().item()
    assert neighbours == pytest.approx(rounded**2, abs=5 * rounded / x.numel() ** 0.5)


def test_decoder_has_no_dropout():
    assert all(a.dropout == 0 for a in network(dropout_rate=0.9).decoder.activations)


def test_a_map_with_categories_starts_as_a_map_of_as_many_inputs():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = Linear(7, 3)
        torch.manual_seed(1)
        categorical = CategoryLinear(2, 3, (3, 0, 2))
    assert torch.equal(plain.weight, categorical.weight)
    assert torch.equal(plain.bias, categorical.bias)
