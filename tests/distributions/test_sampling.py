"""Samples compared with their density."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from vivace.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial

MUS = (0.01, 0.8, 12.0, 700.0, 1e6)
THETAS = (1e-4, 0.03, 1.0, 30.0, 1e6)
N_SAMPLES = 100_000
P_VALUE = 1e-4  # of some 100 tests with fixed seeds none may fall below


def generator(seed, device="cpu"):
    return torch.Generator(device=device).manual_seed(seed)


def p_value(distribution, samples):
    """Chi-square test in some 20 bins from a few of the samples; each expects 10 of the others."""
    first, samples = samples[:2000], samples[2000:]
    x = np.unique(np.quantile(first, np.linspace(0, 1, 21)[:-1]).astype(np.int64))
    edges = np.unique(np.concatenate([x, x - 1, [0, 1, 2]]))
    edges = torch.as_tensor(edges[edges >= 0], dtype=torch.float64)
    cdf = np.append(distribution.cdf(edges).double().numpy(), 1.0)
    kept, last = [], 0.0  # the edges that leave enough on both sides
    for i, p in enumerate(cdf[:-1]):
        if min(p - last, 1 - p) * len(samples) >= 10:
            kept.append(i)
            last = p
    expected = np.diff(np.concatenate([[0.0], cdf[kept], [1.0]])) * len(samples)
    bins = np.searchsorted(edges[kept].numpy(), samples)
    observed = np.bincount(bins, minlength=len(expected))
    assert len(expected) > 1
    return stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue


def exactly(distribution):
    """The same in float64, whose cdf has no rounding that a test of samples could see."""
    d = distribution
    if isinstance(d, Poisson):
        return Poisson(d.rate.double())
    parameters = {"mu": d.mu.double(), "theta": d.theta.double()}
    if isinstance(d, NegativeBinomial):
        return NegativeBinomial(**parameters)
    return ZeroInflatedNegativeBinomial(**parameters, zi_logits=d.zi_logits.double())


DISTRIBUTIONS = [
    *(NegativeBinomial(mu=m, theta=t) for m, t in product(MUS, THETAS)),
    *(
        ZeroInflatedNegativeBinomial(mu=m, theta=t, zi_logits=z)
        for m, t, z in product((0.8, 12.0, 700.0), (0.03, 1.0, 1e6), (-3.0, 0.0, 4.0))
    ),
    *(Poisson(m) for m in MUS),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_samples_have_the_density(distribution, device):
    on_device = distribution if device.type == "cpu" else moved(distribution, device)
    samples = on_device.sample(
        (N_SAMPLES,), generator=generator(1, device if device.type == "cuda" else "cpu")
    )
    assert samples.device.type == device.type
    samples = samples.cpu().double().numpy()
    assert np.array_equal(samples, np.floor(samples))
    assert samples.min() >= 0
    assert p_value(exactly(distribution), samples) > P_VALUE


def moved(distribution, device):
    parameters = {name: getattr(distribution, name).to(device) for name in distribution.shown}
    return type(distribution)(**parameters)


def test_the_test_sees_a_wrong_density():
    """10 % more dispersion, 2 % of samples lost, a mean 4 % too high."""
    samples = (
        NegativeBinomial(mu=12.0, theta=1.0).sample((N_SAMPLES,), generator=generator(2)).numpy()
    )
    for wrong in (
        NegativeBinomial(mu=12.0, theta=0.9),
        NegativeBinomial(mu=12.48, theta=1.0),
        ZeroInflatedNegativeBinomial(mu=12.0, theta=1.0, zi_logits=-4.0),
    ):
        assert p_value(exactly(wrong), samples) < P_VALUE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mu", "theta"), [(10.0, 1e-4), (3.0, 1e-3), (1e6, 1e-2), (5.0, 1e6)])
def test_mean_and_variance_are_kept(mu, theta, dtype):
    """Gamma samples underflow at tiny theta; the mean must not."""
    d = NegativeBinomial(*(None,) * 3, *torch.tensor([mu, theta], dtype=dtype))
    n = 4_000_000
    samples = d.sample((n,), generator=generator(3)).double()
    error = (d.variance.double() / n).sqrt()
    assert abs(samples.mean() - mu) < 4 * error
    ratio = samples.var() / d.variance
    kurtosis = 3 + 6 / theta + 1 / d.variance.item()
    assert abs(ratio - 1) < 4 * ((kurtosis - 1) / n) ** 0.5


def test_rates_beyond_the_poisson_sampler():
    rate = torch.full((200_000,), 1e11, dtype=torch.float64)
    samples = Poisson(rate).sample(generator=generator(4))
    standard = ((samples - rate) / rate.sqrt()).numpy()
    assert stats.kstest(standard, "norm").pvalue > P_VALUE
    assert torch.equal(samples, samples.floor())
    mixed = Poisson(torch.tensor([2.0, 1e11])).sample((1000,), generator=generator(5))
    assert mixed[:, 0].max() < 20
    assert mixed[:, 1].min() > 9e10


def test_certain_and_impossible_losses():
    for zi_logits, share in ((60.0, 1.0), (-60.0, 0.0), (torch.inf, 1.0), (-torch.inf, 0.0)):
        d = ZeroInflatedNegativeBinomial(mu=1e3, theta=1e6, zi_logits=zi_logits)
        samples = d.sample((100_000,), generator=generator(6))
        assert (samples == 0).float().mean() == share


def test_mean_zero_gives_zeros():
    assert not Poisson(torch.zeros(50)).sample((9,)).any()
    assert not NegativeBinomial(mu=torch.zeros(50), theta=1e-4).sample((9,)).any()


@pytest.mark.parametrize(
    "distribution",
    [
        NegativeBinomial(mu=torch.full((4, 3), 5.0), theta=torch.ones(3)),
        ZeroInflatedNegativeBinomial(mu=torch.full((4, 3), 5.0), theta=1.0, zi_logits=0.0),
        Poisson(torch.full((4, 3), 5.0)),
        Normal(torch.full((4, 3), 5.0), torch.ones(3)),
    ],
    ids=repr,
)
def test_the_generator_determines_the_sample(distribution):
    d = distribution
    first, again = (d.sample((2, 5), generator=generator(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 5, 4, 3)
    before = torch.get_rng_state()
    d.sample(generator=generator(8))
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert torch.equal(d.sample((2, 5)), first)
        assert not torch.equal(d.sample((2, 5)), first)


def test_normal_samples_are_normal():
    d = Normal(torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.1]))
    samples = (d.sample((50_000,), generator=generator(9)) - d.loc) / d.scale
    for column in samples.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > P_VALUE


def test_samples_carry_no_gradient():
    mu = torch.ones(3, requires_grad=True)
    for d in (
        NegativeBinomial(mu=mu, theta=1.0),
        ZeroInflatedNegativeBinomial(mu=mu, theta=1.0, zi_logits=0.0),
        Poisson(mu),
        Normal(mu, 1.0),
    ):
        assert not d.sample((2,)).requires_grad
