import mpmath
import numpy as np
import pytest
from numba import njit

from vivace.ops.math.fastmath import EXACT
from vivace.ops.math.gamma import log64, log_gamma, log_gamma_digamma

# tiny theta, small integers and halves, the ends of the shift, huge counts
POINTS = [3e-7, 1e-3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.999, 6.0, 31.5, 1e3, 3.3e6, 1e6 + 0.5, 1e13, 3e38]
LOG_POINTS = [*POINTS, 0.70710678, 0.70710679, 1.4142135, 1.4142136, 1 + 1e-9, 1e-300, 1e300]


@njit(fastmath=EXACT, error_model="numpy")
def over_array(z):
    """In a loop that LLVM vectorises, as the kernel uses them."""
    out = np.empty((4, z.size))
    for i in range(z.size):
        out[0, i] = log64(z[i])
    for i in range(z.size):
        out[1, i] = log_gamma(z[i])
    for i in range(z.size):
        out[2, i], out[3, i] = log_gamma_digamma(z[i])
    return out


def close(result, exact, tolerance):
    """Relative error, or absolute where the exact value is below one."""
    exact = np.array([float(e) for e in exact])
    assert np.max(np.abs(result - exact) / np.maximum(np.abs(exact), 1.0)) < tolerance


@pytest.mark.parametrize("points", [LOG_POINTS, LOG_POINTS[::-1]], ids=["", "reversed"])
def test_log_is_accurate(points):
    with mpmath.workdps(40):
        result = over_array(np.array(points))[0]
        exact = np.array([float(mpmath.log(p)) for p in points])
    assert np.max(np.abs(result - exact) / np.maximum(np.abs(exact), 1e-12)) < 3e-15
    assert log64(1.0) == 0.0


@pytest.mark.parametrize("points", [POINTS, POINTS[::-1]], ids=["", "reversed"])
def test_log_gamma_and_digamma_are_accurate(points):
    with mpmath.workdps(40):
        _, log_gammas, value, slope = over_array(np.array(points))
        close(log_gammas, [mpmath.loggamma(p) for p in points], 1e-10)
        close(value, [mpmath.loggamma(p) for p in points], 1e-10)
        close(slope, [mpmath.digamma(p) for p in points], 1e-10)


def test_nan_stays_nan():
    z = np.ones(19)
    z[[0, 7, 18]] = np.nan
    for row in over_array(z):
        assert np.array_equal(np.isnan(row), np.isnan(z))
