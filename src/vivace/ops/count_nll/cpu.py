"""Numba kernel: from logits to loss and gradients in one pass over a row.

A row of logits is read, the likelihood of every gene is computed as if its
count were zero (dense, vectorised), the few non-zero genes are then set right
(sparse), and the row is overwritten with its gradient.  The matrix products
before and after are torch's.  README.md has the formulas and the names.

Short loops over few arrays on purpose: LLVM gives up on vectorising a loop
that would need many checks for overlapping arrays.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from vivace.ops.count_nll.reference import LOG_THETA_BOUND
from vivace.ops.fastmath import exp32, largest32, log1p32, log32
from vivace.ops.matmul import product

Ints = NDArray[np.int64]
Genes = NDArray[np.int32]
Floats = NDArray[np.float32]
Table = NDArray[np.float32]

_EXACT = {"contract"}
_SUMS = {"contract", "reassoc", "nsz"}  # only where a sum may be split over lanes

_ONE = np.float32(1)
_ZERO = np.float32(0)
_TABLED = 32  # counts up to here have tabulated gamma ratios
_LOG_FACTORIAL = np.array([math.lgamma(i + 1) for i in range(256)], np.float64)
_ROWS = 16  # cells handed to a thread at a time
_GENES = 256  # genes of the table handed to a thread at a time
_BLOCK_BYTES = 32 * 2**20  # logits of one block of cells
_POISSON, _ZINB = 0, 2


# ---- gamma ratios -----------------------------------------------------------


@njit(error_model="numpy", nogil=True, cache=True)
def _log_gamma(z: float) -> float:
    """Stirling's series; relative error below 1e-11 for z >= 16."""
    r = 1.0 / z
    return (
        (z - 0.5) * math.log(z)
        - z
        + 0.9189385332046727
        + r * (1 / 12 - r * r * (1 / 360 - r * r / 1260))
    )


@njit(error_model="numpy", nogil=True, cache=True)
def _digamma(z: float) -> float:
    """Digamma for z > 0: recurrence up to 16, then its asymptotic series."""
    below = 0.0
    while z < 16.0:
        below += 1.0 / z
        z += 1.0
    r = 1.0 / z
    r2 = r * r
    return math.log(z) - 0.5 * r - r2 * (1 / 12 - r2 * (1 / 120 - r2 / 252)) - below


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _tabulate(
    log_theta: Floats, theta: Floats, inv_theta: Floats, rising: Table, slope: Table
) -> None:
    """Theta, and per count x: sum over i < x of log(1 + i/theta), and of 1/(1 + i/theta)."""
    for g in range(log_theta.size):
        theta[g] = exp32(log_theta[g])
        inv_theta[g] = exp32(-log_theta[g])
    total = np.zeros(log_theta.size, np.float64)  # where theta is tiny, large terms will cancel
    rising[0] = _ZERO
    slope[0] = _ZERO
    for i in range(_TABLED):
        step = np.float32(i)
        after = rising[i + 1]
        for g in range(inv_theta.size):
            total[g] += np.float64(log1p32(step * inv_theta[g]))
            after[g] = np.float32(total[g])
        before, after = slope[i], slope[i + 1]
        for g in range(inv_theta.size):
            after[g] = before[g] + _ONE / (_ONE + step * inv_theta[g])


@njit(error_model="numpy", nogil=True, cache=True)
def _large_count(
    x: float, log_mu: float, log_theta: float, rising_top: float, slope_top: float
) -> tuple[float, float, float]:
    """Log NB and its derivatives in log mu and log theta, in float64.

    For counts beyond the table, where float32 differences of large terms would
    lose digits, and for counts that are not integers.
    """
    theta = math.exp(log_theta)
    ratio = math.exp(log_mu - log_theta)
    spread = math.log1p(ratio)
    if x > _TABLED and x == math.floor(x):
        base = _TABLED + theta
        rising = rising_top + _log_gamma(x + theta) - _log_gamma(base) - (x - _TABLED) * log_theta
        slope = slope_top + theta * (_digamma(x + theta) - _digamma(base))
    else:
        rising = math.lgamma(x + theta) - math.lgamma(theta) - x * log_theta
        slope = theta * (_digamma(x + theta) - _digamma(theta))
    value = rising - math.lgamma(x + 1.0) - theta * spread + x * (log_mu - spread)
    by_log_mu = (x - theta * ratio) / (1.0 + ratio)
    by_log_theta = slope - theta * spread + (theta * ratio - x) / (1.0 + ratio)
    return value, by_log_mu, by_log_theta


