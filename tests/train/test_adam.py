"""Adam straight to the kernel against torch's own."""

from __future__ import annotations

import pytest
import torch

from vivace.train.adam import FusedAdam, Group, flush_subnormal

SETTINGS = {"lr": 1e-2, "eps": 1e-4}


def parameters(seed):
    gen = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (5,), (3, 2), (1,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=gen)) for shape in shapes], gen


@pytest.mark.parametrize("decay", [0.0, 3e-3])
def test_the_same_bits_as_torchs_fused_adam(decay):
    ours, gen = parameters(0)
    theirs, _ = parameters(0)
    adam = FusedAdam([Group(ours[::2], decay), Group(ours[1::2], 0.0)], **SETTINGS)
    reference = torch.optim.Adam(
        [{"params": theirs[::2], "weight_decay": decay}, {"params": theirs[1::2]}],
        fused=True,
        **SETTINGS,
    )
    for step in range(6):
        adam.lr = reference.param_groups[0]["lr"] = reference.param_groups[1]["lr"] = 0.01 / (
            1 + step
        )
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=gen)
            b.grad = a.grad.clone()
        adam.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_gradients_may_be_other_tensors_each_time():
    (weight, *_), _ = parameters(0)
    before = weight.detach().clone()
    adam = FusedAdam([Group([weight], 0.0)], **SETTINGS)
    for sign in (1.0, -1.0):
        weight.grad = torch.full_like(weight, sign)
        adam.step()
    # the second moment corrected for its start is 1 both times; the first -0.1/0.19
    expected = before - 0.01 / (1 + 1e-4) * (1 + (0.9 * 0.1 - 0.1) / (1 - 0.81))
    torch.testing.assert_close(weight.detach(), expected)


def test_weights_that_nothing_but_the_penalty_moves_end_at_zero():
    """Not in subnormal numbers, on which a processor is a hundred times slower."""
    (weight, *_), _ = parameters(0)
    adam = FusedAdam([Group([weight], 3e-3)], lr=1e-2, eps=1e-4)
    for _ in range(6000):
        weight.grad = torch.zeros_like(weight)
        adam.step()
    (group,) = adam.groups
    assert not weight.detach().any()
    assert not any(average.any() for average in group.averages)
    for square in group.squares:
        assert ((square == 0) | (square >= 1e-30)).all()


def test_flushing_leaves_everything_else():
    x = torch.tensor([0.0, 1e-40, -1e-31, 1e-29, -2.0, torch.inf])
    flush_subnormal([x])
    assert x.tolist() == pytest.approx([0.0, 0.0, 0.0, 1e-29, -2.0, torch.inf])
