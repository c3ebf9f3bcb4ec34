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
from torch import Tensor

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
_VALUES = 4096


@inner_kernel(fastmath=EXACT)
def _log1p_values(out: F32, values: F32) -> None:
    vector_loop()
    for i in range(values.size):
        x = values[i]
        y = log1p32(x)
        y = y if x > _MINUS_ONE else (_NAN if x < _MINUS_ONE else -_INFINITY)
        out[i] = y if x < _INFINITY else x


@parallel_kernel(fastmath=EXACT)
def _log1p_into(out: F32, values: F32) -> None:
    for block in prange((values.size + _VALUES - 1) // _VALUES):
        here = slice(block * _VALUES, min(values.size, (block + 1) * _VALUES))
        _log1p_values(out[here], values[here])


def log1p_of(values: Tensor) -> Tensor:
    """``log(1 + x)`` of float32 numbers on the CPU, within 2 units of the last place."""
    if torch.compiler.is_compiling():
        return torch.log1p(values)
    values = values.detach().contiguous()
    out = torch.empty_like(values)
    _log1p_into(out.numpy(), values.numpy())
    return out


@parallel_kernel()
def product_into(out_nh: F32, indptr: I64, genes: I32, values: F32, weight_gh: F32) -> None:
    """Write ``x @ weight``."""
    n_rows = out_nh.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            weighted_rows(out_nh[n], indptr[n], indptr[n + 1], genes, values, weight_gh)


@parallel_kernel()
def fill_dense(out_ng: F32, indptr: I64, genes: I32, values: F32) -> None:
    """Write x as a dense matrix; entries of the same gene add up."""
    n_rows = out_ng.shape[0]
    for block in prange((n_rows + _CELLS - 1) // _CELLS):
        for n in range(block * _CELLS, min(n_rows, (block + 1) * _CELLS)):
            out_ng[n, :] = _ZERO
            for i in range(indptr[n], indptr[n + 1]):
                out_ng[n, genes[i]] += values[i]


@inner_kernel()
def _first_from(genes: I32, start: int, stop: int, gene: int) -> int:
    """Where the genes of a cell, ascending, reach ``gene``."""
    while start < stop:
        middle = (start + stop) // 2
        if genes[middle] < gene:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel()
def _genes_gradient(
    out_gh: F32,
    first: int,
    last: int,
    indptr: I64,
    genes: I32,
    values: F32,
    grad_nh: F32,
) -> int:
    """Rows of the genes from first to last; how many entries were theirs.

    From each cell, the entries from the first that reaches these genes to the first that is
    not of them: all of them where genes ascend.
    """
    never_inline()
    out = out_gh[first:last]
    out[:] = _ZERO
    number = np.uint32(last - first)
    found = 0
    for n in range(indptr.size - 1):
        begin, end = indptr[n], indptr[n + 1]
        if first > 0:
            begin = _first_from(genes, begin, end, first)
        stop = begin
        while stop < end and np.uint32(genes[stop] - first) < number:
            stop += 1
        add_to_rows(out, begin, stop, first, genes, values, grad_nh[n])
        found += stop - begin
    return found


@parallel_kernel()
def _backward(out_gh: F32, indptr: I64, genes: I32, values: F32, grad_nh: F32) -> int:
    """Write the gradient if the genes of each cell ascend; how many entries were taken."""
    n_genes = out_gh.shape[0]
    n_stretches = (n_genes + _GENES - 1) // _GENES
    found = np.zeros(n_stretches, np.int64)
    for part in prange(n_stretches):
        first, last = part * _GENES, min(n_genes, (part + 1) * _GENES)
        found[part] = _genes_gradient(out_gh, first, last, indptr, genes, values, grad_nh)
    total: int = found.sum()
    return total


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


def weight_gradient_into(out_gh: F32, indptr: I64, genes: I32, values: F32, grad_nh: F32) -> None:
    """Write ``x.T @ grad``."""
    entries = indptr[-1] - indptr[0]
    if _backward(out_gh, indptr, genes, values, grad_nh) < entries:  # they do not ascend
        _genes_gradient(out_gh, 0, len(out_gh), indptr, genes, values, grad_nh)


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
