"""Numba kernel: rows of the weight summed for each cell, and the transpose of that.

Forward runs over cells, backward over genes: each thread owns the output rows
it writes, so that nothing is locked and the sum's order, and with it every bit
of the result, does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Genes = NDArray[np.int32]
Floats = NDArray[np.float32]

_FAST = {"contract", "reassoc", "nsz"}
_BLOCK = 16  # rows handed to a thread at a time


@njit(fastmath=_FAST, error_model="numpy", nogil=True, cache=True)
def _weighted_rows(
    out_h: Floats, start: int, stop: int, rows: Genes, values: Floats, table: Floats
) -> None:
    """Out = sum over entries of value * table[row]."""
    out_h[:] = np.float32(0.0)
    for i in range(start, stop):
        value = values[i]
        row = table[rows[i]]
        for c in range(out_h.size):
            out_h[c] += value * row[c]


@njit(parallel=True, fastmath=_FAST, error_model="numpy", cache=True)
def _forward(out_nh: Floats, indptr: Ints, genes: Genes, values: Floats, weight_gh: Floats) -> None:
    n_rows = out_nh.shape[0]
    for block in prange((n_rows + _BLOCK - 1) // _BLOCK):
        for n in range(block * _BLOCK, min(n_rows, (block + 1) * _BLOCK)):
            _weighted_rows(out_nh[n], indptr[n], indptr[n + 1], genes, values, weight_gh)


@njit(error_model="numpy", cache=True)
def _transpose(
    indptr: Ints, genes: Genes, values: Floats, n_genes: int
) -> tuple[Ints, Genes, Floats]:
    """The same entries ordered by gene (a counting sort), cells ascending in each."""
    starts = np.zeros(n_genes + 1, np.int64)
    for i in range(indptr[0], indptr[-1]):
        starts[genes[i] + 1] += 1
    for g in range(n_genes):
        starts[g + 1] += starts[g]
    place = starts[:-1].copy()
    cells = np.empty(starts[-1], np.int32)
    moved = np.empty(starts[-1], np.float32)
    for n in range(indptr.size - 1):
        for i in range(indptr[n], indptr[n + 1]):
            p = place[genes[i]]
            cells[p] = n
            moved[p] = values[i]
            place[genes[i]] = p + 1
    return starts, cells, moved


def sparse_product(indptr: Tensor, genes: Tensor, values: Tensor, weight_gh: Tensor) -> Tensor:
    """``x @ weight`` for CSR x, shape (n, h); float32 on the CPU."""
    out = torch.empty((len(indptr) - 1, weight_gh.shape[1]), dtype=torch.float32)
    _forward(
        out.numpy(),
        indptr.contiguous().numpy(),
        genes.contiguous().numpy(),
        values.detach().contiguous().numpy(),
        weight_gh.detach().contiguous().numpy(),
    )
    return out


def sparse_weight_gradient(
    indptr: Tensor, genes: Tensor, values: Tensor, grad_nh: Tensor, n_genes: int
) -> Tensor:
    """Gradient of the weight, ``x.T @ grad``, shape (g, h)."""
    out = torch.empty((n_genes, grad_nh.shape[1]), dtype=torch.float32)
    by_gene = _transpose(
        indptr.contiguous().numpy(),
        genes.contiguous().numpy(),
        values.detach().contiguous().numpy(),
        n_genes,
    )
    _forward(out.numpy(), *by_gene, grad_nh.detach().contiguous().numpy())
    return out


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