# ---- passes over one row of g genes -----------------------------------------


@njit(fastmath=_SUMS, error_model="numpy", nogil=True, cache=True)
def _total(a: Floats) -> float:
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
def _not_dropped(logits: Floats, value: Floats, by_logits: Floats) -> None:
    """Add log(1 - dropout) to the value of non-zero counts."""
    for i in range(logits.size):
        pi = logits[i]
        b = exp32(-abs(pi))
        inv_b = _ONE / (_ONE + b)
        value[i] -= max(pi, _ZERO) - log32(inv_b)
        by_logits[i] = -(inv_b if pi > _ZERO else b * inv_b)


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _softmax_gradient(s: Floats, e: Floats, by_mu: Floats, weight: float, factor: float) -> None:
    """Overwrite logits with weight * (softmax * sum(by_mu) - by_mu)."""
    for j in range(s.size):
        s[j] = weight * (e[j] * factor - by_mu[j])


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _add(total: Floats, a: Floats, weight: float) -> None:
    for j in range(total.size):
        total[j] += weight * a[j]


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _scale(a: Floats, weight: float) -> None:
    for j in range(a.size):
        a[j] *= weight


# ---- cells ------------------------------------------------------------------


@njit(fastmath=_EXACT, error_model="numpy", nogil=True, cache=True)
def _cells(
    first: int,
    last: int,
    family: int,
    scale_ng: Floats,
    logits_ng: Floats,
    log_theta: Floats,
    theta: Floats,
    inv_theta: Floats,
    rising: Table,
    slope: Table,
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
    x_value = np.empty(most, np.float32)
    x_by_mu = np.empty(most, np.float32)
    x_by_theta = np.empty(most, np.float32)
    x_logits = np.empty(most, np.float32)
    x_by_logits = np.empty(most, np.float32)
    sums[:] = _ZERO

    for n in range(first, last):
        s = scale_ng[n]
        logits = logits_ng[n if family == _ZINB else 0]
        top, total = _exponentials(s, e)
        library = np.float64(log_library[n])
        exact_rate = math.exp(library) / total
        rate = np.float32(exact_rate)
        shift = library - np.float64(top) - math.log(total)  # log mu = s + shift
        begin = indptr[n]
        nonzero = indptr[n + 1] - begin

        if family == _POISSON:
            # the means add up to the library, whatever the logits: by_mu is only x
            by_mu[:] = _ZERO
            log_p = -exact_rate * total
            by_log_library = log_p
            by_mu_sum = 0.0
            for i in range(nonzero):
                j = genes[begin + i]
                x = np.float64(counts[begin + i])
                log_x = (
                    _LOG_FACTORIAL[int(x)]
                    if x < 256 and x == math.floor(x)
                    else math.lgamma(x + 1.0)
                )
                log_p += x * (np.float64(s[j]) + shift) - log_x
                by_mu_sum += x
                by_mu[j] = counts[begin + i]
            by_log_library += by_mu_sum
        else:
            _spread(e, inv_theta, rate, value, by_mu)
            for i in range(nonzero):
                j = genes[begin + i]
                x = np.float64(counts[begin + i])
                k = int(min(x, np.float64(_TABLED)))
                if x == k:
                    here = by_mu[j]  # share = mu / (theta + mu)
                    spread = np.float64(value[j])
                    left = np.float32(x) / (_ONE + (e[j] * rate) * inv_theta[j])
                    x_value[i] = np.float32(
                        (rising[k, j] - _LOG_FACTORIAL[k])
                        - theta[j] * spread
                        + x * (np.float64(s[j]) + shift - spread)
                    )
                    x_by_mu[i] = left - theta[j] * here
                    x_by_theta[i] = slope[k, j] - left + theta[j] * (here - value[j])
                else:
                    v, m, t = _large_count(
                        x,
                        np.float64(s[j]) + shift,
                        np.float64(log_theta[j]),
                        np.float64(rising[_TABLED, j]),
                        np.float64(slope[_TABLED, j]),
                    )
                    x_value[i] = np.float32(v)
                    x_by_mu[i] = np.float32(m)
                    x_by_theta[i] = np.float32(t)
            _zero_nb(theta, value, by_mu, by_theta)
            if family == _ZINB:
                for i in range(nonzero):
                    x_logits[i] = logits[genes[begin + i]]
                _zero_zinb(value, logits, kept, ratio)
                _add_log(value, ratio)
                _multiply(by_mu, by_theta, kept)
                _not_dropped(x_logits[:nonzero], x_value[:nonzero], x_by_logits[:nonzero])
                for i in range(nonzero):
                    if counts[begin + i] != _ZERO:
                        logits[genes[begin + i]] = x_by_logits[i]
            for i in range(nonzero):
                if counts[begin + i] != _ZERO:  # a stored zero is a zero like any other
                    j = genes[begin + i]
                    value[j] = x_value[i]
                    by_mu[j] = x_by_mu[i]
                    by_theta[j] = x_by_theta[i]
            log_p = _total(value)
            by_mu_sum = _total(by_mu)
            by_log_library = by_mu_sum

        w = weight[n]
        nll[n] = np.float32(-log_p)
        by_library[n] = np.float32(-w * by_log_library)
        _softmax_gradient(s, e, by_mu, w, np.float32(by_mu_sum / total))
        _add(sums[0], s, _ONE)
        if family != _POISSON:
            _add(sums[1], by_theta, -w)
        if family == _ZINB:
            _scale(logits, -w)
            _add(sums[2], logits, _ONE)


@njit(parallel=True, fastmath=_EXACT, error_model="numpy", cache=True)
def _all_cells(
    family: int,
    scale_ng: Floats,
    logits_ng: Floats,
    log_theta: Floats,
    indptr: Ints,
    genes: Genes,
    counts: Floats,
    log_library: Floats,
    weight: Floats,
    nll: Floats,
    by_library: Floats,
    sums: Floats,
) -> None:
    n_cells = scale_ng.shape[0]
    theta = np.empty(log_theta.size, np.float32)
    inv_theta = np.empty(log_theta.size, np.float32)
    rising = np.empty((_TABLED + 1, log_theta.size), np.float32)
    slope = np.empty((_TABLED + 1, log_theta.size), np.float32)
    for block in prange((log_theta.size + _GENES - 1) // _GENES):
        span = slice(block * _GENES, (block + 1) * _GENES)
        _tabulate(log_theta[span], theta[span], inv_theta[span], rising[:, span], slope[:, span])
    parts = sums.shape[0]
    for part in prange(parts):
        _cells(
            part * n_cells // parts,
            (part + 1) * n_cells // parts,
            family,
            scale_ng,
            logits_ng,
            log_theta,
            theta,
            inv_theta,
            rising,
            slope,
            indptr,
            genes,
            counts,
            log_library,
            weight,
            nll,
            by_library,
            sums[part],
        )


# ---- torch ------------------------------------------------------------------


def _logit_gradients(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    hidden_nh: Tensor,
    heads: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One block of cells: logit gradients of both heads, nll, library gradient, sums."""
    scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g = heads
    n, g = len(hidden_nh), scale_hg.shape[1]
    scale_ng = product(hidden_nh, scale_hg, scale_g)
    logits_ng = (
        torch.empty((1, 0)) if dropout_hg is None else product(hidden_nh, dropout_hg, dropout_g)
    )
    nll_n, by_library_n = torch.empty(n), torch.empty(n)
    parts = torch.empty(((n + _ROWS - 1) // _ROWS, 3, g))
    _all_cells(
        family,
        scale_ng.numpy(),
        logits_ng.numpy(),
        (torch.empty(0) if log_theta_g is None else log_theta_g).numpy(),
        indptr.numpy(),
        genes.numpy(),
        counts.numpy(),
        log_library_n.numpy(),
        weight_n.numpy(),
        nll_n.numpy(),
        by_library_n.numpy(),
        parts.numpy(),
    )
    return scale_ng, logits_ng, nll_n, by_library_n, parts.sum(0)


def _plain(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous, without autograd, as NumPy and oneDNN need them."""
    return [None if t is None else t.detach().contiguous() for t in tensors]


def _blocks(n_cells: int, n_genes: int, zero_inflated: bool) -> list[slice]:
    """Even blocks of cells whose logits stay within ``_BLOCK_BYTES``."""
    per_cell = 4 * n_genes * (2 if zero_inflated else 1)
    number = max(1, math.ceil(n_cells * per_cell / _BLOCK_BYTES))
    edges = [n_cells * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


@torch.library.custom_op("vivace::count_nll", mutates_args=(), device_types="cpu")
def count_nll_cpu(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    hidden_nh: Tensor,
    scale_hg: Tensor,
    scale_g: Tensor,
    log_theta_g: Tensor | None,
    dropout_hg: Tensor | None,
    dropout_g: Tensor | None,
    log_library_n: Tensor,
    family: int,
) -> Tensor:
    """Negative log-likelihood of each cell, shape (n,)."""
    if log_theta_g is not None:
        log_theta_g = log_theta_g.clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND)
    indptr, genes, counts, hidden_nh, log_library_n = _plain(
        indptr, genes, counts, hidden_nh, log_library_n
    )
    heads = tuple(_plain(scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g))
    nll_n = torch.empty(len(hidden_nh))
    for rows in _blocks(len(hidden_nh), scale_hg.shape[1], dropout_hg is not None):
        here = hidden_nh[rows]
        _, _, nll_n[rows], _, _ = _logit_gradients(
            indptr[rows.start : rows.stop + 1],
            genes,
            counts,
            here,
            heads,
            log_library_n[rows],
            torch.ones(len(here)),
            family,
        )
    return nll_n


@torch.library.custom_op("vivace::weighted_nll", mutates_args=(), device_types="cpu")
def _weighted_nll(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    hidden_nh: Tensor,
    scale_hg: Tensor,
    scale_g: Tensor,
    log_theta_g: Tensor | None,
    dropout_hg: Tensor | None,
    dropout_g: Tensor | None,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted sum of the losses and its gradients, in the order of the arguments."""
    out_of_bounds = None
    if log_theta_g is not None:
        out_of_bounds = log_theta_g.abs() > LOG_THETA_BOUND
        log_theta_g = log_theta_g.clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND)
    indptr, genes, counts, hidden_nh, log_library_n, weight_n = _plain(
        indptr, genes, counts, hidden_nh, log_library_n, weight_n
    )
    heads = tuple(_plain(scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g))
    total = torch.zeros(())
    by_hidden, by_library = torch.empty_like(hidden_nh), torch.empty_like(log_library_n)
    by_scale, by_dropout = torch.empty(0), torch.empty(0)
    sums = torch.zeros((3, scale_hg.shape[1]))
    for block, rows in enumerate(
        _blocks(len(hidden_nh), scale_hg.shape[1], dropout_hg is not None)
    ):
        here = hidden_nh[rows]
        scale_ng, logits_ng, nll_n, by_library[rows], block_sums = _logit_gradients(
            indptr[rows.start : rows.stop + 1],
            genes,
            counts,
            here,
            heads,
            log_library_n[rows],
            weight_n[rows],
            family,
        )
        total += nll_n @ weight_n[rows]
        sums += block_sums
        from_scale = product(here.T, scale_ng)
        by_scale = from_scale if block == 0 else by_scale.add_(from_scale)
        by_hidden[rows] = product(scale_ng, heads[0].T)  # type: ignore[union-attr]
        if dropout_hg is not None:
            from_dropout = product(here.T, logits_ng)
            by_dropout = from_dropout if block == 0 else by_dropout.add_(from_dropout)
            by_hidden[rows] += product(logits_ng, heads[3].T)  # type: ignore[union-attr]
    if out_of_bounds is not None:
        sums[1].masked_fill_(out_of_bounds, 0.0)
    by_scale_g, by_theta_g, by_dropout_g = (row.clone() for row in sums)
    return total, by_hidden, by_scale, by_scale_g, by_theta_g, by_dropout, by_dropout_g, by_library


class _WeightedNLL(torch.autograd.Function):
    """The total, whose gradients are there before they are asked for.

    They wait in the context, not among the saved tensors, so that autograd may
    take them over without a copy; a second backward has nothing left to give.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        total, *ctx.grads = _weighted_nll(*args)
        ctx.has_theta, ctx.has_dropout = args[6] is not None, args[7] is not None
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("The gradient of count_nll can be taken once; compute it again.")
        grads, ctx.grads = ctx.grads, None
        upstream = grad_outputs[0].item()
        if upstream != 1.0:
            grads = [g.mul_(upstream) for g in grads]
        *arranged, family = _arrange(tuple(grads), ctx.has_theta, ctx.has_dropout)
        return *arranged, None, family  # no gradient for weight_n


def weighted_nll_cpu(*args: Tensor | int | None) -> Tensor:
    """Weighted sum of the losses, from the arguments of ``vivace::weighted_nll``."""
    total: Tensor = _WeightedNLL.apply(*args)  # type: ignore[no-untyped-call]
    return total


@count_nll_cpu.register_fake
def _(indptr: Tensor, genes: Tensor, counts: Tensor, hidden_nh: Tensor, *_rest: object) -> Tensor:
    return hidden_nh.new_empty(len(hidden_nh))


@_weighted_nll.register_fake
def _(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    hidden_nh: Tensor,
    scale_hg: Tensor,
    scale_g: Tensor,
    log_theta_g: Tensor | None,
    dropout_hg: Tensor | None,
    dropout_g: Tensor | None,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
) -> tuple[Tensor, ...]:
    new = hidden_nh.new_empty
    by_dropout = new(0) if dropout_hg is None else new(dropout_hg.shape)
    by_gene = [new(scale_hg.shape[1]) for _ in range(3)]
    by_hidden, by_scale, by_library = (new(t.shape) for t in (hidden_nh, scale_hg, log_library_n))
    return (
        new(()), by_hidden, by_scale, by_gene[0], by_gene[1], by_dropout, by_gene[2], by_library
    )  # fmt: skip


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.family = inputs[-1]


def _recompute(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, log_library_n = ctx.saved_tensors
    grads = _weighted_nll(*inputs, log_library_n, grad_n, ctx.family)[1:]
    return _arrange(grads, inputs[6] is not None, inputs[7] is not None)


def _arrange(
    grads: tuple[Tensor, ...], has_theta: bool, has_dropout: bool
) -> tuple[Tensor | None, ...]:
    """The gradients at the places of their inputs, None elsewhere."""
    by_hidden, by_scale, by_scale_g, by_theta, by_dropout, by_dropout_g, by_library = grads
    return (
        None,
        None,
        None,
        by_hidden,
        by_scale,
        by_scale_g,
        by_theta if has_theta else None,
        by_dropout if has_dropout else None,
        by_dropout_g if has_dropout else None,
        by_library,
        None,
    )


count_nll_cpu.register_autograd(_recompute, setup_context=_save_inputs)
