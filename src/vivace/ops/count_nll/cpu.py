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

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from vivace.ops.count_nll.reference import LOG_THETA_BOUND
from vivace.ops.fastmath import exp32, largest32, log1p32, log32
from vivace.ops.gamma import log64, log_gamma, log_gamma_digamma

Ints = NDArray[np.int64]
Genes = NDArray[np.uint32]  # unsigned, so that no index is checked for a negative sign
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_EXACT = {"contract"}
_SUMS = {"contract", "reassoc", "nsz"}  # only where a sum may be split over lanes

_ONE = np.float32(1)
_ZERO = np.float32(0)
_BOUND = np.float32(LOG_THETA_BOUND)
_LOG_FACTORIAL = np.array([math.lgamma(i + 1) for i in range(256)], np.float64)
_ROWS = 16  # cells handed to a thread at a time
_GENES = 256  # genes of a per-gene loop handed to a thread at a time
_POISSON, _ZINB = 0, 2


# ---- per gene, once a step --------------------------------------------------


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _dispersion(log_theta: Floats, theta: Floats, inv_theta: Floats) -> None:
    """Theta and 1/theta, from log theta held within its bounds."""
    for g in range(log_theta.size):
        t = log_theta[g]
        t = -_BOUND if t < -_BOUND else t
        t = _BOUND if t > _BOUND else t
        theta[g] = exp32(t)
        inv_theta[g] = exp32(-t)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _gammas(
    inv_theta: Floats, exact: Doubles, log_theta: Doubles, log_gammas: Doubles, digammas: Doubles
) -> None:
    """Theta, its log, log gamma and theta * digamma, all of the very 1/theta in ``_spread``.

    Where theta is tiny, x log(theta) and x spread are large and cancel.
    """
    for g in range(inv_theta.size):
        theta = 1.0 / np.float64(inv_theta[g])
        exact[g] = theta
        log_theta[g] = log64(theta)
        value, slope = log_gamma_digamma(theta)
        log_gammas[g] = value
        digammas[g] = theta * slope


# ---- passes over one row of g genes -----------------------------------------


@njit(fastmath=_SUMS, error_model="numpy", nogil=True, cache=True)
def _total(a: Floats | Doubles) -> float:
    total = 0.0
    for j in range(a.size):
        total += np.float64(a[j])
    return total


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _exponentials(s: Floats, e: Floats) -> tuple[float, float]:
    """Write e = exp(s - max s); the maximum and the sum of e."""
    top = largest32(s)
    for j in range(s.size):
        e[j] = exp32(s[j] - top)
    return top, _total(e)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _spread(e: Floats, inv_theta: Floats, rate: float, spread: Floats, share: Floats) -> None:
    """Spread = log(1 + mu/theta), share = mu/(theta + mu)."""
    for j in range(e.size):
        u = (e[j] * rate) * inv_theta[j]
        spread[j] = log1p32(u)
        share[j] = u / (_ONE + u)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _zero_nb(theta: Floats, value: Floats, by_mu: Floats, by_theta: Floats) -> None:
    """In place, from spread and share: log NB(0) and its two derivatives."""
    for j in range(theta.size):
        v = -theta[j] * value[j]
        m = theta[j] * by_mu[j]
        value[j] = v
        by_mu[j] = -m
        by_theta[j] = m + v


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _zero_zinb(value: Floats, logits: Floats, kept: Floats, ratio: Floats) -> None:
    """In place: log ZINB(0) less log ratio, its derivative in the logits, the weight of NB(0)."""
    for j in range(value.size):
        t = value[j]
        pi = logits[j]
        gap = pi - t
        a = exp32(-abs(gap))
        b = exp32(-abs(pi))
        inv_a = _ONE / (_ONE + a)
        inv_b = _ONE / (_ONE + b)
        larger = pi if gap > _ZERO else t
        value[j] = _ZERO if pi > _ZERO else larger  # max(pi, t) - max(pi, 0), since t <= 0
        ratio[j] = (_ONE + a) * inv_b
        kept[j] = a * inv_a if gap > _ZERO else inv_a
        ka = a * inv_a
        kb = b * inv_b
        # 1/(1+a) - 1/(1+b) for pi > 0, without the ones, which would cancel
        logits[j] = kb - ka if pi > _ZERO else (inv_a if gap > _ZERO else ka) - kb


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _add_log(value: Floats, ratio: Floats) -> None:
    """The rest of log ZINB(0): a loop of its own, so that registers suffice."""
    for j in range(value.size):
        value[j] += log32(ratio[j])


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _multiply(a: Floats, b: Floats, c: Floats) -> None:
    for j in range(c.size):
        a[j] *= c[j]
        b[j] *= c[j]


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _softmax_gradient(
    s: Floats, e: Floats, by_mu: Floats, total: Floats, weight: float, factor: float
) -> None:
    """Overwrite logits with weight * (softmax * sum(by_mu) - by_mu), and add them to the total."""
    for j in range(s.size):
        gradient = weight * (e[j] * factor - by_mu[j])
        s[j] = gradient
        total[j] += gradient


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _scale_and_add(a: Floats, total: Floats, weight: float) -> None:
    """Weight a in place, and add it to the total."""
    for j in range(a.size):
        a[j] *= weight
        total[j] += a[j]


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _add(total: Floats, a: Floats, weight: float) -> None:
    for j in range(total.size):
        total[j] += weight * a[j]


