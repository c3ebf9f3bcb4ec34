"""Numba kernel: from logits to loss and gradients in one pass over a row.

A row of logits is read, the likelihood of every gene is computed as if its
count were zero (dense, vectorised), the few non-zero genes are then set right
(sparse), and the row is overwritten with its gradient.  The matrix products
before and after are torch's, in ``autograd.py``.  README.md has the formulas
and the names.

Short loops over few arrays on purpose: LLVM gives up on vectorising a loop
that would need many checks for overlapping arrays.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

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
from vivace.ops.runtime.kernels import EXACT, SUMS, inner_kernel, parallel_kernel, specialised
from vivace.ops.runtime.llvm import never_inline, vector_loop
from vivace.types import F32, F64, I64, U32

_ONE = np.float32(1)
_ZERO = np.float32(0)
_BOUND = np.float32(LOG_THETA_BOUND)
_LOG_FACTORIAL = np.array([math.lgamma(i + 1) for i in range(256)], np.float64)
_ROWS = 16  # cells handed to a thread at a time
_GENES = 256  # genes of a per-gene loop handed to a thread at a time
_POISSON, _NB, _ZINB = 0, 1, 2
_NAMES = {_POISSON: "poisson", _NB: "nb", _ZINB: "zinb"}
FAMILY, SOFTPLUS = _ZINB, False  # constants of each kernel: _kernel_for
_CERTAIN = 1e30  # infinity less infinity would be no number
_VANISHING = np.float32(-28)  # three times e to this, multiplied, are a normal float32
_MOST_KEPT = np.float32(-43.5)  # e to twice this is one too
_SOFTPLUS_IS_EXP = -20.0  # below it their logs are equal to float32 accuracy


# ---- dispersions, once a step --------------------------------------------------


@inner_kernel(fastmath=EXACT)
def _dispersion(log_theta: F32, theta: F32, inv_theta: F32) -> None:
    """Theta and 1/theta, from log theta held within its bounds."""
    vector_loop()
    for g in range(log_theta.size):
        t = log_theta[g]
        t = -_BOUND if t < -_BOUND else t
        t = _BOUND if t > _BOUND else t
        theta[g] = exp32(t)
        inv_theta[g] = exp32(-t)


# ---- passes over one row of g genes -----------------------------------------


@inner_kernel(fastmath=SUMS)
def _total(a: F32 | F64) -> float:
    vector_loop()
    total = 0.0
    for j in range(a.size):
        total += np.float64(a[j])
    return total


@inner_kernel(fastmath=EXACT)
def _exponentials(s: F32, e: F32) -> tuple[float, float]:
    """Write e = exp(s - max s); the maximum and the sum of e."""
    vector_loop()
    top = largest32(s)
    for j in range(s.size):
        e[j] = exp32(s[j] - top)
    return top, _total(e)


@inner_kernel(fastmath=EXACT)
def _softplus(s: F32, e: F32, slope: F32) -> None:
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
def _zero_nb(e: F32, rate: float, inv_theta: F32, theta: F32, value: F32, by_mu: F32) -> None:
    """Log NB(0) and its derivative in log mu."""
    vector_loop()
    for j in range(e.size):
        u = (e[j] * rate) * inv_theta[j]
        value[j] = u
        by_mu[j] = _ONE / (_ONE + u)
    for j in range(e.size):
        u = value[j]
        inverse = by_mu[j]
        value[j] = -theta[j] * log1p_given32(u, inverse)
        by_mu[j] = -theta[j] * (u * inverse)


@inner_kernel(fastmath=EXACT)
def _exponential(a: F32) -> None:
    """In place."""
    vector_loop()
    for j in range(a.size):
        a[j] = exp32(a[j])


@inner_kernel(fastmath=EXACT)
def _odds_kept(logits: F32) -> None:
    """In place, the odds of not being dropped, exp(-pi), bounded for one over their square."""
    vector_loop()
    for j in range(logits.size):
        pi = logits[j]
        pi = _MOST_KEPT if pi < _MOST_KEPT else pi
        logits[j] = exp32(-pi)


@inner_kernel(fastmath=EXACT)
def _zero_zinb(value: F32, logits: F32, by_mu: F32, by_theta: F32) -> None:
    """In place, from NB(0) and the odds: ZINB(0) and its derivatives."""
    vector_loop()
    for j in range(value.size):
        t = value[j]
        p = logits[j]
        kept = p * t
        mass = _ONE + kept
        whole = _ONE + p
        inverse = _ONE / (mass * whole)
        value[j] = mass * (mass * inverse)
        logits[j] = (p * (_ONE - t)) * inverse
        kept *= whole * inverse
        by_mu[j] *= kept
        by_theta[j] *= kept


@inner_kernel(fastmath=EXACT)
def _logs_of_products(a: F32, b: F32, c: F32) -> None:
    """Write log(a b c) over a; all three are as long."""
    vector_loop()
    for j in range(a.size):
        a[j] = log32(a[j] * b[j] * c[j])


@inner_kernel(fastmath=EXACT)
def _total_of_logs(a: F32) -> float:
    """Sum of the logs of numbers of at least exp(-28), which are overwritten."""
    third = a.size // 3
    logs = a[:third]
    _logs_of_products(logs, a[third : 2 * third], a[2 * third : 3 * third])
    total: float = _total(logs)
    for j in range(3 * third, a.size):
        total += np.float64(log32(a[j]))
    return total


@inner_kernel(fastmath=EXACT)
def _any_vanishing(value: F32, logits: F32) -> bool:
    """Whether e^pi and NB(0) of some gene are both below what ``_zero_zinb`` can hold."""
    vector_loop()
    found = np.int32(0)
    for j in range(value.size):
        found |= np.int32(max(value[j], logits[j]) < _VANISHING)
    return found != 0


@inner_kernel()
def _zero_zinb_by_logs(value: F32, logits: F32, by_mu: F32, by_theta: F32) -> None:
    """What ``_zero_zinb`` gives, and its logarithm, where both terms may vanish."""
    for j in range(value.size):
        pi, t = np.float64(logits[j]), np.float64(value[j])
        pi = _CERTAIN if pi > _CERTAIN else pi
        a = math.exp(-abs(pi - t))
        b = math.exp(-abs(pi))
        kept = np.float32((a if pi > t else 1.0) / (1.0 + a))
        by_mu[j] *= kept
        by_theta[j] *= kept
        logits[j] = np.float32(
            (1.0 if pi > t else a) / (1.0 + a) - (1.0 if pi > 0 else b) / (1 + b)
        )
        value[j] = np.float32(max(pi, t) + math.log1p(a) - max(pi, 0.0) - math.log1p(b))


@inner_kernel(fastmath=EXACT)
def _zero_by_theta(value: F32, by_mu: F32, by_theta: F32) -> None:
    """The derivative of log NB(0) in log theta."""
    vector_loop()
    for j in range(by_mu.size):
        by_theta[j] = value[j] - by_mu[j]


@inner_kernel(fastmath=EXACT)
def _softmax_gradient(s: F32, e: F32, by_mu: F32, total: F32, weight: float, factor: float) -> None:
    """Overwrite logits with weight * (softmax * sum(by_mu) - by_mu), and add them to the total."""
    vector_loop()
    for j in range(s.size):
        gradient = weight * (e[j] * factor - by_mu[j])
        s[j] = gradient
        total[j] += gradient


@inner_kernel(fastmath=EXACT)
def _softplus_gradient(s: F32, slope: F32, by_mu: F32, total: F32, weight: float) -> None:
    """Overwrite logits with -weight * slope * by_mu, and add them to the total."""
    vector_loop()
    for j in range(s.size):
        gradient = -weight * (slope[j] * by_mu[j])
        s[j] = gradient
        total[j] += gradient


@inner_kernel(fastmath=EXACT)
def _within_bounds(by_theta: F32, raw: F32, weight: float, out: F32) -> None:
    """Weight the gradient; where log theta is beyond its bounds, it is zero."""
    vector_loop()
    for j in range(by_theta.size):
        out[j] = _ZERO if abs(raw[j]) > _BOUND else weight * by_theta[j]


@inner_kernel(fastmath=EXACT)
def _scale_and_add(a: F32, total: F32, weight: float) -> None:
    """Weight a in place, and add it to the total."""
    vector_loop()
    for j in range(a.size):
        a[j] *= weight
        total[j] += a[j]


@inner_kernel(fastmath=EXACT)
def _add(total: F32, a: F32, weight: float) -> None:
    vector_loop()
    for j in range(total.size):
        total[j] += weight * a[j]


# ---- the non-zero genes of a row --------------------------------------------


@inner_kernel(fastmath=EXACT)
def _take_log_factorials(x: F32, value: F64) -> None:
    """Take log x! off, from a table where x is a small integer."""
    vector_loop()
    last = np.float32(_LOG_FACTORIAL.size - 1)
    others = np.int32(0)
    for i in range(x.size):
        listed = np.int32(x[i] if x[i] < last else last)
        value[i] -= _LOG_FACTORIAL[listed]
        others |= np.int32(x[i] != np.float32(listed))
    if others != 0:
        for i in range(x.size):
            listed = np.int32(x[i] if x[i] < last else last)
            if x[i] != np.float32(listed):
                value[i] += _LOG_FACTORIAL[listed] - log_gamma(np.float64(x[i]) + 1.0)


@inner_kernel(fastmath=EXACT)
def _nonzero_log_mu(genes: U32, s: F32, e: F32, softplus: bool, shift: float, log_mu: F64) -> None:
    """Log mu; ``shift`` is its distance from the logit, or from the log of a softplus."""
    for i in range(genes.size):
        j = genes[i]
        logit = np.float64(s[j])
        # far below zero a softplus is exp(logit), and would leave float32
        log_e = log64(np.float64(e[j])) if softplus and logit > _SOFTPLUS_IS_EXP else logit
        log_mu[i] = log_e + shift


@inner_kernel(fastmath=EXACT)
def _nonzero_poisson(genes: U32, x: F32, by_mu: F32, value: F64) -> None:
    """From log mu in ``value``: log Poisson without its mean and x!; x is added to by_mu."""
    for i in range(genes.size):
        by_mu[genes[i]] += x[i]
        value[i] *= np.float64(x[i])


@inner_kernel(fastmath=EXACT)
def _gammas(inv_theta: F32, log_thetas: F64, log_gammas: F64, digammas: F64) -> None:
    """Log theta, log gamma(theta) and digamma(theta).

    Theta is that of the very 1/theta in ``_zero_nb``: where it is tiny,
    x log(theta) and x spread are large and cancel.
    """
    vector_loop()
    for i in range(inv_theta.size):
        theta = 1.0 / np.float64(inv_theta[i])
        log_thetas[i] = log64(theta)
        log_gammas[i], digammas[i] = log_gamma_digamma(theta)


@inner_kernel(fastmath=EXACT)
def _gather(
    genes: U32,
    e: F32,
    rate: float,
    inv_theta: F32,
    ratio: F64,
    theta: F64,
    x_inv_theta: F32,
) -> None:
    """Mu/theta and theta of the non-zero genes, side by side."""
    vector_loop()
    for i in range(genes.size):
        j = genes[i]
        x_inv_theta[i] = inv_theta[j]
        inverse = np.float64(inv_theta[j])
        ratio[i] = np.float64(e[j]) * rate * inverse
        theta[i] = 1.0 / inverse


@inner_kernel(fastmath=EXACT)
def _pick(genes: U32, row: F64, picked: F64) -> None:
    vector_loop()
    for i in range(genes.size):
        picked[i] = row[genes[i]]


@inner_kernel(fastmath=EXACT)
def _nonzero_value(x: F32, ratio: F64, theta: F64, value: F64, by_theta: F64) -> None:
    """From log(mu/theta) in ``value``: log NB(x) + log gamma(theta) + log x!, and by_theta.

    By_theta still lacks by_mu and digamma(theta).
    """
    vector_loop()
    for i in range(x.size):
        u = ratio[i]
        t = theta[i]
        count = np.float64(x[i])
        large = u > 1.0  # then log(1 + u) = log u + log(1 + 1/u), and log u cancels
        log_u = value[i]
        rest = log64(1.0 + (1.0 / u if large else u))
        spread = rest + (log_u if large else 0.0)
        log_gamma_z, digamma_z = log_gamma_digamma(count + t)
        value[i] = count * ((0.0 if large else log_u) - rest) - t * spread + log_gamma_z
        by_theta[i] = t * (digamma_z - spread)


@inner_kernel(fastmath=EXACT)
def _nonzero_gradient(x: F32, ratio: F64, theta: F64, by_mu: F64, by_theta: F64) -> None:
    vector_loop()
    for i in range(x.size):
        m = (np.float64(x[i]) - theta[i] * ratio[i]) / (1.0 + ratio[i])
        by_mu[i] = m
        by_theta[i] -= m


@inner_kernel(fastmath=EXACT)
def _nonzero_constants(
    theta: F64, log_gammas: F64, digammas: F64, value: F64, by_theta: F64
) -> None:
    """Take log gamma(theta) and theta * digamma(theta) off."""
    vector_loop()
    for i in range(value.size):
        value[i] -= log_gammas[i]
        by_theta[i] -= theta[i] * digammas[i]


@inner_kernel(fastmath=EXACT)
def _not_dropped(logits: F32, log_kept: F32, by_logits: F32) -> None:
    """Log(1 - dropout) of non-zero counts, and its derivative."""
    vector_loop()
    for i in range(logits.size):
        pi = logits[i]
        spread, share = log1p_share32(exp32(-abs(pi)))
        log_kept[i] = -(spread + (pi if pi > _ZERO else _ZERO))
        by_logits[i] = -(_ONE - share if pi > _ZERO else share)


# ---- cells ------------------------------------------------------------------


def _cells(  # compiled by _kernel_for
    first: int,
    last: int,
    scale_ng: F32,
    logits_ng: F32,
    raw_log_theta: F32,
    theta_cg: F32,
    inv_theta_cg: F32,
    gammas: F64,
    theta_row: I64,
    by_theta_ng: F32,
    indptr: I64,
    genes: U32,
    counts: F32,
    log_library: F32,
    weight: F32,
    nll: F32,
    by_library: F32,
    sums: F32,
    gradients: bool,
) -> None:
    """Cells first to last: loss, gradients in place of logits, sums over the cells.

    Without ``gradients``, the loss alone.

    ``sums`` takes the gradients of the scale bias, of a shared log theta and of
    the dropout bias, one row each.
    """
    never_inline()
    n_genes = scale_ng.shape[1]
    shared = by_theta_ng.size == 0
    e = np.empty(n_genes, np.float32)
    slope = np.empty(n_genes if SOFTPLUS else 0, np.float32)
    value = np.empty(n_genes, np.float32)
    by_mu = np.empty(n_genes, np.float32)
    by_theta = np.zeros(n_genes, np.float32)  # stays so without gradients
    most = 0
    for n in range(first, last):
        most = max(most, indptr[n + 1] - indptr[n])
    all_ratio = np.empty(most, np.float64)
    all_theta = np.empty(most, np.float64)
    all_value = np.empty(most, np.float64)
    all_by_mu = np.empty(most, np.float64)
    all_by_theta = np.empty(most, np.float64)
    all_inv_theta = np.empty(most, np.float32)
    all_log_thetas = np.empty(most, np.float64)
    all_log_gammas = np.empty(most, np.float64)
    all_digammas = np.empty(most, np.float64)
    all_logits = np.empty(most, np.float32)
    all_log_kept = np.empty(most, np.float32)
    all_by_logits = np.empty(most, np.float32)
    sums[:] = _ZERO

    for n in range(first, last):
        s = scale_ng[n]
        logits = logits_ng[n if FAMILY == _ZINB else 0]
        library = np.float64(log_library[n])
        if SOFTPLUS:
            _softplus(s, e, slope)
            total = _total(e)
            exact_rate = math.exp(library)
            shift = library
        else:
            top, total = _exponentials(s, e)
            exact_rate = math.exp(library) / total
            shift = library - np.float64(top) - math.log(total)  # log mu = s + shift
        rate = np.float32(exact_rate)
        begin, end = indptr[n], indptr[n + 1]
        nonzero = end - begin
        x = counts[begin:end]
        where = genes[begin:end]
        x_value = all_value[:nonzero]
        _nonzero_log_mu(where, s, e, SOFTPLUS, shift, x_value)

        if FAMILY == _POISSON:
            if SOFTPLUS:
                for j in range(n_genes):
                    by_mu[j] = -rate * e[j]
            else:  # the means add up to the library, whatever the logits: by_mu is only x
                by_mu[:] = _ZERO
            _nonzero_poisson(where, x, by_mu, x_value)
            _take_log_factorials(x, x_value)
            mass = exact_rate * total
            log_p = _total(x_value) - mass
            by_mu_sum = _total(x)
            by_log_library = by_mu_sum - mass
        else:
            row = 0 if shared else theta_row[n]
            theta, inv_theta = theta_cg[row], inv_theta_cg[row]
            x_ratio, x_theta = all_ratio[:nonzero], all_theta[:nonzero]
            x_by_mu, x_by_theta = all_by_mu[:nonzero], all_by_theta[:nonzero]
            x_log_gammas, x_digammas = all_log_gammas[:nonzero], all_digammas[:nonzero]
            x_inv_theta, x_log_thetas = all_inv_theta[:nonzero], all_log_thetas[:nonzero]
            _gather(where, e, exact_rate, inv_theta, x_ratio, x_theta, x_inv_theta)
            if gammas.size > 0:
                _pick(where, gammas[row, 0], x_log_thetas)
                _pick(where, gammas[row, 1], x_log_gammas)
                _pick(where, gammas[row, 2], x_digammas)
            else:
                _gammas(x_inv_theta, x_log_thetas, x_log_gammas, x_digammas)
            for i in range(nonzero):
                x_value[i] -= x_log_thetas[i]
            _nonzero_value(x, x_ratio, x_theta, x_value, x_by_theta)
            if gradients:
                _nonzero_gradient(x, x_ratio, x_theta, x_by_mu, x_by_theta)
            _nonzero_constants(x_theta, x_log_gammas, x_digammas, x_value, x_by_theta)
            _take_log_factorials(x, x_value)
            _zero_nb(e, rate, inv_theta, theta, value, by_mu)
            if gradients:
                _zero_by_theta(value, by_mu, by_theta)
            if FAMILY == _ZINB:
                x_logits, x_log_kept = all_logits[:nonzero], all_log_kept[:nonzero]
                x_by_logits = all_by_logits[:nonzero]
                for i in range(nonzero):
                    x_logits[i] = logits[where[i]]
                _not_dropped(x_logits, x_log_kept, x_by_logits)
                for i in range(nonzero):
                    x_value[i] += np.float64(x_log_kept[i])
            for i in range(nonzero):
                if x[i] != _ZERO:
                    value[where[i]] = _ZERO
                else:  # a stored zero is a zero like any other
                    x_value[i] = 0.0
            if FAMILY != _ZINB:
                zeros = _total(value)
            elif _any_vanishing(value, logits):
                _zero_zinb_by_logs(value, logits, by_mu, by_theta)
                zeros = _total(value)
            else:
                _exponential(value)
                _odds_kept(logits)
                _zero_zinb(value, logits, by_mu, by_theta)
                for i in range(nonzero):
                    if x[i] != _ZERO:
                        value[where[i]] = _ONE
                zeros = _total_of_logs(value)
            log_p = _total(x_value) + zeros
            for i in range(nonzero):
                if x[i] != _ZERO:
                    j = where[i]
                    if FAMILY == _ZINB:
                        logits[j] = x_by_logits[i]
                    if gradients:
                        by_mu[j] = np.float32(x_by_mu[i])
                        by_theta[j] = np.float32(x_by_theta[i])
            by_mu_sum = _total(by_mu)
            by_log_library = by_mu_sum

        w = weight[n]
        nll[n] = np.float32(-log_p)
        if not gradients:
            continue
        by_library[n] = np.float32(-w * by_log_library)
        if SOFTPLUS:
            _softplus_gradient(s, slope, by_mu, sums[0], w)
        else:
            _softmax_gradient(s, e, by_mu, sums[0], w, np.float32(by_mu_sum / total))
        if FAMILY != _POISSON:
            if shared:
                _add(sums[1], by_theta, -w)
            else:
                _within_bounds(by_theta, raw_log_theta[theta_row[n]], -w, by_theta_ng[n])
        if FAMILY == _ZINB:
            _scale_and_add(logits, sums[2], -w)


@inner_kernel(fastmath=EXACT)
def _add_parts(parts: F32, start: int, stop: int, total: F32) -> None:
    """Sum over the partitions, for some genes."""
    total[start:stop] = _ZERO
    for part in range(parts.shape[0]):
        _add(total[start:stop], parts[part, start:stop], _ONE)


@inner_kernel(fastmath=EXACT)
def _tables(
    row: int,
    span: slice,
    log_theta_cg: F32,
    theta_cg: F32,
    inv_theta_cg: F32,
    gammas: F64,
) -> None:
    """For a stretch of genes: theta, 1/theta, and where it is wanted what ``_gammas`` gives."""
    never_inline()
    inv_theta = inv_theta_cg[row, span]
    _dispersion(log_theta_cg[row, span], theta_cg[row, span], inv_theta)
    if gammas.size > 0:
        _gammas(inv_theta, gammas[row, 0, span], gammas[row, 1, span], gammas[row, 2, span])


@inner_kernel(fastmath=EXACT)
def _sums(
    start: int,
    stop: int,
    parts: F32,
    log_theta_cg: F32,
    theta_row: I64,
    by_theta_ng: F32,
    of_genes: F32,
    by_theta_cg: F32,
) -> None:
    """For a stretch of genes: add the partitions up, and the cells of each row of theta."""
    never_inline()
    _add_parts(parts[:, 0], start, stop, of_genes[0])
    _add_parts(parts[:, 2], start, stop, of_genes[1])
    if by_theta_cg.size > 0 and by_theta_ng.size > 0:
        by_theta_cg[:, start:stop] = _ZERO
        for n in range(by_theta_ng.shape[0]):
            _add(by_theta_cg[theta_row[n], start:stop], by_theta_ng[n, start:stop], _ONE)
    elif by_theta_cg.size > 0:
        total = by_theta_cg[0]
        _add_parts(parts[:, 1], start, stop, total)
        _within_bounds(total[start:stop], log_theta_cg[0, start:stop], _ONE, total[start:stop])


def _logit_gradients(  # compiled by _kernel_for
    scale_ng: F32,
    logits_ng: F32,
    log_theta_cg: F32,
    theta_row: I64,
    by_theta_ng: F32,
    indptr: I64,
    genes: U32,
    counts: F32,
    log_library: F32,
    weight: F32,
    of_cells: F32,
    of_genes: F32,
    by_theta_cg: F32,
) -> None:
    n_cells, n_genes = scale_ng.shape
    n_rows = log_theta_cg.shape[0]
    n_blocks = (n_genes + _GENES - 1) // _GENES
    theta = np.empty((n_rows, n_genes), np.float32)
    inv_theta = np.empty((n_rows, n_genes), np.float32)
    # once a gene, where that is less often than once a count
    tabled = n_rows * n_genes < indptr[n_cells] - indptr[0]
    gammas = np.empty((n_rows if tabled else 0, 3, n_genes), np.float64)
    # as many partitions whatever the threads, so that every sum has one order
    n_parts = (n_cells + _ROWS - 1) // _ROWS
    gradients = of_genes.size > 0
    parts = np.empty((n_parts, 3, n_genes if gradients else 0), np.float32)

    tables, cells, sums = 0, 1, 2  # one parallel loop for all: each takes a second to compile
    for phase in range(3 if gradients else sums):
        number = n_blocks * (n_rows if phase == tables else 1) if phase != cells else n_parts
        for part in prange(number):
            start = (part % n_blocks) * _GENES
            stop = min(n_genes, start + _GENES)
            if phase == tables:
                _tables(
                    part // n_blocks, slice(start, stop), log_theta_cg, theta, inv_theta, gammas
                )
            elif phase == cells:
                _cells(
                    part * n_cells // n_parts, (part + 1) * n_cells // n_parts,
                    scale_ng, logits_ng, log_theta_cg, theta, inv_theta, gammas, theta_row,
                    by_theta_ng, indptr, genes, counts, log_library, weight,
                    of_cells[0], of_cells[1], parts[part], gradients,
                )  # fmt: skip
            elif phase == sums:
                _sums(
                    start, stop, parts, log_theta_cg, theta_row, by_theta_ng, of_genes, by_theta_cg
                )


@cache
def _kernel_for(family: int, softplus: bool) -> Any:
    """The kernel of one likelihood: others' loops are not compiled with it."""
    name = f"{_NAMES[family]}_{'softplus' if softplus else 'softmax'}"
    constants = {"FAMILY": family, "SOFTPLUS": softplus}
    cells = inner_kernel(fastmath=EXACT)(specialised(_cells, name, **constants))
    kernel = specialised(_logit_gradients, name, _cells=cells)
    return parallel_kernel(fastmath=EXACT)(kernel)


def logit_gradients(family: int, softplus: bool, *arrays: NDArray[Any]) -> None:
    """Loss of each cell, and the gradients of its weighted sum.

    Overwrites ``scale_ng`` and ``logits_ng`` (one empty row where there is no
    zero inflation) with the gradients in them.  ``of_cells``, of shape (2, n), are
    the loss of each cell and the gradient in its log library; ``of_genes``, of
    shape (2, g), the gradients of the two biases.  Where ``of_genes`` is empty, only the
    loss of each cell is computed, and the logits hold nothing that means anything.

    Cell n has row ``theta_row[n]`` of ``log_theta_cg``, and leaves its gradient
    in ``by_theta_ng[n]``; where that is empty, all cells share the first row.
    ``by_theta_cg`` is the gradient of the table; empty where nobody asks.
    """
    _kernel_for(family, softplus)(*arrays)
