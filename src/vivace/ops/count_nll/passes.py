"""Numba kernels that go once over the genes of one cell.

Each is a short loop over few arrays on purpose: LLVM does not vectorise a loop that would
need many checks for overlapping arrays, and a processor looks only some 250 instructions
ahead. README.md has the formulas and the names.
"""

from __future__ import annotations

import math

import numpy as np

from vivace.ops.count_nll.reference import LOG_THETA_BOUND
from vivace.ops.math.fastmath import (
    exp32,
    largest32,
    log1p32,
    log1p_given32,
    log1p_share32,
    log32,
)
from vivace.ops.math.gamma import log64, log_gamma, log_gamma_digamma
from vivace.ops.runtime.kernels import EXACT, SUMS, inner_kernel
from vivace.ops.runtime.llvm import vector_loop
from vivace.types import F32, F64, U32

_ONE = np.float32(1)
_ZERO = np.float32(0)
_BOUND = np.float32(LOG_THETA_BOUND)
_LOG_FACTORIAL = np.array([math.lgamma(i + 1) for i in range(256)], np.float64)
_CERTAIN = 1e30  # stands for an infinite logit; infinity minus infinity would be NaN
_VANISHING = np.float32(-28)  # the product of three numbers above exp(-28) is a normal float32
_MOST_KEPT = np.float32(-43.5)  # exp(43.5) squared still has a normal reciprocal
_SOFTPLUS_IS_EXP = -20.0  # below it their logs are equal to float32 accuracy


# ---- rows of scratch memory, by name ---------------------------------------------------
#
# Three blocks: over all genes of a cell (float32), and over its non-zero genes, side by side
# (float64 and float32). The first names are rows of the first two.

VALUE = 0  # log p; before that, what it is computed from
GRAD_MU = 1  # derivative of log p in log mu
GRAD_THETA = 2  # derivative of log p in log theta

E = 3  # exp(s - max s), or softplus(s)
SLOPE = 4  # derivative of log e in s, with softplus
DENSE_ROWS = 5

RATIO = 3  # mu / theta
THETA = 4
LOG_THETA = 5
LOG_GAMMA = 6  # of theta
DIGAMMA = 7  # of theta
NONZERO_ROWS = 8

INV_THETA = 0
LOGITS = 1  # of zero inflation
LOG_KEPT = 2  # log probability of not being dropped
GRAD_LOGITS = 3
NONZERO_ROWS_32 = 4


# ---- dispersions, once per call -------------------------------------------------------


@inner_kernel(fastmath=EXACT)
def dispersion(log_theta: F32, theta: F32, inv_theta: F32) -> None:
    """Write theta and 1/theta from log theta, held within its bounds."""
    vector_loop()
    for g in range(log_theta.size):
        t = log_theta[g]
        t = -_BOUND if t < -_BOUND else t
        t = _BOUND if t > _BOUND else t
        theta[g] = exp32(t)
        inv_theta[g] = exp32(-t)


@inner_kernel(fastmath=EXACT)
def gamma_functions(inv_theta: F32, log_theta: F64, log_gammas: F64, digammas: F64) -> None:
    """Write log theta, log gamma(theta) and digamma(theta).

    Theta is taken from the same rounded 1/theta as in ``zero_nb``: where theta is tiny,
    x log(theta) and x spread are large and cancel.
    """
    vector_loop()
    for i in range(inv_theta.size):
        theta = 1.0 / np.float64(inv_theta[i])
        log_theta[i] = log64(theta)
        log_gammas[i], digammas[i] = log_gamma_digamma(theta)


# ---- sums -------------------------------------------------------------------------------


@inner_kernel(fastmath=SUMS)
def total(a: F32 | F64) -> float:
    """Sum in float64."""
    vector_loop()
    result = 0.0
    for j in range(a.size):
        result += np.float64(a[j])
    return result


@inner_kernel(fastmath=EXACT)
def add(sums: F32, a: F32, weight: float) -> None:
    """Add weight * a to the sums."""
    vector_loop()
    for j in range(sums.size):
        sums[j] += weight * a[j]


