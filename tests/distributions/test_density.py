"""log_prob, its gradient and cdf, compared with 40-digit arithmetic, SciPy and each other."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy import stats

from vivace.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vivace.distributions.density import excess, stirling, stirling_slope

COUNTS = (0, 1, 2, 3, 9, 10, 11, 150, 1e3, 12345, 1e6)
MUS = (1e-4, 0.03, 1.0, 7.5, 148.0, 1e3, 3e4, 1e6)
THETAS = (1e-4, 0.02, 0.9, 2.999, 3.0, 9.5, 120.0, 1e4, 1e6)
ZI_LOGITS = (-60.0, -3.0, 0.0, 2.5, 60.0)
# Units in the last place of max(1, |log p|) that the docstrings promise.
PROMISE = {torch.float32: 6, torch.float64: 20}
PROMISE_POISSON = {torch.float32: 4, torch.float64: 10}


def random_points(n, seed):
    """Counts, means and dispersions over the whole range; half of the counts near their mean."""
    rng = np.random.default_rng(seed)
    mu, theta = 10 ** rng.uniform(-4, 6, (2, n))
    x = np.floor(10 ** rng.uniform(-0.3, 6, n))
    typical = mu + rng.normal(size=n) * np.sqrt(mu + mu**2 / theta)
    x[::2] = np.clip(np.round(typical[::2]), 0, 1e6)
    return np.stack([x, mu, theta])


@lru_cache(None)
def points():
    """Float32 numbers, so that all types get the same input."""
    grid = np.array(list(product(COUNTS, MUS, THETAS))).T
    return np.concatenate([grid, random_points(1000, seed=0)], axis=1).astype(np.float32)


def exact_poisson(x, rate):
    return x * mpmath.log(rate) - rate - mpmath.loggamma(x + 1)


def exact_nb(x, mu, theta):
    gammas = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    both = mpmath.log(theta + mu)
    return gammas + theta * (mpmath.log(theta) - both) + x * (mpmath.log(mu) - both)


def exact_nb_slopes(x, mu, theta):
    theta_slope = mpmath.digamma(x + theta) - mpmath.digamma(theta) - mpmath.log1p(mu / theta)
    return x / mu - (x + theta) / (theta + mu), theta_slope + (mu - x) / (theta + mu)


def compute_with_mpmath(function, *columns):
    with mpmath.workdps(50):
        rows = [function(*(mpf(float(c)) for c in row)) for row in zip(*columns, strict=True)]
        return np.array(rows).astype(float)


@lru_cache(None)
def exact_values():
    return compute_with_mpmath(exact_nb, *points())


def ulps(result, exact, size=None):
    """Largest error in units in the last place of ``size``."""
    size = np.maximum(1, np.abs(exact)) if size is None else size
    error = np.abs(result.detach().cpu().double().numpy() - exact) / size
    return error.max() / torch.finfo(result.dtype).eps


def tensors(*arrays, dtype, device="cpu"):
    return [torch.as_tensor(a).to(device, dtype) for a in arrays]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request, device):
    if device.type == "mps" and request.param == torch.float64:
        pytest.skip("MPS has no float64")
    return request.param


# ---- log_prob ---------------------------------------------------------------


def test_nb_against_forty_digits(dtype, device):
    x, mu, theta = tensors(*points(), dtype=dtype, device=device)
    result = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    assert result.dtype == dtype
    assert ulps(result, exact_values()) <= PROMISE[dtype]


def test_poisson_against_forty_digits(dtype, device):
    x, rate, _ = tensors(*points(), dtype=dtype, device=device)
    exact = compute_with_mpmath(exact_poisson, *points()[:2])
    assert ulps(Poisson(rate).log_prob(x), exact) <= PROMISE_POISSON[dtype]


@pytest.mark.parametrize("zi_logits", ZI_LOGITS)
def test_zinb_against_forty_digits(zi_logits, dtype, device):
    x, mu, theta = tensors(*points(), dtype=dtype, device=device)
    with mpmath.workdps(50):
        lost = 1 / (1 + mpmath.exp(-mpf(zi_logits)))
        nb = exact_values()
        kept = nb + float(mpmath.log(1 - lost))
        log_zeros = [float(mpmath.log(lost + (1 - lost) * mpmath.exp(mpf(v)))) for v in nb]
    exact = np.where(points()[0] == 0, log_zeros, kept)
    result = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi_logits).log_prob(x)
    assert ulps(result, exact) <= PROMISE[dtype]


def test_density_matches_scipy():
    x, mu, theta = random_points(500, seed=1)
    logits = np.random.default_rng(2).normal(0, 3, 500)
    nb = stats.nbinom.logpmf(x, theta, theta / (theta + mu))
    kept = nb - np.logaddexp(0, logits)
    zinb = np.where(x == 0, np.logaddexp(-np.logaddexp(0, -logits), kept), kept)
    x, mu, theta, logits = tensors(x, mu, theta, logits, dtype=torch.float64)
    for distribution, expected in (
        (NegativeBinomial(mu=mu, theta=theta), nb),
        (ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits), zinb),
        (Poisson(mu), stats.poisson.logpmf(x.numpy(), mu.numpy())),
    ):
        # SciPy's own error at these sizes is what this allows
        torch.testing.assert_close(
            distribution.log_prob(x), torch.as_tensor(expected), rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize(
    "distribution",
    [
        *(NegativeBinomial(mu=m, theta=t) for m in (0.1, 3.0, 40.0) for t in (0.3, 5.0, 1e6)),
        *(ZeroInflatedNegativeBinomial(mu=4.0, theta=2.0, zi_logits=z) for z in (-2.0, 3.0)),
        *(Poisson(r) for r in (0.01, 2.0, 90.0)),
    ],
    ids=repr,
)
def test_sums_over_the_density(distribution):
    """To one, to the mean, to the variance, and to the cdf."""
    d = distribution
    x = torch.arange(6000.0, dtype=torch.float64)
    p = d.log_prob(x).exp()
    mean = (p * x).sum()
    torch.testing.assert_close(p.sum().item(), 1.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.float(), d.mean)
    torch.testing.assert_close((p * (x - mean) ** 2).sum().float(), d.variance)
    torch.testing.assert_close(p.cumsum(0), d.cdf(x), rtol=1e-6, atol=0)


def test_both_parameterisations_agree():
    x, mu, theta = tensors(*random_points(300, seed=3), dtype=torch.float64)
    from_mu = NegativeBinomial(mu=mu, theta=theta)
    for from_count in (
        NegativeBinomial(theta, logits=from_mu.logits),
        NegativeBinomial(theta, from_mu.probs),
    ):
        for name in ("mu", "theta", "total_count", "logits", "probs", "mean", "variance"):
            torch.testing.assert_close(getattr(from_count, name), getattr(from_mu, name), rtol=1e-5, atol=0)  # fmt: skip
    moderate = (mu < 100) & (x < 1000)
    expected = torch.distributions.NegativeBinomial(theta, logits=from_mu.logits).log_prob(x)
    result = NegativeBinomial(theta, logits=from_mu.logits).log_prob(x)
    torch.testing.assert_close(result[moderate], expected[moderate], rtol=1e-8, atol=1e-8)


def test_inflation_that_vanishes_or_is_total():
    x, mu, theta = tensors(*points(), dtype=torch.float32)
    nb = NegativeBinomial(mu=mu, theta=theta)
    uninflated = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=-float("inf"))
    assert torch.equal(uninflated.log_prob(x), nb.log_prob(x))
    assert torch.equal(uninflated.mean, nb.mean)
    torch.testing.assert_close(uninflated.variance, nb.variance)
    assert torch.equal(uninflated.cdf(x), nb.cdf(x))
    total = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=float("inf"))
    assert torch.equal(total.log_prob(torch.zeros_like(x)), torch.zeros_like(x))
    assert not total.mean.any()


def test_large_theta_is_poisson():
    x = torch.arange(30.0)
    nb = NegativeBinomial(mu=4.0, theta=1e12).log_prob(x)
    torch.testing.assert_close(nb, Poisson(4.0).log_prob(x), rtol=1e-6, atol=0)


def test_mean_zero_is_a_point_mass():
    x = torch.tensor([0.0, 1.0, 1e6])
    expected = torch.tensor([0.0, -torch.inf, -torch.inf])
    for theta in (1e-4, 1.0, 1e6):
        assert torch.equal(NegativeBinomial(mu=0.0, theta=theta).log_prob(x), expected)
    assert torch.equal(Poisson(0.0).log_prob(x), expected)
    assert torch.equal(Poisson(0.0).cdf(x), torch.ones(3))
    assert torch.equal(NegativeBinomial(mu=0.0, theta=2.0).cdf(x), torch.ones(3))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    x, mu, theta = tensors([0, 3, 200], [0.5, 2, 190], [0.25, 8, 64], dtype=half)
    single = NegativeBinomial(mu=mu.float(), theta=theta.float()).log_prob(x.float())
    assert torch.equal(NegativeBinomial(mu=mu, theta=theta).log_prob(x), single.to(half))
    assert Poisson(mu).sample().dtype == half


# ---- gradients --------------------------------------------------------------


def test_gradcheck():
    x = torch.tensor([0, 0, 1, 2, 9, 40, 300, 5.0], dtype=torch.float64)
    mu, theta, logits = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for v in (
            [0.2, 7.0, 1.5, 0.4, 11.0, 35.0, 310.0, 90.0],
            [0.3, 40.0, 0.05, 4.0, 9.9, 700.0, 2.5, 30.0],
            [-2.0, 1.0, 4.0, 0.0, -9.0, 0.5, 1.0, -1.0],
        )
    )
    for function, inputs in (
        (lambda m, t: NegativeBinomial(mu=m, theta=t).log_prob(x), (mu, theta)),
        (lambda t, z: NegativeBinomial(t, logits=z).log_prob(x), (theta, logits)),
        (
            lambda m, t, z: ZeroInflatedNegativeBinomial(mu=m, theta=t, zi_logits=z).log_prob(x),
            (mu, theta, logits),
        ),
        (lambda m: Poisson(m).log_prob(x), (mu,)),
        (lambda m: Poisson(m).cdf(x), (mu,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
    for function, inputs in (
        (lambda m, t: NegativeBinomial(mu=m, theta=t).log_prob(x), (mu, theta)),
        (lambda m: Poisson(m).log_prob(x), (mu,)),
    ):
        assert torch.autograd.gradgradcheck(function, inputs)


def test_gradient_against_forty_digits(dtype, device):
    """The gradient with respect to the logarithm of each parameter, as used in training."""
    x, mu, theta = tensors(*points(), dtype=dtype, device=device)
    mu.requires_grad_()
    theta.requires_grad_()
    NegativeBinomial(mu=mu, theta=theta).log_prob(x).sum().backward()
    mu_slope, theta_slope = compute_with_mpmath(exact_nb_slopes, *points()).T
    for parameter, slope in ((mu, mu_slope), (theta, theta_slope)):
        value = parameter.detach().cpu().double().numpy()
        size = np.maximum(1 / value, np.abs(slope))
        assert ulps(parameter.grad, slope, size) <= (8 if dtype == torch.float32 else 30)


@pytest.mark.parametrize("zi_logits", [*ZI_LOGITS, -np.inf])
def test_gradients_are_numbers(zi_logits, dtype):
    axes = (0.0, 1.0, 1e6), (0.0, 1e-30, 1e-4, 1.0, 1e6), (1e-4, 1.0, 1e6)
    x, mu, theta = torch.tensor(list(product(*axes)), dtype=dtype).T
    zi = torch.full_like(x, zi_logits)
    for p in (mu, theta, zi):
        p.requires_grad_()
    ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi).log_prob(x).sum().backward()
    impossible = (mu == 0) & (x > 0)
    for p in (mu, theta, zi):
        assert not p.grad.isnan().any()
        assert p.grad[~impossible].isfinite().all()
    assert (mu.grad[impossible] == torch.inf).all()


def test_counts_get_no_gradient():
    x = torch.ones(2, requires_grad=True)
    assert not NegativeBinomial(mu=1.0, theta=1.0).log_prob(x).requires_grad


# ---- cdf --------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.float64, 1e-8)])
def test_cdf_against_scipy(dtype, rtol):
    x, mu, theta = points().astype(float)
    nb = stats.nbinom.cdf(x, theta, 1 / (1 + mu / theta))
    poisson = stats.poisson.cdf(x, mu)
    zinb = 0.25 + 0.75 * nb
    x, mu, theta = tensors(x, mu, theta, dtype=dtype)
    quarter = -np.log(3.0)
    for distribution, expected in (
        (NegativeBinomial(mu=mu, theta=theta), nb),
        (ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=quarter), zinb),
        (Poisson(mu), poisson),
    ):
        result = distribution.cdf(x)
        assert result.dtype == dtype
        torch.testing.assert_close(result, torch.as_tensor(expected).to(dtype), rtol=rtol, atol=1e-30)  # fmt: skip


def test_cdf_between_and_below_the_counts():
    x = torch.tensor([-1.0, -0.5, 0.5, 2.9])
    for d in (
        NegativeBinomial(mu=2.0, theta=1.5, validate_args=False),
        ZeroInflatedNegativeBinomial(mu=2.0, theta=1.5, zi_logits=0.3, validate_args=False),
        Poisson(2.0, validate_args=False),
    ):
        at_counts = d.cdf(torch.tensor([0.0, 2.0]))
        assert torch.equal(d.cdf(x), torch.cat([torch.zeros(2), at_counts]))


# ---- the pieces -------------------------------------------------------------


def test_excess_near_zero_and_at_the_seams(dtype):
    t = np.array([-0.999, -0.5001, -0.5, -0.4999, -1e-3, -1e-9, 0, 1e-9, 0.3, 0.9999, 1, 5, 1e9])
    t = t.astype(np.float32)
    exact = compute_with_mpmath(lambda v: v - mpmath.log1p(v), t)
    given, ratio = tensors(t, 1 + t.astype(float), dtype=dtype)
    assert ulps(excess(given, ratio), exact, np.maximum(np.abs(exact), 1e-30)) <= 4


def test_stirling_is_accurate_where_formulas_change(dtype):
    z = np.array([1e-4, 0.5, 1, 2.999, 3, 3.001, 9.999, 10, 10.001, 1e3, 2e6], dtype=np.float32)
    (given,) = tensors(z, dtype=dtype)

    def rest(v):
        half_log_2pi = mpmath.log(2 * mpmath.pi) / 2
        return mpmath.loggamma(v + 1) - (v + 0.5) * mpmath.log(v) + v - half_log_2pi

    assert ulps(stirling(given), compute_with_mpmath(rest, z)) <= 20
    slope = compute_with_mpmath(lambda v: mpmath.digamma(v) + 1 / (2 * v) - mpmath.log(v), z)
    assert ulps(stirling_slope(given), slope) <= 10
