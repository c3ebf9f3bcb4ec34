"""The Numba kernel as torch operations with gradients.

``weighted_nll`` is what training calls: the sum of the losses, with all its
gradients from the same pass over the cells.  ``cell_nll`` gives one value a
cell; its gradient is a weighted pass of its own.  What asks for no gradient calls
``losses``: the first call of a custom op imports torch's compiler, a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.ops.count_nll.cpu import logit_gradients
from vivace.ops.count_nll.likelihoods import CountHeads
from vivace.ops.runtime.products import product
from vivace.ops.runtime.workspace import Memory, NoMemory, Pair

_BLOCK_BYTES = 8 * 2**20  # logits of one block of cells, which should stay in the last cache
_BLOCK_CELLS = 128  # at least, since each block reads the weights
_MOST_BYTES = 32 * 2**20  # but no more than this
_NO_ROWS = np.empty(0, np.int64)
_NO_LOGITS = torch.empty((1, 0))
_NO_TABLE = np.empty((0, 0), np.float32)
_NO_CELLS = Pair.new(0, 0)


@dataclass
class _Pass:
    """What the kernel leaves of one block of cells: gradients in the logits, sums, losses."""

    scale_ng: Tensor
    dropout_ng: Tensor
    theta_ng: Tensor  # gradient in log theta of each cell, empty where all share one
    scale_g: Tensor
    theta_cg: Tensor  # gradient of the table of log theta, empty where a head gives it
    dropout_g: Tensor
    nll_n: Tensor
    library_n: Tensor


def _logit_gradients(
    csr: tuple[Tensor, Tensor, Tensor],
    hidden_nh: Tensor,
    heads: CountHeads,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
    softplus: bool,
    memory: Memory,
    gradients: bool,
) -> _Pass:
    n, g = hidden_nh.shape[0], heads.scale_g.shape[0]
    theta_row, theta = _NO_ROWS, _NO_CELLS
    if heads.theta_hg is not None:
        table_ng = product(hidden_nh, heads.theta_hg, heads.theta_bias_g)
        table = table_ng.numpy()
        theta_row, theta, theta_cg = np.arange(n), Pair(table_ng, table), Pair.new(0, g)
    else:
        given = heads.log_theta_g
        table = _NO_TABLE if given is None else given.numpy().reshape(-1, g)
        theta_cg = memory.pair("theta_cg", *table.shape)
        if heads.theta_row_n is not None:
            theta_row, theta = heads.theta_row_n.numpy(), memory.pair("theta_ng", n, g)
    scale_ng = product(hidden_nh, heads.scale_hg, heads.scale_g, memory.take("scale_ng", n, g))
    dropout_ng = _NO_LOGITS
    if heads.dropout_hg is not None:
        place = memory.take("dropout_ng", n, g)
        dropout_ng = product(hidden_nh, heads.dropout_hg, heads.dropout_g, place)
    of_cells = memory.pair("of_cells", 2, n)
    of_genes = memory.pair("of_genes", 2, g if gradients else 0)
    indptr, genes, counts = csr
    logit_gradients(
        family,
        softplus,
        scale_ng.numpy(),
        dropout_ng.numpy(),
        table,
        theta_row,
        theta.array,
        indptr.numpy(),
        genes.numpy().view(np.uint32),
        counts.numpy(),
        log_library_n.numpy(),
        weight_n.numpy(),
        of_cells.array,
        of_genes.array,
        theta_cg.array,
    )
    nll_n, library_n = of_cells.tensor
    scale_g, dropout_g = of_genes.tensor
    return _Pass(
        scale_ng, dropout_ng, theta.tensor, scale_g, theta_cg.tensor, dropout_g, nll_n, library_n
    )


def _plain(*tensors: Tensor | None) -> list[Any]:
    """Contiguous, without autograd, as NumPy and oneDNN need them."""
    return [None if t is None else t.detach().contiguous() for t in tensors]


def _plain_heads(*tensors: Tensor | None) -> CountHeads:
    """The heads from their fields, in order, as the kernel needs them."""
    return CountHeads(*_plain(*tensors))


def _blocks(n_cells: int, heads: CountHeads) -> list[slice]:
    """Even blocks of cells whose logits stay within ``_BLOCK_BYTES``, if that is cells enough."""
    n_heads = 1 + (heads.dropout_hg is not None) + (heads.theta_hg is not None)
    n_heads += heads.theta_row_n is not None  # as large as the logits of a head
    of_cell = 4 * heads.scale_g.shape[0] * n_heads
    size = min(max(_BLOCK_BYTES, _BLOCK_CELLS * of_cell), _MOST_BYTES)
    number = max(1, min(n_cells, math.ceil(n_cells * of_cell / size)))
    edges = [n_cells * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _passes(
    blocks: list[slice],
    csr_and_hidden: list[Any],
    heads: CountHeads,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
    softplus: bool,
    memory: Memory,
    gradients: bool = True,
) -> Any:
    """Rows, hidden state and pass of each block of cells, one after another.

    Without ``gradients`` a pass holds the losses, and nothing else that means anything.
    """
    indptr, genes, counts, hidden_nh = csr_and_hidden
    for rows in blocks:
        here = heads
        if heads.theta_row_n is not None:
            here = replace(heads, theta_row_n=_part(heads.theta_row_n, rows))
        hidden = _part(hidden_nh, rows)
        done = _logit_gradients(
            (_part(indptr, rows, 1), genes, counts),
            hidden,
            here,
            _part(log_library_n, rows),
            _part(weight_n, rows),
            family,
            softplus,
            memory,
            gradients,
        )
        yield rows, hidden, done


def _part(tensor: Tensor, rows: slice, beyond: int = 0) -> Tensor:
    """Those rows, and some beyond; itself if that is all, since a slice takes as long as a kernel."""
    stop = rows.stop + beyond
    return tensor if stop - rows.start == tensor.shape[0] else tensor[rows.start : stop]


def _cell_nll(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    hidden_nh: Tensor,
    scale_hg: Tensor,
    scale_g: Tensor,
    log_theta_g: Tensor | None,
    dropout_hg: Tensor | None,
    dropout_g: Tensor | None,
    theta_hg: Tensor | None,
    theta_bias_g: Tensor | None,
    theta_row_n: Tensor | None,
    log_library_n: Tensor,
    family: int,
    softplus: bool,
) -> Tensor:
    """Negative log-likelihood of each cell, shape (n,), without a gradient."""
    heads = CountHeads(
        scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g, theta_hg, theta_bias_g, theta_row_n
    )
    csr = (indptr, genes, counts)
    return losses(csr, hidden_nh, heads, log_library_n, family, softplus, Memory())


def losses(
    csr: tuple[Tensor, Tensor, Tensor],
    hidden_nh: Tensor,
    heads: CountHeads,
    log_library_n: Tensor,
    family: int,
    softplus: bool,
    memory: Memory,
) -> Tensor:
    """Negative log-likelihood of each cell, shape (n,), new; ``memory`` is used on the way."""
    csr_and_hidden = _plain(*csr, hidden_nh)
    (log_library_n,) = _plain(log_library_n)
    heads = _plain_heads(*heads.tensors())
    weight_n = torch.ones_like(log_library_n)
    blocks = _blocks(len(weight_n), heads)
    passes = _passes(
        blocks, csr_and_hidden, heads, log_library_n, weight_n, family, softplus, memory, False
    )
    return torch.cat([done.nll_n.clone() for *_, done in passes])


cell_nll = torch.library.custom_op(
    "vivace::cell_nll", _cell_nll, mutates_args=(), device_types="cpu"
)


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
    theta_hg: Tensor | None,
    theta_bias_g: Tensor | None,
    theta_row_n: Tensor | None,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
    softplus: bool,
) -> list[Tensor]:
    """Weighted sum of the losses and its gradients in hidden_nh, the heads and the library.

    In the order of the arguments, an empty tensor for each that is not there
    and for ``theta_row_n``, which has none.
    """
    csr_and_hidden = _plain(indptr, genes, counts, hidden_nh)
    heads = _plain_heads(
        scale_hg, scale_g, log_theta_g, dropout_hg, dropout_g, theta_hg, theta_bias_g, theta_row_n
    )
    log_library_n, weight_n = _plain(log_library_n, weight_n)
    found = weighted_gradients(csr_and_hidden, heads, log_library_n, weight_n, family, softplus)
    by_heads = [hidden_nh.new_empty(0) if t is None else t for t in found.heads.tensors()]
    # the gradients of the biases, and that of the library, are rows of larger tensors,
    # which a custom op must not return
    by_heads[1], by_heads[4] = by_heads[1].clone(), by_heads[4].clone()
    return [found.total, found.hidden_nh, *by_heads, found.library_n.clone()]


@dataclass(frozen=True)
class WeightedGradients:
    """The weighted sum of the losses, and its gradients.

    Parameters
    ----------
    total
        Tensor, scalar.
    hidden_nh, library_n
        Gradients in the hidden state and the log library.
    heads
        Gradients in the heads, of their shapes; None for what is not there.
    """

    total: Tensor
    hidden_nh: Tensor
    heads: CountHeads
    library_n: Tensor


def weighted_gradients(
    csr_and_hidden: list[Tensor],
    heads: CountHeads,
    log_library_n: Tensor,
    weight_n: Tensor,
    family: int,
    softplus: bool,
    memory: Memory | None = None,
) -> WeightedGradients:
    """Weighted sum of the losses and its gradients, without autograd.

    ``csr_and_hidden`` are indptr, genes, counts and the hidden state; all
    tensors are contiguous float32 ones that need no gradient.  With ``memory``
    the results are overwritten by the next call that has it.
    """
    blocks = _blocks(len(weight_n), heads)
    if memory is None or len(blocks) > 1:
        memory = NoMemory()
    found = [
        _block_gradients(here, done, heads, _part(weight_n, rows), memory)
        for rows, here, done in _passes(
            blocks, csr_and_hidden, heads, log_library_n, weight_n, family, softplus, memory
        )
    ]
    if len(found) == 1:
        return found[0]
    return WeightedGradients(
        total=torch.stack([b.total for b in found]).sum(),
        hidden_nh=torch.cat([b.hidden_nh for b in found]),
        heads=CountHeads(*map(_sum, zip(*(b.heads.tensors() for b in found), strict=True))),
        library_n=torch.cat([b.library_n for b in found]),
    )


def _sum(parts: tuple[Tensor | None, ...]) -> Any:
    total, *rest = parts
    for part in rest:
        if total is not None and part is not None:
            total += part
    return total


def _block_gradients(
    here_nh: Tensor, done: _Pass, heads: CountHeads, weight_n: Tensor, memory: Memory
) -> WeightedGradients:
    """From the gradients in the logits of a block of cells to those in what made them."""
    here_hn = here_nh.T
    n, h, g = *here_nh.shape, len(heads.scale_g)
    by_hidden_nh = product(done.scale_ng, heads.scale_hg.T, out=memory.take("hidden", n, h))
    by_dropout_hg = by_theta_hg = by_theta_bias_g = None
    if heads.dropout_hg is not None:
        by_dropout_hg = product(here_hn, done.dropout_ng, out=memory.take("dropout", h, g))
        by_hidden_nh += product(done.dropout_ng, heads.dropout_hg.T, out=memory.take("more", n, h))
    if heads.theta_hg is not None:
        by_theta_hg, by_theta_bias_g = product(here_hn, done.theta_ng), done.theta_ng.sum(0)
        by_hidden_nh += product(done.theta_ng, heads.theta_hg.T)
    by_heads = CountHeads(
        product(here_hn, done.scale_ng, out=memory.take("scale", h, g)),
        done.scale_g,
        None if heads.log_theta_g is None else done.theta_cg.view(heads.log_theta_g.shape),
        by_dropout_hg,
        None if heads.dropout_g is None else done.dropout_g,
        by_theta_hg,
        by_theta_bias_g,
    )
    return WeightedGradients(
        torch.dot(done.nll_n, weight_n), by_hidden_nh, by_heads, done.library_n
    )


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
        ctx.there = [t is not None for t in args[3:13]]
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("The gradient of count_nll can be taken once; compute it again.")
        grads, ctx.grads = ctx.grads, None
        upstream = grad_outputs[0].item()
        if upstream != 1.0:
            grads = [g.mul_(upstream) for g in grads]
        # nothing for the CSR arrays, for weight_n and for the two options
        return None, None, None, *_arranged(grads, ctx.there), None, None, None


def weighted_nll(*args: Tensor | int | None) -> Tensor:
    """Weighted sum of the losses, from the arguments of ``_weighted``."""
    total: Tensor = _WeightedNLL.apply(*args)  # type: ignore[no-untyped-call]
    return total


def _arranged(grads: list[Tensor], there: list[bool]) -> list[Tensor | None]:
    """The gradients of hidden_nh, the heads and the library; None where there is no such input."""
    found: list[Tensor | None] = [g if t else None for g, t in zip(grads, there, strict=True)]
    found[-2] = None  # theta_row_n, which is not a number
    return found


@cell_nll.register_fake
def _(indptr: Tensor, genes: Tensor, counts: Tensor, hidden_nh: Tensor, *_rest: object) -> Tensor:
    return hidden_nh.new_empty(len(hidden_nh))


@_weighted_nll.register_fake
def _(indptr: Tensor, genes: Tensor, counts: Tensor, hidden_nh: Tensor, *rest: Any) -> list[Tensor]:
    *heads, log_library_n, _weight_n, _family, _softplus = rest
    new = hidden_nh.new_empty
    shapes = [new(0) if t is None else new(t.shape) for t in heads[:-1]]
    return [new(()), new(hidden_nh.shape), *shapes, new(0), new(log_library_n.shape)]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-2])
    ctx.options = inputs[-2:]


def _recompute(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    _, *grads = _weighted_nll(*inputs, grad_n, *ctx.options)
    return None, None, None, *_arranged(grads, [t is not None for t in inputs[3:]]), None, None


cell_nll.register_autograd(_recompute, setup_context=_save_inputs)
