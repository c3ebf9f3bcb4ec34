"""``icdf``, from uniform numbers to counts, compared with SciPy's cumulative distributions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import special, stats

from vivace.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vivace.errors import OptionError

GRID = np.logspace(-4, 6, 11)  # of mu and of theta
LOGITS = (-60.0, -20.0, -5.0, -0.3, 0.0, 2.0, 9.0, 20.0, 60.0)
TAILS = [1e-300, 1e-12, 1e-6, 1e-3, 0.5, 0.99, 1 - 1e-4, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 2**-53]
UNIFORM = np.concatenate([np.random.default_rng(0).random(60), TAILS])
INSIDE = UNIFORM[:-2]  # at the last two SciPy takes long
TOLERANCE = 1e-9


def probability_below(parameters, k):
    """SciPy's P(x <= k) in float64; 0 below zero."""
    p = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    if "rate" in p:
        return stats.poisson.cdf(k, p["rate"])
    result = stats.nbinom.cdf(k, p["theta"], 1.0 / (1.0 + p["mu"] / p["theta"]))
    if "zi_logits" not in p:
        return result
    lost, kept = special.expit(p["zi_logits"]), special.expit(-p["zi_logits"])
    return np.where(np.asarray(k) < 0, 0.0, lost + kept * result)


def made(parameters, dtype=torch.float64, **options):
    """The distribution that has these parameters."""
    kinds = {1: Poisson, 2: NegativeBinomial, 3: ZeroInflatedNegativeBinomial}
    tensors = {name: torch.as_tensor(value, dtype=dtype) for name, value in parameters.items()}
    return kinds[len(parameters)](**tensors, **options)


def assert_inverse(parameters, u, k, tolerance=TOLERANCE):
    """Check that ``k`` are the smallest integers with P(x <= k) >= u."""
    assert np.array_equal(k, np.floor(k))
    assert k.min() >= 0
    assert (probability_below(parameters, k) >= u - tolerance).all()
    assert (probability_below(parameters, k - 1) < u + tolerance).all()


SWEEPS = {
    "poisson": {"rate": GRID[:, None]},
    "nb": dict(zip(("mu", "theta"), (a[..., None] for a in np.meshgrid(GRID, GRID)), strict=True)),
    "zinb": dict(
        zip(
            ("mu", "theta", "zi_logits"),
            (a[..., None] for a in np.meshgrid(GRID[::2], GRID[::2], LOGITS)),
            strict=True,
        )
    ),
}


@pytest.fixture(params=SWEEPS)
def parameters(request):
    """Every combination of parameters; the last dimension is left for uniform numbers."""
    return SWEEPS[request.param]


# ---- the inverse -------------------------------------------------------------


def test_it_is_the_smallest_count_with_as_much_probability_below(parameters):
    result = made(parameters).icdf(torch.from_numpy(UNIFORM)).numpy()
    assert result.shape == np.broadcast_shapes(*(v.shape for v in parameters.values()), (71,))
    assert np.isfinite(result).all()
    assert_inverse(parameters, UNIFORM, result)


def test_it_is_so_far_out_in_the_tail_too(parameters):
    """With 1e-12 above, the upper tail probability is as accurate as the lower."""
    u = 1.0 - np.array([1e-10, 1e-11, 1e-12])
    result = made(parameters).icdf(torch.from_numpy(u)).numpy()
    assert_inverse(parameters, u, result, tolerance=1e-13)


def test_parameters_of_float32_give_the_counts_of_their_values(parameters):
    rounded = {name: value.astype(np.float32) for name, value in parameters.items()}
    d = made(rounded, torch.float32)
    result = d.icdf(torch.from_numpy(INSIDE))
    assert result.dtype == torch.float32
    held = (result < 2**24).numpy()  # float32 does not hold larger counts
    assert held.mean() > 0.8
    k = result.double().numpy()
    assert (probability_below(rounded, k) >= INSIDE - TOLERANCE)[held].all()
    assert (probability_below(rounded, k - 1) < INSIDE + TOLERANCE)[held].all()


