"""Numba kernel: rows of the weight summed for each cell, and the transpose of that.

Forward runs over cells, backward over genes: each thread owns the output rows
it writes, so that nothing is locked and the sum's order, and with it every bit
of the result, does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from vivace.jit import EXACT, kernel, never_inline, parallel_kernel
from vivace.ops.fastmath import log1p32
from vivace.ops.sparse_linear.rows import weighted_rows

Ints = NDArray[np.int64]
Genes = NDArray[np.int32]
Floats = NDArray[np.float32]

_ZERO = np.float32(0)
_MINUS_ONE = np.float32(-1)
_CELLS = 16  # handed to a thread at a time
_GENES = 256
_VALUES = 4096


@parallel_kernel(fastmath=EXACT)
def _log1p_into(out: Floats, values: Floats) -> None:
    for block in prange((values.size + _VALUES - 1) // _VALUES):
        for i in range(block * _VALUES, min(values.size, (block + 1) * _VALUES)):
            x = values[i]
            y = log1p32(x)
            y = y if x > _MINUS_ONE else np.float32(np.nan if x < _MINUS_ONE else -np.inf)
            out[i] = y if x < np.float32(np.inf) else x


def log1p_of(values: Tensor) -> Tensor:
    """``log(1 + x)`` of float32 numbers on the CPU, within 2 units of the last place."""
    if torch.compiler.is_compiling():
        return torch.log1p(values)
    values = values.detach().contiguous()
    out = torch.empty_like(values)
    _log1p_into(out.numpy(), values.numpy())
    return out


@parallel_kernel()
def product_into(
    out_nh: Floats, indptr: Ints, genes: Genes, values: Floats, weight_gh: Floats
) -> None:
    """Write ``x @ weight``."""
    n_rows = out_nh.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            weighted_rows(out_nh[n], indptr[n], indptr[n + 1], genes, values, weight_gh)


@parallel_kernel()
def fill_dense(out_ng: Floats, indptr: Ints, genes: Genes, values: Floats) -> None:
    """Write x as a dense matrix; entries of the same gene add up."""
    n_rows = out_ng.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            out_ng[n, :] = _ZERO
            for i in range(indptr[n], indptr[n + 1]):
                out_ng[n, genes[i]] += values[i]


@kernel()
def _first_from(genes: Genes, start: int, stop: int, gene: int) -> int:
    """Where the genes of a cell, ascending, reach ``gene``."""
    while start < stop:
        middle = (start + stop) // 2
        if genes[middle] < gene:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel()
def _transpose(
    indptr: Ints, genes: Genes, values: Floats, first: int, last: int
) -> tuple[Ints, Genes, Floats]:
    """Entries of the genes from first to last, ordered by gene; cells ascending in each.

    A counting sort.  The genes of each cell must ascend, unless all are asked for.
    """
    n_cells = indptr.size - 1
    begins, ends = np.empty(n_cells, np.int64), np.empty(n_cells, np.int64)
    starts = np.zeros(last - first + 1, np.int64)
    for n in range(n_cells):
        begins[n] = indptr[n] if first == 0 else _first_from(genes, indptr[n], indptr[n + 1], first)
        ends[n] = _first_from(genes, begins[n], indptr[n + 1], last)
        for i in range(begins[n], ends[n]):
            starts[genes[i] - first + 1] += 1
    for g in range(last - first):
        starts[g + 1] += starts[g]
    place = starts[:-1].copy()
    cells = np.empty(starts[-1], np.int32)
    moved = np.empty(starts[-1], np.float32)
    for n in range(n_cells):
        for i in range(begins[n], ends[n]):
            p = place[genes[i] - first]
            cells[p] = n
            moved[p] = values[i]
            place[genes[i] - first] = p + 1
    return starts, cells, moved


@kernel()
def _ascending(indptr: Ints, genes: Genes) -> bool:
    """Whether the genes of every cell ascend."""
    falls = np.int32(0)
    for n in range(indptr.size - 1):
        for i in range(indptr[n] + 1, indptr[n + 1]):
            falls |= np.int32(genes[i] < genes[i - 1])
    return falls == 0


@kernel()
def _genes_gradient(
    out_gh: Floats,
    first: int,
    last: int,
    indptr: Ints,
    genes: Genes,
    values: Floats,
    grad_nh: Floats,
) -> None:
    never_inline()
    starts, cells, moved = _transpose(indptr, genes, values, first, last)
    for g in range(last - first):
        weighted_rows(out_gh[first + g], starts[g], starts[g + 1], cells, moved, grad_nh)


@parallel_kernel()
def _backward(out_gh: Floats, indptr: Ints, genes: Genes, values: Floats, grad_nh: Floats) -> None:
    """Each stretch of genes is transposed by the thread that sums its rows."""
    n_genes = out_gh.shape[0]
    for block in prange((n_genes + _GENES - 1) // _GENES):
        first, last = block * _GENES, min(n_genes, (block + 1) * _GENES)
        _genes_gradient(out_gh, first, last, indptr, genes, values, grad_nh)


def sparse_product(indptr: Tensor, genes: Tensor, values: Tensor, weight_gh: Tensor) -> Tensor:
    """``x @ weight`` for CSR x, shape (n, h); float32 on the CPU."""
    out = torch.empty((len(indptr) - 1, weight_gh.shape[1]))
    csr = [t.detach().contiguous().numpy() for t in (indptr, genes, values)]
    product_into(out.numpy(), *csr, weight_gh.detach().contiguous().numpy())
    return out


def sparse_weight_gradient(
    indptr: Tensor, genes: Tensor, values: Tensor, grad_nh: Tensor, n_genes: int
) -> Tensor:
    """Gradient of the weight, ``x.T @ grad``, shape (g, h)."""
    out = torch.empty((n_genes, grad_nh.shape[1]))
    csr = [t.detach().contiguous().numpy() for t in (indptr, genes, values)]
    weight_gradient_into(out.numpy(), *csr, grad_nh.detach().contiguous().numpy())
    return out


def weight_gradient_into(
    out_gh: Floats, indptr: Ints, genes: Genes, values: Floats, grad_nh: Floats
) -> None:
    """Write ``x.T @ grad``."""
    if not _ascending(indptr, genes):  # transposed twice, they do
        for rows in (len(out_gh), len(indptr) - 1):
            indptr, genes, values = _transpose(indptr, genes, values, 0, rows)
    _backward(out_gh, indptr, genes, values, grad_nh)


class _SparseLinear(torch.autograd.Function):
    """The product and its gradient, called directly: a custom op's dispatch takes as long again."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        indptr, genes, values, weight_gh = args
        _save(ctx, args, None)
        return sparse_product(indptr, genes, values, weight_gh)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (
            None,
            None,
            None,
            sparse_weight_gradient(*ctx.saved_tensors, grad_outputs[0], ctx.n_genes),
        )