# ---- the non-zero genes of a row --------------------------------------------


@njit(error_model="numpy", nogil=True, cache=True)
def _log_factorial(x: float) -> float:
    return _LOG_FACTORIAL[np.uint32(x)] if x < 256 and x == math.floor(x) else log_gamma(x + 1.0)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _nonzero_poisson(
    genes: Genes, x: Floats, s: Floats, shift: float, by_mu: Floats, value: Doubles
) -> None:
    """Log Poisson without its mean, which adds up to the library; by_mu is x."""
    for i in range(genes.size):
        j = genes[i]
        count = np.float64(x[i])
        by_mu[j] = x[i]
        value[i] = count * (np.float64(s[j]) + shift) - _log_factorial(count)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _gather(
    genes: Genes,
    s: Floats,
    shift: float,
    e: Floats,
    rate: float,
    inv_theta: Floats,
    theta: Doubles,
    log_theta: Doubles,
    x_ratio: Doubles,
    x_theta: Doubles,
    x_log_ratio: Doubles,
) -> None:
    """Mu/theta, theta and log(mu/theta) of the non-zero genes, side by side."""
    for i in range(genes.size):
        j = genes[i]
        x_ratio[i] = np.float64(e[j]) * rate * np.float64(inv_theta[j])
        x_theta[i] = theta[j]
        x_log_ratio[i] = np.float64(s[j]) + shift - log_theta[j]


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _nonzero_value(
    x: Floats, ratio: Doubles, theta: Doubles, value: Doubles, by_theta: Doubles
) -> None:
    """From log(mu/theta) in ``value``: log NB(x) + log gamma(theta) + log x!, and by_theta.

    By_theta still lacks by_mu and theta * digamma(theta).
    """
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


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _nonzero_gradient(
    x: Floats, ratio: Doubles, theta: Doubles, by_mu: Doubles, by_theta: Doubles
) -> None:
    for i in range(x.size):
        m = (np.float64(x[i]) - theta[i] * ratio[i]) / (1.0 + ratio[i])
        by_mu[i] = m
        by_theta[i] -= m


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _not_dropped(logits: Floats, value: Doubles, by_logits: Floats) -> None:
    """Add log(1 - dropout) to the value of non-zero counts."""
    for i in range(logits.size):
        pi = logits[i]
        b = exp32(-abs(pi))
        inv_b = _ONE / (_ONE + b)
        value[i] -= np.float64(max(pi, _ZERO) - log32(inv_b))
        by_logits[i] = -(inv_b if pi > _ZERO else b * inv_b)