def test_uniform_numbers_of_float32_are_taken_as_they_are(parameters):
    u = torch.from_numpy(UNIFORM[:60].astype(np.float32))
    result = made(parameters).icdf(u).numpy()
    assert_inverse(parameters, u.double().numpy(), result)


def test_half_precision_gives_the_counts_of_its_rounded_parameters():
    rate = torch.tensor([0.1, 5.0, 40.0], dtype=torch.float16)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)[:, None]
    result = Poisson(rate).icdf(u)
    assert result.dtype == torch.float16
    assert_inverse({"rate": rate.double().numpy()}, u.numpy(), result.double().numpy())


# ---- the ends ----------------------------------------------------------------


def test_0_gives_0_and_1_gives_infinity(parameters):
    result = made(parameters).icdf(torch.tensor([0.0, 1.0]))
    assert (result[..., 0] == 0).all()
    assert (result[..., 1] == torch.inf).all()


def test_1_gives_infinity_where_the_probabilities_round_to_a_sum_of_1():
    mu = torch.logspace(-4, 6, 500, dtype=torch.float64)
    assert Poisson(mu).icdf(torch.ones(())).isinf().all()
    for theta in (1e-3, 1.0, 1e6):
        assert NegativeBinomial(mu=mu, theta=theta).icdf(torch.ones(())).isinf().all()


def test_a_mean_of_zero_gives_zero():
    u = torch.tensor([0.0, 0.5, 1.0])
    for d in (
        Poisson(torch.zeros(3)),
        NegativeBinomial(mu=torch.zeros(3), theta=1e-4),
        ZeroInflatedNegativeBinomial(mu=torch.zeros(3), theta=2.0, zi_logits=1.0),
    ):
        assert not d.icdf(u).any()


@pytest.mark.parametrize("logit", [20.0, 30.0])
def test_a_probability_of_a_loss_that_rounds_to_1_is_still_told_from_it(logit):
    """In float32 from a logit of 17 on."""
    d = ZeroInflatedNegativeBinomial(mu=1e3, theta=1e6, zi_logits=logit)
    kept = special.expit(-logit)
    share = np.array([0.9, 0.5, 0.1])  # of the counts that are kept, above
    result = d.icdf(torch.from_numpy(1.0 - kept * share)).numpy()
    error = 4 * 2**-53 / kept  # of the uniform number, as a share of the kept
    low, high = (stats.nbinom.isf(share + e, 1e6, 1 / (1 + 1e-3)) for e in (error, -error))
    assert ((result >= low) & (result <= high)).all()
    lost = ZeroInflatedNegativeBinomial(mu=1e3, theta=1e6, zi_logits=torch.tensor([60, torch.inf]))
    assert not lost.icdf(torch.tensor(1 - 2**-53, dtype=torch.float64)).any()


def test_1_gives_0_where_all_are_lost_for_certain():
    d = ZeroInflatedNegativeBinomial(mu=3.0, theta=1.0, zi_logits=torch.inf)
    assert not d.icdf(torch.ones(())).any()


def test_rounding_does_not_decide_what_is_zero():
    """Uniform numbers next to P(0), nearer than float32 can tell."""
    rng = np.random.default_rng(3)
    mu, theta, logits = np.stack([*10 ** rng.uniform(-3, 1, (2, 20_000)), rng.normal(0, 2, 20_000)])
    parameters = {"mu": mu, "theta": theta, "zi_logits": logits}
    parameters = {name: value.astype(np.float32) for name, value in parameters.items()}
    for chosen in (1, 2, 3):
        part = dict(list(parameters.items())[:chosen])
        part = part if chosen > 1 else {"rate": part["mu"]}
        for shift in (-1e-9, 1e-9):
            u = (probability_below(part, 0) + shift).clip(0, 1)
            result = made(part, torch.float32).icdf(torch.from_numpy(u)).numpy()
            assert np.array_equal(result > 0, np.full(len(u), shift > 0))


