import mpmath
import numpy as np
import pytest
from numba import njit

from vivace.ops.math.fastmath import exp32, largest32, log1p32, log32
from vivace.ops.runtime import kernels

TINY, HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
EXP_MIN, EXP_MAX = np.float32(-87.3), np.float32(88.3)


def over_arrays(function):
    """The function in a loop over arrays, which LLVM vectorises, as the kernels use it."""

    @njit(fastmath=kernels.EXACT, error_model="numpy")
    def loop(x):
        out = np.empty_like(x)
        for i in range(x.size):
            out[i] = function(x[i])
        return out

    return loop


LOOPS = {f: over_arrays(f) for f in (exp32, log32, log1p32)}
EXACT = {exp32: np.exp, log32: np.log, log1p32: np.log1p}


def spread_over(low, high, n=200_000):
    """Float32 numbers from low to high, by value, by exponent and around one and two."""
    rng = np.random.default_rng(0)
    uniform = rng.uniform(low, high, n)
    sides = [np.exp(rng.uniform(np.log(TINY), np.log(high), n))]
    if low < 0:
        sides.append(-np.exp(rng.uniform(np.log(TINY), np.log(-low), n)))
    near_one_and_two = np.concatenate(
        [k + rng.normal(0, 10.0 ** rng.uniform(-7, -1, n)) for k in (1, 2)]
    )
    x = np.concatenate([uniform, *sides, near_one_and_two, [low, high]]).astype(np.float32)
    return x[(x >= low) & (x <= high)]


def ulps(result, exact):
    """Distance in units in the last place of the exact value as a float32."""
    return np.abs(result.astype(np.float64) - exact) / np.spacing(np.abs(exact.astype(np.float32)))


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(exp32, EXP_MIN, EXP_MAX), (log32, TINY, HUGE), (log1p32, TINY, HUGE)],
    ids=["exp32", "log32", "log1p32"],
)
def test_results_are_within_two_ulps(function, low, high):
    x = spread_over(low, high)
    exact = EXACT[function](x.astype(np.float64))
    normal = np.abs(exact) >= TINY
    assert normal.mean() > 0.99
    assert ulps(LOOPS[function](x), exact)[normal].max() <= 2


@pytest.mark.parametrize("function", [exp32, log32, log1p32], ids=["exp32", "log32", "log1p32"])
def test_one_number_against_forty_digits(function):
    exact = {exp32: mpmath.exp, log32: mpmath.log, log1p32: mpmath.log1p}[function]
    for x in np.float32([1e-30, 1e-7, 0.1, 0.70710677, 0.7071068, 1, 1.4142135, 1.4142137, 3, 80]):
        with mpmath.workdps(40):
            value = np.array([float(exact(mpmath.mpf(float(x))))])
        result = np.array([function(x)], np.float32)
        if value[0] == 0:
            assert result[0] == 0
        else:
            assert ulps(result, value)[0] <= 2


def test_results_at_zero_and_one_are_exact():
    assert exp32(np.float32(0)) == 1
    assert log32(np.float32(1)) == 0
    assert log1p32(np.float32(0)) == 0


@pytest.mark.parametrize("function", [exp32, log32, log1p32], ids=["exp32", "log32", "log1p32"])
def test_nan_stays_nan(function):
    x = np.ones(19, np.float32)
    x[[0, 7, 18]] = np.nan
    assert np.array_equal(np.isnan(LOOPS[function](x)), np.isnan(x))
    assert np.isnan(function(np.float32(np.nan)))


@pytest.mark.parametrize("beyond", [-88.0, -1e30, -np.inf])
def test_exp_of_very_negative_numbers_stays_normal(beyond):
    result = LOOPS[exp32](np.full(19, beyond, np.float32))
    assert np.array_equal(result, LOOPS[exp32](np.full(19, EXP_MIN, np.float32)))
    assert np.all(result >= TINY)


@pytest.mark.parametrize("size", [1, 7, 16, 1271])
@pytest.mark.parametrize("shift", [-300.0, -3.0, 0.0, 300.0])
def test_largest_is_the_maximum(shift, size):
    for seed in range(5):
        x = (shift + np.random.default_rng(seed).normal(0, 2, size)).astype(np.float32)
        assert largest32(x) == x.max()


def test_largest_of_special_numbers():
    assert largest32(np.float32([-np.inf, -1.0, -HUGE])) == -1
    assert largest32(np.float32([-np.inf, -np.inf])) == -np.inf
    assert largest32(np.float32([HUGE, np.inf, 1.0])) == np.inf
    assert largest32(np.float32([-TINY, -0.0, -1.0])) == 0
    for place in range(19):
        x = np.ones(19, np.float32)
        x[place] = np.nan
        assert np.isnan(largest32(x))
