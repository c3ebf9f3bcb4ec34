"""The CPU backend, float32: Numba kernels.

The product runs over cells, its gradient over genes. Each thread owns the output rows that it
writes: nothing is locked, and the order of every sum, and with it every bit of the result,
does not depend on the number of threads. README.md has the derivation.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from vivace.ops.csr import SparseCounts
from vivace.ops.math.fastmath import log1p32
from vivace.ops.runtime.kernels import EXACT, inner_kernel, kernel, parallel_kernel
from vivace.ops.runtime.llvm import never_inline, vector_loop
from vivace.ops.sparse_linear.rows import add_to_rows, weighted_rows
from vivace.types import F32, I32, I64

_ZERO = np.float32(0)
_MINUS_ONE = np.float32(-1)
_INFINITY = np.float32(np.inf)
_NAN = np.float32(np.nan)
_CELLS = 16  # handed to a thread at a time
_GENES = 256  # whose rows of 128 numbers stay in the second-level cache
_VALUES = 4096  # handed to a thread at a time


# ---- the functions of the backend ------------------------------------------------------


def log1p(values: Tensor) -> Tensor:
    """``log(1 + x)`` of float32 numbers, within 2 units in the last place."""
    values = values.detach().contiguous()
    out = torch.empty_like(values)
    _log1p_into(out.numpy(), values.numpy())
    return out


def product(counts: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``x @ weight``, shape (n, h)."""
    out = torch.empty((counts.n_cells, weight_gh.shape[1]), dtype=torch.float32)
    product_into(out.numpy(), *_arrays(counts), weight_gh.detach().contiguous().numpy())
    return out


def weight_gradient(counts: SparseCounts, grad_nh: Tensor) -> Tensor:
    """``x.T @ grad``, shape (g, h): the gradient in the weight, from that in the product."""
    out = torch.empty((counts.n_genes, grad_nh.shape[1]), dtype=torch.float32)
    weight_gradient_into(out.numpy(), *_arrays(counts), grad_nh.detach().contiguous().numpy())
    return out


def weight_gradient_into(out_gh: F32, indptr: I64, genes: I32, values: F32, grad_nh: F32) -> None:
    """Write ``x.T @ grad``."""
    entries = indptr[-1] - indptr[0]
    if _gradient_by_stretches(out_gh, indptr, genes, values, grad_nh) < entries:
        # the genes of some cell do not ascend: all genes are one stretch
        _gradient_of_genes(out_gh, 0, len(out_gh), indptr, genes, values, grad_nh)


def _arrays(counts: SparseCounts) -> tuple[I64, I32, F32]:
    tensors = (counts.indptr, counts.genes, counts.values)
    indptr, genes, values = (t.detach().contiguous().numpy() for t in tensors)
    return indptr, genes, values


# ---- the transform -----------------------------------------------------------------------


@inner_kernel(fastmath=EXACT)
def _log1p_values(out: F32, values: F32) -> None:
    vector_loop()
    for i in range(values.size):
        x = values[i]
        y = log1p32(x)
        # beyond the polynomial's range: -1 and below, infinity, NaN
        y = y if x > _MINUS_ONE else (_NAN if x < _MINUS_ONE else -_INFINITY)
        out[i] = y if x < _INFINITY else x


@parallel_kernel(fastmath=EXACT)
def _log1p_into(out: F32, values: F32) -> None:
    for block in prange((values.size + _VALUES - 1) // _VALUES):
        part = slice(block * _VALUES, min(values.size, (block + 1) * _VALUES))
        _log1p_values(out[part], values[part])


# ---- over cells ----------------------------------------------------------------------------


@parallel_kernel()
def product_into(out_nh: F32, indptr: I64, genes: I32, values: F32, weight_gh: F32) -> None:
    """Write ``x @ weight``."""
    n_rows = out_nh.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            weighted_rows(out_nh[n], indptr[n], indptr[n + 1], genes, values, weight_gh)


@parallel_kernel()
def fill_dense(out_ng: F32, indptr: I64, genes: I32, values: F32) -> None:
    """Write x as a dense matrix; entries of one cell and gene add up."""
    n_rows = out_ng.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            out_ng[n, :] = _ZERO
            for i in range(indptr[n], indptr[n + 1]):
                out_ng[n, genes[i]] += values[i]


# ---- over genes ----------------------------------------------------------------------------


@inner_kernel()
def _find_gene(genes: I32, start: int, stop: int, gene: int) -> int:
    """The first entry of a cell, whose genes ascend, that is of ``gene`` or above."""
    while start < stop:
        middle = (start + stop) // 2
        if genes[middle] < gene:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel()
def _gradient_of_genes(
    out_gh: F32,
    first: int,
    last: int,
    indptr: I64,
    genes: I32,
    values: F32,
    grad_nh: F32,
) -> int:
    """Write the gradient of the genes from first to last; return how many entries were theirs.

    Of each cell these are the entries from the first that reaches these genes up to the
    first that is not one of them. That is all of them where genes ascend.
    """
    never_inline()
    out = out_gh[first:last]
    out[:] = _ZERO
    number = np.uint32(last - first)
    n_entries = 0
    for n in range(indptr.size - 1):
        begin, end = indptr[n], indptr[n + 1]
        if first > 0:
            begin = _find_gene(genes, begin, end, first)
        stop = begin
        while stop < end and np.uint32(genes[stop] - first) < number:
            stop += 1
        add_to_rows(out, begin, stop, first, genes, values, grad_nh[n])
        n_entries += stop - begin
    return n_entries


@parallel_kernel()
def _gradient_by_stretches(out_gh: F32, indptr: I64, genes: I32, values: F32, grad_nh: F32) -> int:
    """Write the gradient, right where the genes of each cell ascend; return the entries found."""
    n_genes = out_gh.shape[0]
    n_stretches = (n_genes + _GENES - 1) // _GENES
    n_entries = np.zeros(n_stretches, np.int64)
    for part in prange(n_stretches):
        first, last = part * _GENES, min(n_genes, (part + 1) * _GENES)
        n_entries[part] = _gradient_of_genes(out_gh, first, last, indptr, genes, values, grad_nh)
    total: int = n_entries.sum()
    return total
