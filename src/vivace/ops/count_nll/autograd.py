"""The Numba kernel as torch operations with gradients.

``weighted_nll`` is what training calls: the sum of the losses, with all its
gradients from the same pass over the cells.  ``cell_nll`` gives one value a
cell; its gradient is a weighted pass of its own.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.ops.count_nll.cpu import logit_gradients
from vivace.ops.matmul import product

_BLOCK_BYTES = 32 * 2**20  # logits of one block of cells

Heads = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _logit_gradients(
    csr: tuple[Tensor, Tensor, Tensor],
    hidden_nh: Tensor,
    heads: Heads,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """One block of cells: logit gradients of both heads, nll, library gradient, sums."""
    scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g = heads
    scale_ng = product(hidden_nh, scale_hg, scale_g)
    logits_ng = (
        hidden_nh.new_empty((1, 0))
        if dropout_hg is None
        else product(hidden_nh, dropout_hg, dropout_g)
    )
    nll_n, by_library_n = torch.empty_like(log_library_n), torch.empty_like(log_library_n)
    sums = [torch.empty_like(scale_g) for _ in range(3)]
    indptr, genes, counts = csr
    logit_gradients(
        family,
        scale_ng.numpy(),
        logits_ng.numpy(),
        (scale_g[:0] if log_theta_g is None else log_theta_g).numpy(),
        indptr.numpy(),
        genes.numpy().view(np.uint32),
        counts.numpy(),
        log_library_n.numpy(),
        weight_n.numpy(),
        nll_n.numpy(),
        by_library_n.numpy(),
        *(s.numpy() for s in sums),
    )
    return scale_ng, logits_ng, nll_n, by_library_n, sums


def _plain(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Contiguous, without autograd, as NumPy and oneDNN need them."""
    return tuple(None if t is None else t.detach().contiguous() for t in tensors)


def _blocks(n_cells: int, n_genes: int, zero_inflated: bool) -> list[slice]:
    """Even blocks of cells whose logits stay within ``_BLOCK_BYTES``."""
    per_cell = 4 * n_genes * (2 if zero_inflated else 1)
    number = max(1, math.ceil(n_cells * per_cell / _BLOCK_BYTES))
    edges = [n_cells * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


@torch.library.custom_op("vivace::cell_nll", mutates_args=(), device_types="cpu")
def cell_nll(
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
    indptr, genes, counts, hidden_nh, log_library_n = _plain(
        indptr, genes, counts, hidden_nh, log_library_n
    )
    heads = _plain(scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g)
    weight_n = torch.ones_like(log_library_n)
    nll_n = torch.empty_like(log_library_n)
    for rows in _blocks(len(hidden_nh), scale_hg.shape[1], dropout_hg is not None):
        csr = (indptr[rows.start : rows.stop + 1], genes, counts)
        nll_n[rows] = _logit_gradients(
            csr, hidden_nh[rows], heads, log_library_n[rows], weight_n[rows], family
        )[2]
    return nll_n


def _weighted(
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
    indptr, genes, counts, hidden_nh, log_library_n, weight_n = _plain(
        indptr, genes, counts, hidden_nh, log_library_n, weight_n
    )
    heads = _plain(scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g)
    scale_hg, dropout_hg = heads[0], heads[3]
    nll, by_library, by_hidden = [], [], []
    for rows in _blocks(len(hidden_nh), scale_hg.shape[1], dropout_hg is not None):
        here = hidden_nh[rows]
        csr = (indptr[rows.start : rows.stop + 1], genes, counts)
        scale_ng, logits_ng, nll_n, by_library_n, block_sums = _logit_gradients(
            csr, here, heads, log_library_n[rows], weight_n[rows], family
        )
        nll.append(nll_n)
        by_library.append(by_library_n)
        by_hidden.append(product(scale_ng, scale_hg.T))
        from_scale, from_dropout = product(here.T, scale_ng), scale_hg.new_empty(0)
        if dropout_hg is not None:
            from_dropout = product(here.T, logits_ng)
            by_hidden[-1] += product(logits_ng, dropout_hg.T)
        if len(nll) == 1:
            by_scale, by_dropout, sums = from_scale, from_dropout, block_sums
        else:
            by_scale += from_scale
            by_dropout += from_dropout
            for whole, part in zip(sums, block_sums, strict=True):
                whole += part
    total = torch.dot(_joined(nll), weight_n)
    by_scale_g, by_theta_g, by_dropout_g = sums
    return (
        total, _joined(by_hidden), by_scale, by_scale_g, by_theta_g, by_dropout, by_dropout_g,
        _joined(by_library),
    )  # fmt: skip


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


_weighted_nll = torch.library.custom_op(
    "vivace::weighted_nll", _weighted, mutates_args=(), device_types="cpu"
)


class _WeightedNLL(torch.autograd.Function):
    """The total, whose gradients are there before they are asked for.

    They wait in the context, not among the saved tensors, so that autograd may
    take them over without a copy; a second backward has nothing left to give.
    The plain function is called: the dispatch of a custom op takes as long as
    a small kernel.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        total, *ctx.grads = _weighted(*args)
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


def weighted_nll(*args: Tensor | int | None) -> Tensor:
    """Weighted sum of the losses, from the arguments of ``_weighted``."""
    total: Tensor = _WeightedNLL.apply(*args)  # type: ignore[no-untyped-call]
    return total


@cell_nll.register_fake
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


cell_nll.register_autograd(_recompute, setup_context=_save_inputs)