def test_large_theta_is_poisson():
    u = torch.from_numpy(UNIFORM)
    for mu in (0.3, 200.0, 1e4):
        result = NegativeBinomial(mu=torch.tensor(mu, dtype=torch.float64), theta=1e18).icdf(u)
        assert torch.equal(result, Poisson(torch.tensor(mu, dtype=torch.float64)).icdf(u))


def test_no_loss_is_the_negative_binomial():
    u = torch.from_numpy(UNIFORM)
    for mu, theta in product((0.01, 3.0, 1e4), (0.05, 2.0, 1e5)):
        d = ZeroInflatedNegativeBinomial(
            mu=torch.tensor(mu, dtype=torch.float64), theta=theta, zi_logits=-torch.inf
        )
        result, p = d.icdf(u).numpy(), 1.0 / (1.0 + mu / theta)
        assert_inverse({"mu": mu, "theta": theta}, UNIFORM, result)
        inside = UNIFORM[:60]
        np.testing.assert_array_equal(result[:60], stats.nbinom.ppf(inside, theta, p))


# ---- shapes ------------------------------------------------------------------


def test_everything_broadcasts():
    d = ZeroInflatedNegativeBinomial(
        mu=torch.full((4, 1), 5.0), theta=torch.ones(3), zi_logits=torch.zeros(2, 1, 1)
    )
    u = torch.rand(5, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert d.icdf(u).shape == (5, 2, 4, 3)
    assert d.icdf(torch.tensor(0.9)).shape == (2, 4, 3)
    assert d.icdf(torch.ones(0, 1, 1, 1)).shape == (0, 2, 4, 3)
    assert torch.equal(d.icdf(u), d.expand((5, 2, 4, 3)).icdf(u.expand(5, 2, 4, 3)))
    assert Poisson(torch.ones(0, 3)).icdf(torch.rand(3)).shape == (0, 3)


@pytest.mark.parametrize("u", [1e-3, 0.4, 0.7, 0.999])
def test_single_numbers_give_a_single_number(u):
    value = torch.tensor(u, dtype=torch.float64)
    for d, wanted in (
        (Poisson(3.0), stats.poisson.ppf(u, 3.0)),
        (NegativeBinomial(mu=3.0, theta=2.0), stats.nbinom.ppf(u, 2.0, 0.4)),
        (
            ZeroInflatedNegativeBinomial(mu=3.0, theta=2.0, zi_logits=0.0),
            stats.nbinom.ppf(max(2 * u - 1, 1e-9), 2.0, 0.4),
        ),
    ):
        result = d.icdf(value)
        assert result.shape == ()
        assert result.item() == wanted


def test_entries_do_not_affect_each_other(parameters):
    """An entry gives the same count alone, among others, and in another order."""
    rng = np.random.default_rng(1)
    tensors = np.broadcast_arrays(*parameters.values(), INSIDE)
    *flat, u = (a.reshape(-1) for a in tensors)
    order = rng.permutation(len(u))
    together = made(dict(zip(parameters, flat, strict=True))).icdf(torch.from_numpy(u.copy()))
    shuffled = made({n: v[order] for n, v in zip(parameters, flat, strict=True)})
    result = shuffled.icdf(torch.from_numpy(u[order]))
    assert torch.equal(result, together[torch.from_numpy(order)])
    for i in rng.choice(len(u), 40, replace=False):
        single = made({n: v[i] for n, v in zip(parameters, flat, strict=True)})
        assert single.icdf(torch.tensor(u[i], dtype=torch.float64)) == together[i]


def test_strided_parameters_and_values():
    generator = torch.Generator().manual_seed(0)
    mu, theta, u = torch.rand(3, 6, 8, generator=generator).transpose(1, 2).unbind(0)
    result = NegativeBinomial(mu=9 * mu[:, ::2], theta=theta[:, ::2]).icdf(u[:, ::2])
    whole = NegativeBinomial(mu=9 * mu, theta=theta).icdf(u.contiguous())
    assert torch.equal(result, whole[:, ::2])


def test_counts_rise_with_the_uniform_number_and_with_the_mean(parameters):
    u = torch.from_numpy(np.sort(INSIDE))
    result = made(parameters).icdf(u)
    assert (result.diff(dim=-1) >= 0).all()
    mean = "rate" if "rate" in parameters else "mu"
    larger = made(parameters | {mean: 1.01 * parameters[mean]}).icdf(u)
    assert (larger >= result).all()


def test_there_is_no_gradient():
    mu = torch.ones(3, requires_grad=True)
    for d in (
        Poisson(mu),
        NegativeBinomial(mu=mu, theta=1.0),
        ZeroInflatedNegativeBinomial(mu=mu, theta=mu, zi_logits=mu),
    ):
        assert not d.icdf(torch.rand(3, requires_grad=True)).requires_grad


# ---- samples -----------------------------------------------------------------

N_SAMPLES = 200_000
SIX = 6.0  # standard errors; of some 40 comparisons with fixed seeds none may be beyond


@pytest.mark.parametrize(
    "parameters",
    [
        {"rate": 0.03},
        {"rate": 4.0},
        {"rate": 300.0},
        {"mu": 0.2, "theta": 0.5},
        {"mu": 7.0, "theta": 3.0},
        {"mu": 800.0, "theta": 2.0},
        {"mu": 12.0, "theta": 1e6},
        {"mu": 0.5, "theta": 1.0, "zi_logits": -2.0},
        {"mu": 9.0, "theta": 2.0, "zi_logits": 1.0},
        {"mu": 700.0, "theta": 30.0, "zi_logits": 3.0},
    ],
    ids=str,
)
def test_uniform_numbers_become_samples(parameters):
    """Mean, variance and zeros are within their standard errors, of the exact moments."""
    d = made(parameters)
    samples = d.icdf(torch.from_numpy(np.random.default_rng(2).random(N_SAMPLES))).numpy()
    k = np.arange(20_000)
    pmf = np.diff(probability_below(parameters, np.append(-1, k)))
    assert pmf.sum() == pytest.approx(1.0, abs=1e-12)
    mean = (k * pmf).sum()
    variance, fourth = (((k - mean) ** power * pmf).sum() for power in (2, 4))
    assert d.mean.item() == pytest.approx(mean, rel=1e-6)
    assert d.variance.item() == pytest.approx(variance, rel=1e-6)
    assert abs(samples.mean() - mean) < SIX * (variance / N_SAMPLES) ** 0.5
    assert abs(samples.var() - variance) < SIX * ((fourth - variance**2) / N_SAMPLES) ** 0.5
    zeros = pmf[0]
    assert (
        abs((samples == 0).mean() - zeros) < SIX * (zeros * (1 - zeros) / N_SAMPLES) ** 0.5 + 1e-12
    )


# ---- what is refused ---------------------------------------------------------


@pytest.mark.parametrize("wrong", [-0.1, 1.0001, torch.nan, torch.inf])
@pytest.mark.parametrize("parameters", SWEEPS.values(), ids=SWEEPS)
def test_what_is_no_probability_is_refused(refused, parameters, wrong):
    d = made(parameters, validate_args=True)
    with refused(OptionError, "icdf", "between 0 and 1"):
        d.icdf(torch.tensor([0.5, wrong]))


def test_without_the_check_other_values_raise_no_error():
    u = torch.tensor([-0.1, 0.5, 1.5])
    for d in (
        Poisson(torch.full((3,), 4.0), validate_args=False),
        NegativeBinomial(mu=4.0, theta=1.0, validate_args=False),
        ZeroInflatedNegativeBinomial(mu=4.0, theta=1.0, zi_logits=0.0, validate_args=False),
    ):
        assert d.icdf(u).shape == (3,)
