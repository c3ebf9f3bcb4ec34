"""The posterior: KL divergences, samples, variance."""

from __future__ import annotations

import torch
from network_cases import N, cells, network
from torch import nn
from torch.distributions import Normal, kl_divergence

from vivace.nn import Posterior


def test_kl_against_torch_distributions():
    gen = torch.Generator().manual_seed(0)
    mean = torch.randn(N, 4, generator=gen).double()
    posterior = Posterior(mean, torch.rand(N, 4, generator=gen).double() + 0.01)
    expected = kl_divergence(Normal(posterior.mean, posterior.variance.sqrt()), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected.sum(1))


def test_samples_have_mean_and_variance_of_the_posterior():
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 0.25]]))
    noise = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    expected = torch.tensor([[1.0, -2.0], [3.0, -1.5], [-1.0, -1.0]])
    assert torch.equal(posterior.at(noise), expected)


def test_kl_from_a_normal_of_its_own():
    gen = torch.Generator().manual_seed(4)
    mean, prior_mean = (torch.randn(N, generator=gen).double() for _ in range(2))
    variance, prior_variance = (torch.rand(N, generator=gen).double() + 0.1 for _ in range(2))
    result = Posterior(mean[:, None], variance[:, None]).kl_from(prior_mean, prior_variance)
    expected = kl_divergence(
        Normal(mean, variance.sqrt()), Normal(prior_mean, prior_variance.sqrt())
    )
    torch.testing.assert_close(result, expected)


def test_variance_through_softplus():
    net, batch = network(var_activation="softplus").eval(), cells()
    other = network(var_activation="exp").eval()
    other.load_state_dict(net.state_dict())
    result, exponential = net.encode(batch).z, other.encode(batch).z
    torch.testing.assert_close(result.mean, exponential.mean)
    log_variance = (exponential.variance - 1e-4).log()
    torch.testing.assert_close(result.variance, nn.functional.softplus(log_variance) + 1e-4)