@inner_kernel(fastmath=EXACT)
def scale_and_add(a: F32, sums: F32, weight: float) -> None:
    """Multiply a by the weight in place, and add it to the sums."""
    vector_loop()
    for j in range(a.size):
        a[j] *= weight
        sums[j] += a[j]


@inner_kernel(fastmath=EXACT)
def _logs_of_products(a: F32, b: F32, c: F32) -> None:
    """Write log(a b c) over a; all three have one length."""
    vector_loop()
    for j in range(a.size):
        a[j] = log32(a[j] * b[j] * c[j])


@inner_kernel(fastmath=EXACT)
def total_of_logs(a: F32) -> float:
    """Sum of the logs of numbers of at least exp(-28), which are overwritten.

    Three of them are multiplied before a logarithm is taken.
    """
    third = a.size // 3
    logs = a[:third]
    _logs_of_products(logs, a[third : 2 * third], a[2 * third : 3 * third])
    result: float = total(logs)
    for j in range(3 * third, a.size):
        result += np.float64(log32(a[j]))
    return result


# ---- the mean of every gene -------------------------------------------------------------


@inner_kernel(fastmath=EXACT)
def exponentials(s: F32, e: F32) -> tuple[float, float]:
    """Write e = exp(s - max s); return the maximum and the sum of e."""
    vector_loop()
    top = largest32(s)
    for j in range(s.size):
        e[j] = exp32(s[j] - top)
    return top, total(e)


@inner_kernel(fastmath=EXACT)
def softplus(s: F32, e: F32, slope: F32) -> None:
    """Write e = log(1 + exp(s)), and the derivative of log e."""
    vector_loop()
    for j in range(s.size):
        small = exp32(-abs(s[j]))
        rest = log1p32(small)
        e[j] = rest + (s[j] if s[j] > _ZERO else _ZERO)
    for j in range(s.size):
        small = exp32(-abs(s[j]))
        slope[j] = (_ONE if s[j] > _ZERO else small) / ((_ONE + small) * e[j])


@inner_kernel(fastmath=EXACT)
def nonzero_log_mu(
    genes: U32, s: F32, e: F32, is_softplus: bool, shift: float, log_mu: F64
) -> None:
    """Write log mu of the non-zero genes.

    ``shift`` is its distance from the logit, or from the log of a softplus.
    """
    for i in range(genes.size):
        j = genes[i]
        logit = np.float64(s[j])
        # far below zero a softplus is exp(logit), and would leave float32
        log_e = log64(np.float64(e[j])) if is_softplus and logit > _SOFTPLUS_IS_EXP else logit
        log_mu[i] = log_e + shift


@inner_kernel(fastmath=EXACT)
def softmax_gradient(s: F32, e: F32, grad_mu: F32, sums: F32, weight: float, factor: float) -> None:
    """Overwrite logits with weight * (softmax * sum(grad_mu) - grad_mu), and add to the sums."""
    vector_loop()
    for j in range(s.size):
        gradient = weight * (e[j] * factor - grad_mu[j])
        s[j] = gradient
        sums[j] += gradient


@inner_kernel(fastmath=EXACT)
def softplus_gradient(s: F32, slope: F32, grad_mu: F32, sums: F32, weight: float) -> None:
    """Overwrite logits with -weight * slope * grad_mu, and add to the sums."""
    vector_loop()
    for j in range(s.size):
        gradient = -weight * (slope[j] * grad_mu[j])
        s[j] = gradient
        sums[j] += gradient


# ---- all genes, as if every count were zero ---------------------------------------------


@inner_kernel(fastmath=EXACT)
def zero_nb(e: F32, rate: float, inv_theta: F32, theta: F32, value: F32, grad_mu: F32) -> None:
    """Write log NB(0) and its derivative in log mu."""
    vector_loop()
    for j in range(e.size):
        u = (e[j] * rate) * inv_theta[j]
        value[j] = u
        grad_mu[j] = _ONE / (_ONE + u)
    for j in range(e.size):
        u = value[j]
        inverse = grad_mu[j]
        value[j] = -theta[j] * log1p_given32(u, inverse)
        grad_mu[j] = -theta[j] * (u * inverse)


