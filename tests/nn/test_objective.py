"""The negative ELBO compared with its parts."""

from __future__ import annotations

import pytest
import torch
from network_cases import N, cells, network
from torch.distributions import Normal, kl_divergence


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_objective_is_the_loss_plus_the_weighted_kl(kl_weight):
    """Mean over cells of the loss at one sample of z, plus the weighted KL."""
    net, batch = network(), cells()
    result = net.train()(batch, kl_weight, torch.Generator().manual_seed(3))
    posterior = net.encode(batch).z
    noise = torch.randn(N, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    reconstruction = net.nll(posterior.at(noise), batch).mean()
    torch.testing.assert_close(result.reconstruction, reconstruction)
    torch.testing.assert_close(result.kl, posterior.kl().mean())
    torch.testing.assert_close(result.loss, reconstruction + kl_weight * posterior.kl().mean())
    assert not result.reconstruction.requires_grad
    assert not result.kl.requires_grad


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_objective_with_a_latent_library(kl_weight):
    """The KL of the library is not weighted by the warm-up; its prior is that of the batch."""
    net, batch = network(use_observed_lib_size=False), cells()
    net.library_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    net.library_variance.copy_(torch.tensor([0.5, 1.0, 2.0]))
    result = net.train()(batch, kl_weight, torch.Generator().manual_seed(3))
    inference = net.encode(batch)
    gen = torch.Generator().manual_seed(3)
    z_noise = torch.randn(N, 4, generator=gen, dtype=torch.float64)
    l_noise = torch.randn(N, 1, generator=gen, dtype=torch.float64)
    q = inference.library
    log_library = q.mean[:, 0] + q.variance[:, 0].sqrt() * l_noise[:, 0]
    reconstruction = net.nll(inference.z.at(z_noise), batch, log_library).mean()
    prior = Normal(
        net.library_mean[batch.batch][:, None], net.library_variance[batch.batch].sqrt()[:, None]
    )
    library_kl = kl_divergence(Normal(q.mean, q.variance.sqrt()), prior).mean()
    kl = inference.z.kl().mean()
    torch.testing.assert_close(result.loss, reconstruction + kl_weight * kl + library_kl)
    torch.testing.assert_close(result.reconstruction, reconstruction)
    torch.testing.assert_close(result.kl, kl + library_kl)


def test_a_logistic_normal_point_lies_on_the_simplex():
    net, batch = network(latent_distribution="ln"), cells()
    sample = torch.randn(N, 4, generator=torch.Generator().manual_seed(5)).double()
    point = net.place(sample)
    torch.testing.assert_close(point.sum(1), torch.ones(N).double())
    assert torch.equal(network().place(sample), sample)
    gen = torch.Generator().manual_seed(3)
    result = net.eval()(batch, 1.0, gen)
    posterior = net.encode(batch).z
    noise = torch.randn(N, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = net.nll(posterior.at(noise).softmax(-1), batch).mean()
    torch.testing.assert_close(result.reconstruction, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_parameter_has_a_gradient(backend):
    """Except biases that batch norm cancels, whose gradient is rounding error."""
    net = network(backend=backend, dtype=torch.float32, n_layers=2, encode_covariates=True)
    net.train()(cells(dtype=torch.float32), 1.0, torch.Generator().manual_seed(3)).loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("bias"), name
