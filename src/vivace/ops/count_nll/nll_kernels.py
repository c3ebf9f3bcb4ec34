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
    Dense,
    Nonzero,
    add,
    any_vanishing,
    dense_scratch,
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
    nonzero_rows,
    nonzero_scratch,
    nonzero_value,
    not_dropped,
    odds_kept,
    row_length,
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
_SCALE_SUM, _THETA_SUM, _DROPOUT_SUM = 0, 1, 2
_LOSS, _GRAD_LIBRARY = 0, 1
_GRAD_SCALE, _GRAD_DROPOUT = 0, 1


class Mean(NamedTuple):
    """What turns ``Dense.e`` into the means of a cell: mu = rate * e."""

    total: float  # sum of e
    rate: np.float32  # library / total, or library with softplus
    exact_rate: float  # the same in float64
    shift: float  # log mu minus the logit, or minus log e with softplus


class Theta(NamedTuple):
    """A row of the table of dispersions; the last three are empty where there is no table."""

    theta: F32
    inv_theta: F32
    log_theta: F64
    log_gamma: F64
    digamma: F64


# ---- the mean and its gradient ------------------------------------------------------------


@inlined_kernel
def _softmax_mean(s: F32, log_library: float, dense: Dense) -> Mean:
    top, mass = exponentials(s, dense.e)
    rate = math.exp(log_library) / mass
    shift = log_library - np.float64(top) - math.log(mass)
    return Mean(mass, np.float32(rate), rate, shift)


@inlined_kernel
def _softplus_mean(s: F32, log_library: float, dense: Dense) -> Mean:
    softplus(s, dense.e, dense.slope)
    rate = math.exp(log_library)
    return Mean(total(dense.e), np.float32(rate), rate, log_library)


# ---- the likelihood of one cell -------------------------------------------------------------
#
# Each takes log mu of the non-zero genes in ``nonzero.value`` and returns log p, the sum of
# its derivatives in log mu, and its derivative in the log library. It leaves the derivatives
# in log mu and log theta in ``dense``, and those in the zero-inflation logits in their place.
#
# Arrays are taken out of the tuples before a loop: inside, each would be counted as one more
# reference and released again for every gene.


def _poisson(  # compiled by kernel_for
    genes: U32,
    x: F32,
    mean: Mean,
    theta: Theta,
    logits: F32,
    dense: Dense,
    nonzero: Nonzero,
    gradients: bool,
) -> tuple[float, float, float]:
    grad_mu = dense.grad_mu
    if SOFTPLUS:
        rate, e = mean.rate, dense.e
        for j in range(grad_mu.size):
            grad_mu[j] = -rate * e[j]
    else:  # the means add up to the library, whatever the logits are: grad_mu is x alone
        grad_mu[:] = _ZERO
    nonzero_poisson(genes, x, grad_mu, nonzero.value)
    subtract_log_factorials(x, nonzero.value)
    mass = mean.exact_rate * mean.total
    log_p = total(nonzero.value) - mass
    count = total(x)
    return log_p, count, count - mass


@inlined_kernel
def _nb_of_counts(
    genes: U32, x: F32, rate: float, e: F32, theta: Theta, nonzero: Nonzero, gradients: bool
) -> None:
    """Write log NB of the non-zero genes, and its derivatives."""
    gather_ratio(genes, e, rate, theta.inv_theta, nonzero.ratio, nonzero.theta, nonzero.inv_theta)
    if theta.log_theta.size > 0:
        gather(genes, theta.log_theta, nonzero.log_theta)
        gather(genes, theta.log_gamma, nonzero.log_gamma)
        gather(genes, theta.digamma, nonzero.digamma)
    else:
        gamma_functions(nonzero.inv_theta, nonzero.log_theta, nonzero.log_gamma, nonzero.digamma)
    value, log_theta = nonzero.value, nonzero.log_theta
    for i in range(x.size):
        value[i] -= log_theta[i]  # log mu becomes log(mu/theta)
    nonzero_value(x, nonzero.ratio, nonzero.theta, nonzero.value, nonzero.grad_theta)
    if gradients:
        nonzero_gradient(x, nonzero.ratio, nonzero.theta, nonzero.grad_mu, nonzero.grad_theta)
    nonzero_constants(
        nonzero.theta, nonzero.log_gamma, nonzero.digamma, nonzero.value, nonzero.grad_theta
    )
    subtract_log_factorials(x, nonzero.value)


@inlined_kernel
def _nb_of_zeros(mean: Mean, theta: Theta, dense: Dense, gradients: bool) -> None:
    """Write log NB(0) of all genes, and its derivatives."""
    zero_nb(dense.e, mean.rate, theta.inv_theta, theta.theta, dense.value, dense.grad_mu)
    if gradients:
        zero_grad_theta(dense.value, dense.grad_mu, dense.grad_theta)


@inlined_kernel
def _separate(genes: U32, x: F32, dense: Dense, nonzero: Nonzero) -> None:
    """Set log p to zero among the zeros where the count is not, and the other way round.

    A stored zero is a zero like any other.
    """
    zero_value, count_value = dense.value, nonzero.value
    for i in range(x.size):
        if x[i] != _ZERO:
            zero_value[genes[i]] = _ZERO
        else:
            count_value[i] = 0.0