@inner_kernel(fastmath=EXACT)
def zero_grad_theta(value: F32, grad_mu: F32, grad_theta: F32) -> None:
    """Write the derivative of log NB(0) in log theta."""
    vector_loop()
    for j in range(grad_mu.size):
        grad_theta[j] = value[j] - grad_mu[j]


@inner_kernel(fastmath=EXACT)
def exponential(a: F32) -> None:
    """Take exp in place."""
    vector_loop()
    for j in range(a.size):
        a[j] = exp32(a[j])


@inner_kernel(fastmath=EXACT)
def odds_kept(logits: F32) -> None:
    """Overwrite logits pi with the odds of not being dropped, exp(-pi).

    They are bounded: one over their square must be a normal float32.
    """
    vector_loop()
    for j in range(logits.size):
        pi = logits[j]
        pi = _MOST_KEPT if pi < _MOST_KEPT else pi
        logits[j] = exp32(-pi)


@inner_kernel(fastmath=EXACT)
def any_vanishing(value: F32, logits: F32) -> bool:
    """Whether e^pi and NB(0) of some gene are both too small for ``zero_zinb``."""
    vector_loop()
    vanishing = np.int32(0)
    for j in range(value.size):
        vanishing |= np.int32(max(value[j], logits[j]) < _VANISHING)
    return vanishing != 0


@inner_kernel(fastmath=EXACT)
def zero_zinb(value: F32, logits: F32, grad_mu: F32, grad_theta: F32) -> None:
    """Turn NB(0), the odds and its derivatives into ZINB(0) and its derivatives, in place."""
    vector_loop()
    for j in range(value.size):
        t = value[j]
        p = logits[j]
        kept = p * t
        mass = _ONE + kept
        whole = _ONE + p
        inverse = _ONE / (mass * whole)  # the only division
        value[j] = mass * (mass * inverse)
        logits[j] = (p * (_ONE - t)) * inverse
        kept *= whole * inverse
        grad_mu[j] *= kept
        grad_theta[j] *= kept


@inner_kernel()
def zero_zinb_by_logs(value: F32, logits: F32, grad_mu: F32, grad_theta: F32) -> None:
    """Turn log NB(0) and pi into log ZINB(0), where both terms may vanish.

    The derivatives come out as from ``zero_zinb``.
    """
    for j in range(value.size):
        pi, t = np.float64(logits[j]), np.float64(value[j])
        pi = _CERTAIN if pi > _CERTAIN else pi
        a = math.exp(-abs(pi - t))
        b = math.exp(-abs(pi))
        kept = np.float32((a if pi > t else 1.0) / (1.0 + a))
        grad_mu[j] *= kept
        grad_theta[j] *= kept
        logits[j] = np.float32(
            (1.0 if pi > t else a) / (1.0 + a) - (1.0 if pi > 0 else b) / (1 + b)
        )
        value[j] = np.float32(max(pi, t) + math.log1p(a) - max(pi, 0.0) - math.log1p(b))


@inner_kernel(fastmath=EXACT)
def within_bounds(grad_theta: F32, log_theta: F32, weight: float, out: F32) -> None:
    """Weight the gradient; where log theta is beyond its bounds, the gradient is zero."""
    vector_loop()
    for j in range(grad_theta.size):
        out[j] = _ZERO if abs(log_theta[j]) > _BOUND else weight * grad_theta[j]


# ---- the non-zero genes -------------------------------------------------------------------


@inner_kernel(fastmath=EXACT)
def subtract_log_factorials(x: F32, value: F64) -> None:
    """Subtract log x!, from a table where x is a small integer."""
    vector_loop()
    last = np.float32(_LOG_FACTORIAL.size - 1)
    others = np.int32(0)
    for i in range(x.size):
        listed = np.int32(x[i] if x[i] < last else last)
        value[i] -= _LOG_FACTORIAL[listed]
        others |= np.int32(x[i] != np.float32(listed))
    if others != 0:  # undo the table's number and take the exact one
        for i in range(x.size):
            listed = np.int32(x[i] if x[i] < last else last)
            if x[i] != np.float32(listed):
                value[i] += _LOG_FACTORIAL[listed] - log_gamma(np.float64(x[i]) + 1.0)


