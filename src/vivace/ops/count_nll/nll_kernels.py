"""Numba kernel: from logits to losses and gradients, one cell after the other.

A row of logits is read, the likelihood of every gene is computed as if its count were zero
(dense, vectorised), the few non-zero genes are then set right (sparse), and the row is
overwritten with its gradient. ``passes.py`` has the loops over genes, ``cpu.py`` the matrix
products before and after, README.md the formulas and the names.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from vivace.config import GeneLikelihood
from vivace.ops.count_nll.interface import Activation
from vivace.ops.count_nll.likelihoods import LIKELIHOODS
from vivace.ops.count_nll.passes import (
    DENSE_ROWS,
    DIGAMMA,
    GRAD_LOGITS,
    GRAD_MU,
    GRAD_THETA,
    INV_THETA,
    LOG_GAMMA,
    LOG_KEPT,
    LOG_THETA,
    LOGITS,
    NONZERO_ROWS,
    NONZERO_ROWS_32,
    RATIO,
    SLOPE,
    THETA,
    VALUE,
    E,
    add,
    any_vanishing,
    dispersion,
    exponential,
    exponentials,
    gamma_functions,
    gather,
    gather_ratio,
    nonzero_constants,
    nonzero_gradient,
    nonzero_log_mu,
    nonzero_poisson,
    nonzero_value,
    not_dropped,
    odds_kept,
    scale_and_add,
    softmax_gradient,
    softplus,
    softplus_gradient,
    subtract_log_factorials,
    total,
    total_of_logs,
    within_bounds,
    zero_grad_theta,
    zero_nb,
    zero_zinb,
    zero_zinb_by_logs,
)
from vivace.ops.runtime.kernels import (
    EXACT,
    inlined_kernel,
    inner_kernel,
    parallel_kernel,
    specialised,
)
from vivace.ops.runtime.llvm import never_inline
from vivace.types import F32, F64, I64, U32

_ONE = np.float32(1)
_ZERO = np.float32(0)
_CELLS = 16  # of a partition, which one thread takes
_GENES = 256  # of a stretch, which one thread takes

# constants of each kernel, set by ``kernel_for``
SOFTPLUS, DISPERSED, ZERO_INFLATED = False, True, True

# rows of the sums over cells, and of the results for each cell and each gene
# (np.int64: Numba would compile _add_partitions once for each literal int)
_SCALE_SUM, _THETA_SUM, _DROPOUT_SUM = np.int64(0), np.int64(1), np.int64(2)
_LOSS, _GRAD_LIBRARY = 0, 1
_GRAD_SCALE, _GRAD_DROPOUT = 0, 1


class Mean(NamedTuple):
    """What turns e into the means of a cell: mu = rate * e."""

    total: float  # sum of e
    rate: np.float32  # library / total, or library with softplus
    exact_rate: float  # the same in float64
    shift: float  # log mu minus the logit, or minus log e with softplus


# ---- the mean and its gradient ------------------------------------------------------------


@inlined_kernel
def _softmax_mean(s: F32, log_library: float, dense: F32) -> Mean:
    top, mass = exponentials(s, dense[E])
    rate = math.exp(log_library) / mass
    shift = log_library - np.float64(top) - math.log(mass)
    return Mean(mass, np.float32(rate), rate, shift)


@inlined_kernel
def _softplus_mean(s: F32, log_library: float, dense: F32) -> Mean:
    softplus(s, dense[E], dense[SLOPE])
    rate = math.exp(log_library)
    return Mean(total(dense[E]), np.float32(rate), rate, log_library)


# ---- the likelihood of one cell -------------------------------------------------------------
#
# ``_poisson``, ``_nb`` and ``_zinb`` have the same arguments:
#
# genes, x      the non-zero genes and their counts
# mean          see above
# thetas        theta and 1/theta of every gene
# gammas        log theta, log gamma(theta) and digamma(theta) of every gene, or empty
# logits        of zero inflation
# dense         scratch over all genes, in which E is there
# nonzero, nonzero32  scratch over the non-zero genes; the first row of the former is log mu
# gradients     whether they are needed
#
# They return log p, the sum of its derivatives in log mu, and its derivative in the log
# library. They leave the derivatives in log mu and log theta in ``dense``, and those in the
# logits in their place.


def _poisson(  # compiled by kernel_for
    genes: U32,
    x: F32,
    mean: Mean,
    thetas: F32,
    gammas: F64,
    logits: F32,
    dense: F32,
    nonzero: F64,
    nonzero32: F32,
    gradients: bool,
) -> tuple[float, float, float]:
    value, e, grad_mu = nonzero[VALUE], dense[E], dense[GRAD_MU]
    if SOFTPLUS:
        for j in range(grad_mu.size):
            grad_mu[j] = -mean.rate * e[j]
    else:  # the means add up to the library, whatever the logits are: grad_mu is x alone
        grad_mu[:] = _ZERO
    nonzero_poisson(genes, x, grad_mu, value)
    subtract_log_factorials(x, value)
    mass = mean.exact_rate * mean.total
    log_p = total(value) - mass
    count = total(x)
    return log_p, count, count - mass


@inlined_kernel
def _nb_of_counts(
    genes: U32,
    x: F32,
    rate: float,
    e: F32,
    inv_thetas: F32,
    gammas: F64,
    nonzero: F64,
    nonzero32: F32,
    gradients: bool,
) -> None:
    """Write log NB of the non-zero genes, and its derivatives."""
    value, grad_theta = nonzero[VALUE], nonzero[GRAD_THETA]
    ratio, theta, inv_theta = nonzero[RATIO], nonzero[THETA], nonzero32[INV_THETA]
    log_theta = nonzero[LOG_THETA]
    log_gamma, digamma = nonzero[LOG_GAMMA], nonzero[DIGAMMA]
    gather_ratio(genes, e, rate, inv_thetas, ratio, theta, inv_theta)
    if gammas.size > 0:
        gather(genes, gammas[0], log_theta)
        gather(genes, gammas[1], log_gamma)
        gather(genes, gammas[2], digamma)
    else:
        gamma_functions(inv_theta, log_theta, log_gamma, digamma)
    for i in range(x.size):
        value[i] -= log_theta[i]  # log mu becomes log(mu/theta)
    nonzero_value(x, ratio, theta, value, grad_theta)
    if gradients:
        nonzero_gradient(x, ratio, theta, nonzero[GRAD_MU], grad_theta)
    nonzero_constants(theta, log_gamma, digamma, value, grad_theta)
    subtract_log_factorials(x, value)


@inlined_kernel
def _nb_of_zeros(mean: Mean, thetas: F32, dense: F32, gradients: bool) -> None:
    """Write log NB(0) of all genes, and its derivatives."""
    zero_nb(dense[E], mean.rate, thetas[1], thetas[0], dense[VALUE], dense[GRAD_MU])
    if gradients:
        zero_grad_theta(dense[VALUE], dense[GRAD_MU], dense[GRAD_THETA])


@inlined_kernel
def _separate(genes: U32, x: F32, zero_value: F32, count_value: F64) -> None:
    """Set log p to zero among the zeros where the count is not, and the other way round.

    A stored zero is a zero like any other.
    """
    for i in range(x.size):
        if x[i] != _ZERO:
            zero_value[genes[i]] = _ZERO
        else:
            count_value[i] = 0.0


@inlined_kernel
def _scatter_gradients(genes: U32, x: F32, dense: F32, nonzero: F64) -> None:
    """Put the derivatives of the non-zero genes in their places."""
    for i in range(x.size):
        if x[i] != _ZERO:
            j = genes[i]
            dense[GRAD_MU, j] = np.float32(nonzero[GRAD_MU, i])
            dense[GRAD_THETA, j] = np.float32(nonzero[GRAD_THETA, i])


@inlined_kernel
def _nb(
    genes: U32,
    x: F32,
    mean: Mean,
    thetas: F32,
    gammas: F64,
    logits: F32,
    dense: F32,
    nonzero: F64,
    nonzero32: F32,
    gradients: bool,
) -> tuple[float, float, float]:
    value, zero_value = nonzero[VALUE], dense[VALUE]
    _nb_of_counts(
        genes, x, mean.exact_rate, dense[E], thetas[1], gammas, nonzero, nonzero32, gradients
    )
    _nb_of_zeros(mean, thetas, dense, gradients)
    _separate(genes, x, zero_value, value)
    log_p = total(value) + total(zero_value)
    if gradients:
        _scatter_gradients(genes, x, dense, nonzero)
    grad_mu_sum = total(dense[GRAD_MU])
    return log_p, grad_mu_sum, grad_mu_sum


@inlined_kernel
def _zinb(
    genes: U32,
    x: F32,
    mean: Mean,
    thetas: F32,
    gammas: F64,
    logits: F32,
    dense: F32,
    nonzero: F64,
    nonzero32: F32,
    gradients: bool,
) -> tuple[float, float, float]:
    value, zero_value = nonzero[VALUE], dense[VALUE]
    _nb_of_counts(
        genes, x, mean.exact_rate, dense[E], thetas[1], gammas, nonzero, nonzero32, gradients
    )
    _nb_of_zeros(mean, thetas, dense, gradients)

    # non-zero counts were not dropped
    nonzero_logits, log_kept = nonzero32[LOGITS], nonzero32[LOG_KEPT]
    grad_logits = nonzero32[GRAD_LOGITS]
    for i in range(x.size):
        nonzero_logits[i] = logits[genes[i]]
    not_dropped(nonzero_logits, log_kept, grad_logits)
    for i in range(x.size):
        value[i] += np.float64(log_kept[i])

    # zeros were dropped, or come from the negative binomial
    _separate(genes, x, zero_value, value)
    if any_vanishing(zero_value, logits):  # seldom, and slowly
        zero_zinb_by_logs(zero_value, logits, dense[GRAD_MU], dense[GRAD_THETA])
        zeros = total(zero_value)
    else:
        exponential(zero_value)
        odds_kept(logits)
        zero_zinb(zero_value, logits, dense[GRAD_MU], dense[GRAD_THETA])
        for i in range(x.size):
            if x[i] != _ZERO:
                zero_value[genes[i]] = _ONE  # whose log is 0
        zeros = total_of_logs(zero_value)
    log_p = total(value) + zeros

    if gradients:
        _scatter_gradients(genes, x, dense, nonzero)
        for i in range(x.size):
            if x[i] != _ZERO:
                logits[genes[i]] = grad_logits[i]
    grad_mu_sum = total(dense[GRAD_MU])
    return log_p, grad_mu_sum, grad_mu_sum


_log_p = _zinb  # a constant of each kernel too


# ---- cells ----------------------------------------------------------------------------------


def _cells(  # compiled by kernel_for
    first: int,
    last: int,
    scale_ng: F32,
    dropout_ng: F32,
    log_theta_cg: F32,
    dispersions: F32,
    gammas: F64,
    theta_row: I64,
    grad_theta_ng: F32,
    indptr: I64,
    genes: U32,
    counts: F32,
    log_library: F32,
    weight: F32,
    per_cell: F32,
    sums: F32,
    gradients: bool,
) -> None:
    """Losses of the cells from first to last, gradients in place of logits, sums over the cells.

    Without ``gradients``, the losses alone.
    """
    never_inline()
    n_genes = scale_ng.shape[1]
    dense = np.empty((DENSE_ROWS, n_genes), np.float32)
    dense[GRAD_THETA] = _ZERO  # without gradients nothing else writes it
    sums[:] = _ZERO

    for n in range(first, last):
        begin, end = indptr[n], indptr[n + 1]
        where, x = genes[begin:end], counts[begin:end]
        nonzero = np.empty((NONZERO_ROWS, x.size), np.float64)
        nonzero32 = np.empty((NONZERO_ROWS_32, x.size), np.float32)
        s = scale_ng[n]
        logits = dropout_ng[n if ZERO_INFLATED else 0]
        row = theta_row[n] if theta_row.size > 0 else 0

        if SOFTPLUS:
            mean = _softplus_mean(s, np.float64(log_library[n]), dense)
        else:
            mean = _softmax_mean(s, np.float64(log_library[n]), dense)
        nonzero_log_mu(where, s, dense[E], SOFTPLUS, mean.shift, nonzero[VALUE])
        log_p, grad_mu_sum, grad_library = _log_p(
            where, x, mean, dispersions[row], gammas[row], logits,
            dense, nonzero, nonzero32, gradients,
        )  # fmt: skip
        per_cell[_LOSS, n] = np.float32(-log_p)
        if not gradients:
            continue

        # from log p to the weighted loss, and from means and dispersions to logits
        w = weight[n]
        per_cell[_GRAD_LIBRARY, n] = np.float32(-w * grad_library)
        if SOFTPLUS:
            softplus_gradient(s, dense[SLOPE], dense[GRAD_MU], sums[_SCALE_SUM], w)
        else:
            factor = np.float32(grad_mu_sum / mean.total)
            softmax_gradient(s, dense[E], dense[GRAD_MU], sums[_SCALE_SUM], w, factor)
        if DISPERSED:
            if theta_row.size > 0:
                within_bounds(dense[GRAD_THETA], log_theta_cg[row], -w, grad_theta_ng[n])
            else:
                add(sums[_THETA_SUM], dense[GRAD_THETA], -w)
        if ZERO_INFLATED:
            scale_and_add(logits, sums[_DROPOUT_SUM], -w)


# ---- stretches of genes -----------------------------------------------------------------------


@inner_kernel(fastmath=EXACT)
def _fill_tables(
    row: int, start: int, stop: int, log_theta_cg: F32, dispersions: F32, gammas: F64
) -> None:
    """Write theta and 1/theta and, where there is a table, functions of theta."""
    never_inline()
    inv_theta = dispersions[row, 1, start:stop]
    dispersion(log_theta_cg[row, start:stop], dispersions[row, 0, start:stop], inv_theta)
    if gammas.size > 0:
        gamma_functions(
            inv_theta,
            gammas[row, 0, start:stop],
            gammas[row, 1, start:stop],
            gammas[row, 2, start:stop],
        )


@inner_kernel(fastmath=EXACT)
def _add_partitions(partitions: F32, row: int, start: int, stop: int, out: F32) -> None:
    """Write one row of sums, added over the partitions in their order."""
    out[start:stop] = _ZERO
    for part in range(partitions.shape[0]):
        add(out[start:stop], partitions[part, row, start:stop], _ONE)


@inner_kernel(fastmath=EXACT)
def _sum_over_cells(
    start: int,
    stop: int,
    partitions: F32,
    log_theta_cg: F32,
    theta_row: I64,
    grad_theta_ng: F32,
    per_gene: F32,
    grad_theta_cg: F32,
) -> None:
    """Add up the partitions, and the cells of each row of the table of log theta."""
    never_inline()
    _add_partitions(partitions, _SCALE_SUM, start, stop, per_gene[_GRAD_SCALE])
    _add_partitions(partitions, _DROPOUT_SUM, start, stop, per_gene[_GRAD_DROPOUT])
    if grad_theta_cg.size > 0 and theta_row.size > 0:
        grad_theta_cg[:, start:stop] = _ZERO
        for n in range(grad_theta_ng.shape[0]):
            add(grad_theta_cg[theta_row[n], start:stop], grad_theta_ng[n, start:stop], _ONE)
    elif grad_theta_cg.size > 0:
        shared = grad_theta_cg[0]
        _add_partitions(partitions, _THETA_SUM, start, stop, shared)
        within_bounds(shared[start:stop], log_theta_cg[0, start:stop], _ONE, shared[start:stop])


# ---- the kernel ---------------------------------------------------------------------------------


def _logit_gradients(  # compiled by kernel_for
    scale_ng: F32,
    dropout_ng: F32,
    log_theta_cg: F32,
    theta_row: I64,
    grad_theta_ng: F32,
    indptr: I64,
    genes: U32,
    counts: F32,
    log_library: F32,
    weight: F32,
    per_cell: F32,
    per_gene: F32,
    grad_theta_cg: F32,
    gradients: bool,
) -> None:
    n_cells, n_genes = scale_ng.shape
    n_rows = log_theta_cg.shape[0]
    n_stretches = (n_genes + _GENES - 1) // _GENES
    # a fixed number of partitions on any number of threads: every sum has one order
    n_partitions = (n_cells + _CELLS - 1) // _CELLS
    dispersions = np.empty((max(1, n_rows), 2, n_genes), np.float32)
    # functions of theta are tabled by gene where that takes fewer than by count
    tabled = n_rows * n_genes < indptr[n_cells] - indptr[0]
    gammas = np.empty((max(1, n_rows), 3, n_genes if tabled else 0), np.float64)
    partitions = np.empty((n_partitions, 3, n_genes if gradients else 0), np.float32)

    tables, cells, sums = 0, 1, 2  # in one parallel loop: each loop takes a second to compile
    for phase in range(3 if gradients else sums):
        number = (
            n_stretches * (n_rows if phase == tables else 1) if phase != cells else n_partitions
        )
        for part in prange(number):
            start = (part % n_stretches) * _GENES
            stop = min(n_genes, start + _GENES)
            if phase == tables:
                _fill_tables(part // n_stretches, start, stop, log_theta_cg, dispersions, gammas)
            elif phase == cells:
                _cells(
                    part * n_cells // n_partitions, (part + 1) * n_cells // n_partitions,
                    scale_ng, dropout_ng, log_theta_cg, dispersions, gammas, theta_row,
                    grad_theta_ng, indptr, genes, counts, log_library, weight,
                    per_cell, partitions[part], gradients,
                )  # fmt: skip
            elif phase == sums:
                _sum_over_cells(
                    start, stop, partitions, log_theta_cg, theta_row, grad_theta_ng, per_gene,
                    grad_theta_cg,
                )  # fmt: skip


@cache
def kernel_for(likelihood: GeneLikelihood, activation: Activation) -> Any:
    """Return the kernel of one likelihood; nothing of the others is compiled with it.

    Its arguments are those of ``_logit_gradients``:

    scale_ng, dropout_ng
        Logits, overwritten with the gradients in them. ``dropout_ng`` is one empty row
        where there is no zero inflation.
    log_theta_cg
        Table of log theta, shape (c, g); empty where there is none.
    theta_row
        Row of the table of each cell, shape (n,); empty where all share the first.
    grad_theta_ng
        Gradient in log theta of each cell, written where cells do not share a row. It may
        be the memory of ``log_theta_cg`` where every cell has its own row.
    indptr, genes, counts
        Counts of the cells, compressed sparse rows.
    log_library, weight
        Log library and weight of each cell.
    per_cell
        Written, shape (2, n): losses, and gradients in the log library.
    per_gene
        Written, shape (2, g): gradients in the biases of scale and dropout.
    grad_theta_cg
        Written, gradient in the table; empty where it is not needed.
    gradients
        Whether gradients are computed. Without them only losses are written, and the
        contents of the logits mean nothing afterwards.
    """
    family, is_softplus = LIKELIHOODS[likelihood], activation == "softplus"
    name = f"{likelihood}_{activation}"
    if likelihood == "poisson":
        poisson = specialised(_poisson, name, SOFTPLUS=is_softplus)
        log_p: Any = inlined_kernel(poisson)
    else:
        log_p = {"nb": _nb, "zinb": _zinb}[likelihood]
    cells = specialised(
        _cells,
        name,
        SOFTPLUS=is_softplus,
        DISPERSED=family.dispersed,
        ZERO_INFLATED=family.zero_inflated,
        _log_p=log_p,
    )
    compiled = inner_kernel(fastmath=EXACT)(cells)
    kernel = specialised(_logit_gradients, name, _cells=compiled)
    return parallel_kernel(fastmath=EXACT)(kernel)