@inlined_kernel
def _scatter_gradients(genes: U32, x: F32, dense: Dense, nonzero: Nonzero) -> None:
    """Put the derivatives of the non-zero genes in their places."""
    grad_mu, grad_theta = dense.grad_mu, dense.grad_theta
    nonzero_grad_mu, nonzero_grad_theta = nonzero.grad_mu, nonzero.grad_theta
    for i in range(x.size):
        if x[i] != _ZERO:
            j = genes[i]
            grad_mu[j] = np.float32(nonzero_grad_mu[i])
            grad_theta[j] = np.float32(nonzero_grad_theta[i])


@inlined_kernel
def _nb(
    genes: U32,
    x: F32,
    mean: Mean,
    theta: Theta,
    logits: F32,
    dense: Dense,
    nonzero: Nonzero,
    gradients: bool,
) -> tuple[float, float, float]:
    _nb_of_counts(genes, x, mean.exact_rate, dense.e, theta, nonzero, gradients)
    _nb_of_zeros(mean, theta, dense, gradients)
    _separate(genes, x, dense, nonzero)
    log_p = total(nonzero.value) + total(dense.value)
    if gradients:
        _scatter_gradients(genes, x, dense, nonzero)
    grad_mu_sum = total(dense.grad_mu)
    return log_p, grad_mu_sum, grad_mu_sum


@inlined_kernel
def _zinb(
    genes: U32,
    x: F32,
    mean: Mean,
    theta: Theta,
    logits: F32,
    dense: Dense,
    nonzero: Nonzero,
    gradients: bool,
) -> tuple[float, float, float]:
    _nb_of_counts(genes, x, mean.exact_rate, dense.e, theta, nonzero, gradients)
    _nb_of_zeros(mean, theta, dense, gradients)

    # non-zero counts were not dropped
    nonzero_logits, log_kept, grad_logits = nonzero.logits, nonzero.log_kept, nonzero.grad_logits
    value = nonzero.value
    for i in range(x.size):
        nonzero_logits[i] = logits[genes[i]]
    not_dropped(nonzero_logits, log_kept, grad_logits)
    for i in range(x.size):
        value[i] += np.float64(log_kept[i])

    # zeros were dropped, or come from the negative binomial
    _separate(genes, x, dense, nonzero)
    if any_vanishing(dense.value, logits):  # seldom, and slowly
        zero_zinb_by_logs(dense.value, logits, dense.grad_mu, dense.grad_theta)
        zeros = total(dense.value)
    else:
        exponential(dense.value)
        odds_kept(logits)
        zero_zinb(dense.value, logits, dense.grad_mu, dense.grad_theta)
        probabilities = dense.value
        for i in range(x.size):
            if x[i] != _ZERO:
                probabilities[genes[i]] = _ONE  # whose log is 0
        zeros = total_of_logs(probabilities)
    log_p = total(nonzero.value) + zeros

    if gradients:
        _scatter_gradients(genes, x, dense, nonzero)
        for i in range(x.size):
            if x[i] != _ZERO:
                logits[genes[i]] = grad_logits[i]
    grad_mu_sum = total(dense.grad_mu)
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
    most = 0
    for n in range(first, last):
        most = max(most, indptr[n + 1] - indptr[n])
    dense = dense_scratch(n_genes)
    block64, block32 = nonzero_scratch(most)
    dense.grad_theta[:] = _ZERO  # without gradients nothing else writes it
    sums[:] = _ZERO

    for n in range(first, last):
        begin, end = indptr[n], indptr[n + 1]
        where, x = genes[begin:end], counts[begin:end]
        nonzero = nonzero_rows(block64, block32, end - begin)
        s = scale_ng[n]
        logits = dropout_ng[n if ZERO_INFLATED else 0]
        row = theta_row[n] if theta_row.size > 0 else 0
        theta = Theta(
            dispersions[row, 0, :n_genes],
            dispersions[row, 1, :n_genes],
            gammas[row, 0],
            gammas[row, 1],
            gammas[row, 2],
        )

        if SOFTPLUS:
            mean = _softplus_mean(s, np.float64(log_library[n]), dense)
        else:
            mean = _softmax_mean(s, np.float64(log_library[n]), dense)
        nonzero_log_mu(where, s, dense.e, SOFTPLUS, mean.shift, nonzero.value)
        log_p, grad_mu_sum, grad_library = _log_p(
            where, x, mean, theta, logits, dense, nonzero, gradients
        )
        per_cell[_LOSS, n] = np.float32(-log_p)
        if not gradients:
            continue

        # from log p to the weighted loss, and from means and dispersions to logits
        w = weight[n]
        per_cell[_GRAD_LIBRARY, n] = np.float32(-w * grad_library)
        if SOFTPLUS:
            softplus_gradient(s, dense.slope, dense.grad_mu, sums[_SCALE_SUM], w)
        else:
            factor = np.float32(grad_mu_sum / mean.total)
            softmax_gradient(s, dense.e, dense.grad_mu, sums[_SCALE_SUM], w, factor)
        if DISPERSED:
            if theta_row.size > 0:
                within_bounds(dense.grad_theta, log_theta_cg[row], -w, grad_theta_ng[n])
            else:
                add(sums[_THETA_SUM], dense.grad_theta, -w)
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
    dispersions = np.empty((max(1, n_rows), 2, row_length(n_genes)), np.float32)
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