@inner_kernel(fastmath=EXACT)
def nonzero_poisson(genes: U32, x: F32, grad_mu: F32, value: F64) -> None:
    """Turn log mu into x log mu, and add x to the dense ``grad_mu``."""
    for i in range(genes.size):
        grad_mu[genes[i]] += x[i]
        value[i] *= np.float64(x[i])


@inner_kernel(fastmath=EXACT)
def gather_ratio(
    genes: U32,
    e: F32,
    rate: float,
    inv_theta: F32,
    ratio: F64,
    theta: F64,
    nonzero_inv_theta: F32,
) -> None:
    """Write mu/theta, theta and 1/theta of the non-zero genes, side by side."""
    vector_loop()
    for i in range(genes.size):
        j = genes[i]
        nonzero_inv_theta[i] = inv_theta[j]
        inverse = np.float64(inv_theta[j])
        ratio[i] = np.float64(e[j]) * rate * inverse
        theta[i] = 1.0 / inverse


@inner_kernel(fastmath=EXACT)
def gather(genes: U32, row: F64, out: F64) -> None:
    """Write the numbers of the non-zero genes, side by side."""
    vector_loop()
    for i in range(genes.size):
        out[i] = row[genes[i]]


@inner_kernel(fastmath=EXACT)
def nonzero_value(x: F32, ratio: F64, theta: F64, value: F64, grad_theta: F64) -> None:
    """Turn log(mu/theta) into log NB(x) + log gamma(theta) + log x!, and write grad_theta.

    The latter still lacks -grad_mu and -theta digamma(theta).
    """
    vector_loop()
    for i in range(x.size):
        u = ratio[i]
        t = theta[i]
        count = np.float64(x[i])
        # u comes from float32 and log u from float64: where u is large, log u cancels exactly
        # in log u - log(1 + u) = -log(1 + 1/u), or the difference would be multiplied by x
        large = u > 1.0
        log_u = value[i]
        rest = log64(1.0 + (1.0 / u if large else u))
        spread = rest + (log_u if large else 0.0)
        log_gamma_z, digamma_z = log_gamma_digamma(count + t)
        value[i] = count * ((0.0 if large else log_u) - rest) - t * spread + log_gamma_z
        grad_theta[i] = t * (digamma_z - spread)


@inner_kernel(fastmath=EXACT)
def nonzero_gradient(x: F32, ratio: F64, theta: F64, grad_mu: F64, grad_theta: F64) -> None:
    """Write grad_mu, and subtract it from grad_theta."""
    vector_loop()
    for i in range(x.size):
        m = (np.float64(x[i]) - theta[i] * ratio[i]) / (1.0 + ratio[i])
        grad_mu[i] = m
        grad_theta[i] -= m


@inner_kernel(fastmath=EXACT)
def nonzero_constants(
    theta: F64, log_gammas: F64, digammas: F64, value: F64, grad_theta: F64
) -> None:
    """Subtract log gamma(theta) and theta * digamma(theta)."""
    vector_loop()
    for i in range(value.size):
        value[i] -= log_gammas[i]
        grad_theta[i] -= theta[i] * digammas[i]


@inner_kernel(fastmath=EXACT)
def not_dropped(logits: F32, log_kept: F32, grad_logits: F32) -> None:
    """Write log(1 - dropout) of non-zero counts, and its derivative."""
    vector_loop()
    for i in range(logits.size):
        pi = logits[i]
        spread, share = log1p_share32(exp32(-abs(pi)))
        log_kept[i] = -(spread + (pi if pi > _ZERO else _ZERO))
        grad_logits[i] = -(_ONE - share if pi > _ZERO else share)
