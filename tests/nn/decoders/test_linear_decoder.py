"""The linear decoder compared with an explicit batch norm over genes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vivace.nn import LinearDecoder
from vivace.nn.decoders.linear import LinearHead

N, G, K = 14, 9, 3


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_folded_batch_norm_is_batch_norm(training, shift):
    """Values, gradients and running statistics of an explicit batch norm over the genes."""
    gen = torch.Generator().manual_seed(2)
    x = (shift + torch.randn(N, 4, generator=gen)).double().requires_grad_()
    head = LinearHead(4, G, batch_norm=True).double().train(training)
    norm = nn.BatchNorm1d(G, eps=1e-3, momentum=0.01).double().train(training)
    with torch.no_grad():
        for p in (head.batch_norm.weight, head.batch_norm.bias):
            p.copy_(torch.randn(G, generator=gen))
        head.batch_norm.running_mean.copy_(torch.randn(G, generator=gen))
        head.batch_norm.running_var.copy_(torch.rand(G, generator=gen) + 0.5)
    norm.load_state_dict(head.batch_norm.state_dict())
    upstream = torch.randn(N, G, generator=gen).double()

    weight, bias = head(x)
    result = x @ weight + bias
    expected = norm(x @ head.weight)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-11)
    head_parameters = (x, head.weight, head.batch_norm.weight, head.batch_norm.bias)
    norm_parameters = (x, head.weight, norm.weight, norm.bias)
    for a, b in zip(
        torch.autograd.grad(result, head_parameters, upstream),
        torch.autograd.grad(expected, norm_parameters, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    for name, value in norm.state_dict().items():
        found_value = head.batch_norm.state_dict()[name]
        torch.testing.assert_close(found_value, value, rtol=1e-9, atol=1e-11)


def test_one_cell_takes_the_running_statistics():
    head = LinearHead(4, G, batch_norm=True).train()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    weight, bias = head(x)
    torch.testing.assert_close(x @ weight + bias, head.batch_norm(x @ head.weight))
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_loadings_are_the_change_of_the_logits_along_a_dimension():
    decoder = LinearDecoder(K, G, n_continuous=1, one_hot_sizes=(3,)).double().eval()
    with torch.no_grad():
        decoder.scale.batch_norm.running_var.copy_(torch.rand(G) + 0.5)
        decoder.scale.batch_norm.weight.copy_(torch.randn(G))
    z, covariates = torch.zeros(1, K).double(), torch.ones(1, 4).double()

    def logits(z):
        inputs = decoder(z, covariates[:, :1], covariates[:, 1:])
        heads = decoder.heads(inputs)
        return (inputs @ heads.scale_hg + heads.scale_g)[0]

    jacobian = torch.autograd.functional.jacobian(logits, z)[:, 0]
    torch.testing.assert_close(decoder.scale.loadings(K), jacobian)