def sparse_linear_cpu(indptr: Tensor, genes: Tensor, values: Tensor, weight_gh: Tensor) -> Tensor:
    """``x @ weight`` for CSR x, shape (n, h), differentiable in the weight."""
    call = _product_op if torch.compiler.is_compiling() else _SparseLinear.apply
    out: Tensor = call(indptr, genes, values, weight_gh)  # type: ignore[no-untyped-call]
    return out


# ---- the same as custom operations, for torch.compile -----------------------

_product_op = torch.library.custom_op(
    "vivace::sparse_linear", sparse_product, mutates_args=(), device_types="cpu"
)
_gradient_op = torch.library.custom_op(
    "vivace::sparse_linear_backward", sparse_weight_gradient, mutates_args=(), device_types="cpu"
)


@_product_op.register_fake
def _(indptr: Tensor, genes: Tensor, values: Tensor, weight_gh: Tensor) -> Tensor:
    return weight_gh.new_empty((len(indptr) - 1, weight_gh.shape[1]))


@_gradient_op.register_fake
def _(indptr: Tensor, genes: Tensor, values: Tensor, grad_nh: Tensor, n_genes: int) -> Tensor:
    return grad_nh.new_empty((n_genes, grad_nh.shape[1]))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor | None) -> None:
    indptr, genes, values, weight_gh = inputs
    ctx.save_for_backward(indptr, genes, values)
    ctx.n_genes = len(weight_gh)


def _differentiate(ctx: Any, grad_nh: Tensor) -> tuple[None, None, None, Tensor]:
    return None, None, None, _gradient_op(*ctx.saved_tensors, grad_nh, ctx.n_genes)


_product_op.register_autograd(_differentiate, setup_context=_save)