# ---- cells ------------------------------------------------------------------


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _cells(
    first: int,
    last: int,
    family: int,
    scale_ng: Floats,
    logits_ng: Floats,
    theta: Floats,
    inv_theta: Floats,
    exact_theta: Doubles,
    log_theta: Doubles,
    log_gammas: Doubles,
    digammas: Doubles,
    indptr: Ints,
    genes: Genes,
    counts: Floats,
    log_library: Floats,
    weight: Floats,
    nll: Floats,
    by_library: Floats,
    sums: Floats,
) -> None:
    """Cells first to last: loss, gradients in place of logits, sums over the cells.

    ``sums`` takes the gradients of the scale bias, of log theta and of the
    dropout bias, one row each.
    """
    n_genes = scale_ng.shape[1]
    e = np.empty(n_genes, np.float32)
    value = np.empty(n_genes, np.float32)
    by_mu = np.empty(n_genes, np.float32)
    by_theta = np.empty(n_genes, np.float32)
    kept = np.empty(n_genes, np.float32)
    ratio = np.empty(n_genes, np.float32)
    most = 0
    for n in range(first, last):
        most = max(most, indptr[n + 1] - indptr[n])
    all_ratio = np.empty(most, np.float64)
    all_theta = np.empty(most, np.float64)
    all_value = np.empty(most, np.float64)
    all_by_mu = np.empty(most, np.float64)
    all_by_theta = np.empty(most, np.float64)
    all_logits = np.empty(most, np.float32)
    all_by_logits = np.empty(most, np.float32)
    sums[:] = _ZERO

    for n in range(first, last):
        s = scale_ng[n]
        logits = logits_ng[n if family == _ZINB else 0]
        top, total = _exponentials(s, e)
        library = np.float64(log_library[n])
        exact_rate = math.exp(library) / total
        rate = np.float32(exact_rate)
        shift = library - np.float64(top) - math.log(total)  # log mu = s + shift
        begin, end = indptr[n], indptr[n + 1]
        nonzero = end - begin
        x = counts[begin:end]
        where = genes[begin:end]
        x_value = all_value[:nonzero]

        if family == _POISSON:
            by_mu[:] = _ZERO
            _nonzero_poisson(where, x, s, shift, by_mu, x_value)
            mass = exact_rate * total
            log_p = _total(x_value) - mass
            by_mu_sum = _total(x)
            by_log_library = by_mu_sum - mass
        else:
            x_by_mu = all_by_mu[:nonzero]
            x_by_theta = all_by_theta[:nonzero]
            _spread(e, inv_theta, rate, value, by_mu)
            x_ratio, x_theta = all_ratio[:nonzero], all_theta[:nonzero]
            _gather(
                where, s, shift, e, exact_rate, inv_theta, exact_theta, log_theta,
                x_ratio, x_theta, x_value,
            )  # fmt: skip
            _nonzero_value(x, x_ratio, x_theta, x_value, x_by_theta)
            _nonzero_gradient(x, x_ratio, x_theta, x_by_mu, x_by_theta)
            _zero_nb(theta, value, by_mu, by_theta)
            if family == _ZINB:
                x_logits = all_logits[:nonzero]
                x_by_logits = all_by_logits[:nonzero]
                for i in range(nonzero):
                    x_logits[i] = logits[where[i]]
                _zero_zinb(value, logits, kept, ratio)
                _add_log(value, ratio)
                _multiply(by_mu, by_theta, kept)
                _not_dropped(x_logits, x_value, x_by_logits)
                for i in range(nonzero):
                    if x[i] != _ZERO:
                        logits[where[i]] = x_by_logits[i]
            for i in range(nonzero):
                if x[i] != _ZERO:  # a stored zero is a zero like any other
                    j = where[i]
                    constant = log_gammas[j] + _log_factorial(np.float64(x[i]))
                    value[j] = np.float32(x_value[i] - constant)
                    by_mu[j] = np.float32(x_by_mu[i])
                    by_theta[j] = np.float32(x_by_theta[i] - digammas[j])
            log_p = _total(value)
            by_mu_sum = _total(by_mu)
            by_log_library = by_mu_sum

        w = weight[n]
        nll[n] = np.float32(-log_p)
        by_library[n] = np.float32(-w * by_log_library)
        _softmax_gradient(s, e, by_mu, sums[0], w, np.float32(by_mu_sum / total))
        if family != _POISSON:
            _add(sums[1], by_theta, -w)
        if family == _ZINB:
            _scale_and_add(logits, sums[2], -w)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _add_parts(parts: Floats, start: int, stop: int, total: Floats) -> None:
    """Sum over the partitions, for some genes."""
    total[start:stop] = _ZERO
    for part in range(parts.shape[0]):
        _add(total[start:stop], parts[part, start:stop], _ONE)


@njit(parallel=True, fastmath=_EXACT, error_model="numpy", cache=True)
def logit_gradients(
    family: int,
    scale_ng: Floats,
    logits_ng: Floats,
    raw_log_theta: Floats,
    indptr: Ints,
    genes: Genes,
    counts: Floats,
    log_library: Floats,
    weight: Floats,
    nll: Floats,
    by_library: Floats,
    by_scale: Floats,
    by_theta: Floats,
    by_dropout: Floats,
) -> None:
    """Loss of each cell, and the gradients of its weighted sum.

    Overwrites ``scale_ng`` and ``logits_ng`` (one empty row where there is no
    zero inflation) with the gradients in them.  The last three, all of shape
    (g,), are those of the scale bias, of log theta and of the dropout bias.
    """
    n_cells, n_genes = scale_ng.shape
    n_theta = raw_log_theta.size
    theta = np.empty(n_theta, np.float32)
    inv_theta = np.empty(n_theta, np.float32)
    exact_theta = np.empty(n_theta, np.float64)
    log_theta = np.empty(n_theta, np.float64)
    log_gammas = np.empty(n_theta, np.float64)
    digammas = np.empty(n_theta, np.float64)
    for block in prange((n_theta + _GENES - 1) // _GENES):
        span = slice(block * _GENES, (block + 1) * _GENES)
        _dispersion(raw_log_theta[span], theta[span], inv_theta[span])
        _gammas(
            inv_theta[span], exact_theta[span], log_theta[span], log_gammas[span], digammas[span]
        )

    # as many partitions whatever the threads, so that every sum has one order
    n_parts = (n_cells + _ROWS - 1) // _ROWS
    parts = np.empty((n_parts, 3, n_genes), np.float32)
    for part in prange(n_parts):
        _cells(
            part * n_cells // n_parts,
            (part + 1) * n_cells // n_parts,
            family,
            scale_ng,
            logits_ng,
            theta,
            inv_theta,
            exact_theta,
            log_theta,
            log_gammas,
            digammas,
            indptr,
            genes,
            counts,
            log_library,
            weight,
            nll,
            by_library,
            parts[part],
        )
    for block in prange((n_genes + _GENES - 1) // _GENES):
        start, stop = block * _GENES, min(n_genes, (block + 1) * _GENES)
        _add_parts(parts[:, 0], start, stop, by_scale)
        _add_parts(parts[:, 1], start, stop, by_theta)
        _add_parts(parts[:, 2], start, stop, by_dropout)
        if family != _POISSON:
            for g in range(start, stop):
                by_theta[g] = _ZERO if abs(raw_log_theta[g]) > _BOUND else by_theta[g]
