"""The CPU backend, float32: matrix products by torch, the rest by Numba kernels.

Cells are taken in blocks whose logits stay in the processor's cache. No array of cells x
genes outlives its block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.ops.count_nll.interface import CountHeads, CountNLLInputs, NLLGradients
from vivace.ops.count_nll.nll_kernels import kernel_for
from vivace.ops.runtime.products import product
from vivace.ops.runtime.workspace import Pair, Workspace, thread_workspace

_BLOCK_BYTES = 8 * 2**20  # logits of one block of cells, which should stay in the last cache
_BLOCK_CELLS = 128  # at least, since each block reads the weights
_MOST_BYTES = 32 * 2**20  # but no more than this
_NO_ROWS = np.empty(0, np.int64)
_NO_LOGITS = torch.empty((1, 0), dtype=torch.float32)
_NO_TABLE = np.empty((0, 0), np.float32)
_NO_CELLS = Pair.new(0, 0)


def nll(inputs: CountNLLInputs) -> Tensor:
    """Negative log-likelihood of each cell, nats, shape (n,); a new tensor."""
    inputs = _plain(inputs)
    weight_n = torch.ones_like(inputs.log_library_n)
    losses = [
        # the next block overwrites the workspace
        _run_kernel(_select_cells(inputs, rows), _part(weight_n, rows), None).nll_n.clone()
        for rows in _blocks(inputs.counts.n_cells, inputs.heads)
    ]
    return losses[0] if len(losses) == 1 else torch.cat(losses)


def nll_and_gradients(
    inputs: CountNLLInputs, weight_n: Tensor, *, results: Workspace | None = None
) -> NLLGradients:
    """Sum of the cells' losses times their weights, and its gradients, from one pass.

    Parameters
    ----------
    inputs
        CountNLLInputs.
    weight_n
        Tensor, shape (n,), weight of each cell.
    results
        Workspace that the results may be written to: the next call with the same workspace
        overwrites them. None for new tensors.
    """
    inputs, weight_n = _plain(inputs), weight_n.detach().contiguous()
    blocks = _blocks(len(weight_n), inputs.heads)
    if len(blocks) > 1:
        results = None  # the blocks' results must outlive each other
    parts = []
    for rows in blocks:
        cells, weights = _select_cells(inputs, rows), _part(weight_n, rows)
        parts.append(_weight_gradients(cells, weights, results or Workspace()))
    if len(parts) == 1:
        return parts[0]
    return NLLGradients(
        total=torch.stack([part.total for part in parts]).sum(),
        hidden_nh=torch.cat([part.hidden_nh for part in parts]),
        heads=CountHeads(*map(_sum, zip(*(part.heads.tensors() for part in parts), strict=True))),
        log_library_n=torch.cat([part.log_library_n for part in parts]),
    )


# ---- blocks of cells --------------------------------------------------------------------


def _plain(inputs: CountNLLInputs) -> CountNLLInputs:
    """Contiguous and without autograd, as NumPy and oneDNN need the tensors."""
    tensors = inputs.tensors()
    if all(t is None or (t.is_contiguous() and not t.requires_grad) for t in tensors):
        return inputs  # as in the fused step, where this would take 1 % of the time
    tensors = tuple(None if t is None else t.detach().contiguous() for t in tensors)
    return CountNLLInputs.from_tensors(tensors, **inputs.options())


def _blocks(n_cells: int, heads: CountHeads) -> list[slice]:
    """Split the cells evenly into blocks whose logits fit into ``_BLOCK_BYTES``.

    A block has at least ``_BLOCK_CELLS`` cells where ``_MOST_BYTES`` allow that.
    """
    n_heads = 1 + (heads.dropout_hg is not None) + (heads.theta_hg is not None)
    n_heads += heads.theta_row_n is not None  # the cells' gradients in log theta
    cell_bytes = 4 * heads.scale_g.shape[0] * n_heads
    size = min(max(_BLOCK_BYTES, _BLOCK_CELLS * cell_bytes), _MOST_BYTES)
    number = max(1, min(n_cells, math.ceil(n_cells * cell_bytes / size)))
    edges = [n_cells * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _select_cells(inputs: CountNLLInputs, rows: slice) -> CountNLLInputs:
    counts = inputs.counts
    if rows.stop - rows.start == counts.n_cells:
        return inputs
    heads = inputs.heads
    if heads.theta_row_n is not None:
        heads = replace(heads, theta_row_n=heads.theta_row_n[rows])
    indptr = counts.indptr[rows.start : rows.stop + 1]
    return replace(
        inputs,
        counts=replace(counts, indptr=indptr),
        hidden_nh=inputs.hidden_nh[rows],
        heads=heads,
        log_library_n=inputs.log_library_n[rows],
    )


def _part(tensor: Tensor, rows: slice) -> Tensor:
    """Those rows; all of them without a slice, which would take as long as a small kernel."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _sum(parts: tuple[Tensor | None, ...]) -> Any:
    """Add up the blocks' gradients, into the first of them."""
    total, *rest = parts
    for part in rest:
        if total is not None and part is not None:
            total += part
    return total


# ---- one block ----------------------------------------------------------------------------


@dataclass
class _LogitGradients:
    """What the kernel leaves of a block of cells; without gradients only ``nll_n`` is set."""

    scale_ng: Tensor
    dropout_ng: Tensor
    theta_ng: Tensor  # gradient in log theta of each cell; empty where all share one
    scale_g: Tensor
    dropout_g: Tensor
    theta_cg: Tensor  # gradient in the table of log theta; empty where a head gives it
    nll_n: Tensor
    log_library_n: Tensor


def _run_kernel(
    inputs: CountNLLInputs, weight_n: Tensor, results: Workspace | None
) -> _LogitGradients:
    """Compute logits, losses and, with a workspace for results, the gradients in the logits.

    Arrays that are no results are the thread's and valid until its next call.
    """
    heads, counts, hidden_nh = inputs.heads, inputs.counts, inputs.hidden_nh
    n, g = hidden_nh.shape[0], counts.n_genes
    scratch, gradients = thread_workspace(), results is not None
    results = results or scratch

    # where the dispersions come from: a head, a row for each cell, or one row for all
    theta_row, theta_ng, theta_cg = _NO_ROWS, _NO_CELLS, _NO_CELLS
    if heads.theta_hg is not None:
        logits_ng = product(hidden_nh, heads.theta_hg, heads.theta_bias_g)
        theta_ng = Pair.view(logits_ng)
        theta_row, table = np.arange(n), theta_ng.array
    elif heads.log_theta_g is not None:
        table = heads.log_theta_g.numpy().reshape(-1, g)
        if gradients:
            theta_cg = results.pair("nll: theta", *table.shape)
        if heads.theta_row_n is not None:
            theta_row = heads.theta_row_n.numpy()
            if gradients:
                theta_ng = scratch.pair("nll: theta of cells", n, g)
    else:
        table = _NO_TABLE

    scale_ng = product(
        hidden_nh, heads.scale_hg, heads.scale_g, scratch.take("nll: scale logits", n, g)
    )
    dropout_ng = _NO_LOGITS
    if heads.dropout_hg is not None:
        place = scratch.take("nll: dropout logits", n, g)
        dropout_ng = product(hidden_nh, heads.dropout_hg, heads.dropout_g, place)
    per_cell = results.pair("nll: cells", 2, n)
    per_gene = results.pair("nll: genes", 2, g if gradients else 0)
    kernel_for(inputs.likelihood, inputs.activation)(
        scale_ng.numpy(),
        dropout_ng.numpy(),
        table,
        theta_row,
        theta_ng.array,
        counts.indptr.numpy(),
        counts.genes.numpy().view(np.uint32),
        counts.values.numpy(),
        inputs.log_library_n.numpy(),
        weight_n.numpy(),
        per_cell.array,
        per_gene.array,
        theta_cg.array,
        gradients,
    )
    nll_n, log_library_n = per_cell.tensor
    scale_g, dropout_g = per_gene.tensor
    return _LogitGradients(
        scale_ng,
        dropout_ng,
        theta_ng.tensor,
        scale_g,
        dropout_g,
        theta_cg.tensor,
        nll_n,
        log_library_n,
    )


def _weight_gradients(inputs: CountNLLInputs, weight_n: Tensor, results: Workspace) -> NLLGradients:
    """Go on from the gradients in the logits of a block of cells to those in what made them."""
    logits = _run_kernel(inputs, weight_n, results)
    heads, hidden_nh = inputs.heads, inputs.hidden_nh
    n, h, g = *hidden_nh.shape, inputs.counts.n_genes
    hidden_hn = hidden_nh.T
    grad_hidden_nh = product(
        logits.scale_ng, heads.scale_hg.T, out=results.take("nll: hidden", n, h)
    )
    dropout_hg = theta_hg = theta_bias_g = None
    if heads.dropout_hg is not None:
        dropout_hg = product(hidden_hn, logits.dropout_ng, out=results.take("nll: dropout", h, g))
        place = thread_workspace().take("nll: hidden of a head", n, h)
        grad_hidden_nh += product(logits.dropout_ng, heads.dropout_hg.T, out=place)
    if heads.theta_hg is not None:
        theta_hg, theta_bias_g = product(hidden_hn, logits.theta_ng), logits.theta_ng.sum(0)
        grad_hidden_nh += product(logits.theta_ng, heads.theta_hg.T)
    return NLLGradients(
        total=torch.dot(logits.nll_n, weight_n),
        hidden_nh=grad_hidden_nh,
        heads=CountHeads(
            scale_hg=product(hidden_hn, logits.scale_ng, out=results.take("nll: scale", h, g)),
            scale_g=logits.scale_g,
            log_theta_g=None
            if heads.log_theta_g is None
            else logits.theta_cg.view(heads.log_theta_g.shape),
            dropout_hg=dropout_hg,
            dropout_g=None if heads.dropout_g is None else logits.dropout_g,
            theta_hg=theta_hg,
            theta_bias_g=theta_bias_g,
        ),
        log_library_n=logits.log_library_n,
    )
