"""Decoder state and head weights to the negative log-likelihood of each cell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vivace.config import GeneLikelihood
from vivace.errors import OptionError, ShapeError
from vivace.ops.backend import Backend, pick
from vivace.ops.count_nll import reference
from vivace.ops.count_nll.differentiable import cell_nll, weighted_nll
from vivace.ops.count_nll.interface import (
    Activation,
    CountHeads,
    CountNLLInputs,
    NLLBackend,
    NLLGradients,
)
from vivace.ops.count_nll.likelihoods import LIKELIHOODS, Likelihood
from vivace.ops.csr import SparseCounts

Reduction = Literal["none", "sum", "mean"]

__all__ = [
    "LIKELIHOODS",
    "Activation",
    "CountHeads",
    "CountNLLInputs",
    "Likelihood",
    "NLLBackend",
    "NLLGradients",
    "Reduction",
    "count_nll",
]


def count_nll(
    counts: SparseCounts,
    hidden_nh: Tensor,
    heads: CountHeads,
    log_library_n: Tensor,
    *,
    likelihood: GeneLikelihood,
    activation: Activation = "softmax",
    weight_n: Tensor | None = None,
    reduction: Reduction = "none",
    backend: Backend = "auto",
) -> Tensor:
    """Negative log-likelihood of counts, from the decoder's hidden state.

    The mean of a gene is ``library * softmax(hidden @ scale_hg + scale_g)``
    (or ``library * softplus(.)``).

    Parameters
    ----------
    counts
        SparseCounts, n cells x g genes, molecules, >= 0.
    hidden_nh
        Tensor, shape (n, h), last hidden layer of the decoder.
    heads
        CountHeads.
    log_library_n
        Tensor, shape (n,), natural log of the library size.
    likelihood
        "zinb", "nb", "poisson" or "normal".
    activation
        "softmax" over genes, or "softplus" gene by gene.
    weight_n
        Tensor, shape (n,), weight of each cell in "sum" and "mean"; None for 1.
    reduction
        "none" gives one value per cell, "sum" the weighted sum, "mean" the weighted sum divided
        by n.
    backend
        "auto", "reference" or "cpu" (not for "normal").

    Returns
    -------
    Tensor, nats, shape (n,) or a scalar. Differentiable in ``hidden_nh``, every head and
    ``log_library_n``.

    Raises
    ------
    ShapeError
        If shapes disagree; the message names them.
    OptionError
        If the heads do not fit the likelihood.

    Notes
    -----
    With "sum" and "mean" the CPU kernels compute the gradients in the pass that computes the
    loss, a block of cells at a time, and no array of size cells x genes outlives its block.
    With "none" the backward pass computes the heads again. Counts are not checked here;
    ``data/checks.py`` checks them once. Theta is held between exp(-15) and exp(15). Against
    float64 the kernels err at most twice as much as the float32 reference. Source: Lopez et
    al. 2018, doi:10.1038/s41592-018-0229-2; derivation in ``ops/count_nll/README.md``.

    Examples
    --------
    >>> counts = SparseCounts.from_dense(torch.zeros(1, 1))
    >>> heads = CountHeads(torch.zeros(2, 1), torch.zeros(1), log_theta_g=torch.zeros(1))
    >>> count_nll(counts, torch.zeros(1, 2), heads, torch.zeros(1), likelihood="nb")
    tensor([0.6931])
    """
    inputs = CountNLLInputs(
        counts=counts,
        hidden_nh=hidden_nh,
        heads=heads,
        log_library_n=log_library_n,
        likelihood=likelihood,
        activation=activation,
    )
    _check(inputs, weight_n)
    kernels = _pick_kernels(inputs, backend, weight_n)
    if kernels is reference:
        nll_n = reference.nll(inputs)  # torch differentiates it
    elif not torch.is_grad_enabled():
        nll_n = kernels.nll(inputs)
    elif reduction == "none":
        return cell_nll(kernels, inputs)
    else:
        weights = torch.full_like(
            log_library_n, 1.0 if reduction == "sum" else 1.0 / counts.n_cells
        )
        if weight_n is not None:
            weights *= weight_n
        return weighted_nll(kernels, inputs, weights)
    if reduction == "none":
        return nll_n
    total = nll_n.sum() if weight_n is None else (nll_n * weight_n.detach()).sum()
    return total if reduction == "sum" else total / counts.n_cells


def _pick_kernels(
    inputs: CountNLLInputs, backend: Backend = "auto", weight_n: Tensor | None = None
) -> NLLBackend:
    """Return the module whose ``nll`` and ``nll_and_gradients`` can read these inputs."""
    if not LIKELIHOODS[inputs.likelihood].counts:
        if backend not in ("auto", "reference"):
            raise OptionError(
                f"backend={backend!r} has no {inputs.likelihood!r}; use backend='reference'."
            )
        backend = "reference"
    weights = inputs.heads.tensors()[:-1]  # all but the row numbers
    floats = (inputs.hidden_nh, *weights, inputs.log_library_n, inputs.counts.values, weight_n)
    kernels: NLLBackend = pick("count_nll", backend, *floats)
    return kernels


def _check(inputs: CountNLLInputs, weight_n: Tensor | None) -> None:
    """Refuse tensors whose shapes disagree, and heads that do not fit the likelihood."""
    heads, family = inputs.heads, LIKELIHOODS[inputs.likelihood]
    inputs.counts.check()
    n, g = inputs.counts.n_cells, inputs.counts.n_genes
    hidden = inputs.hidden_nh.shape[-1]
    has_head = family.dispersed and heads.theta_hg is not None
    has_table = family.dispersed and not has_head
    table_shape: tuple[int, ...] = (g,)
    if heads.theta_row_n is not None and heads.log_theta_g is not None:
        table_shape = (len(heads.log_theta_g), g)
    # name, tensor, the shape it must have, and whether it must be there at all
    needed: list[tuple[str, Tensor | None, tuple[int, ...], bool]] = [
        ("hidden_nh", inputs.hidden_nh, (n, hidden), True),
        ("scale_hg", heads.scale_hg, (hidden, g), True),
        ("scale_g", heads.scale_g, (g,), True),
        ("log_theta_g", heads.log_theta_g, table_shape, has_table),
        ("dropout_hg", heads.dropout_hg, (hidden, g), family.zero_inflated),
        ("dropout_g", heads.dropout_g, (g,), family.zero_inflated),
        ("theta_hg", heads.theta_hg, (hidden, g), has_head),
        ("theta_bias_g", heads.theta_bias_g, (g,), has_head),
        ("log_library_n", inputs.log_library_n, (n,), True),
    ]
    if heads.theta_row_n is not None:
        needed.append(("theta_row_n", heads.theta_row_n, (n,), has_table))
    if weight_n is not None:
        needed.append(("weight_n", weight_n, (n,), True))
    for name, tensor, shape, wanted in needed:
        if (tensor is not None) != wanted:
            raise OptionError(
                f"likelihood {family.name!r} {'needs' if wanted else 'has no'} {name}; "
                f"{'give it' if wanted else 'leave it None'}."
            )
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"{name} has shape {tuple(tensor.shape)}, but counts of {n} cells x {g} genes and "
                f"{hidden} hidden units need {shape}."
            )
    if heads.theta_row_n is not None and heads.log_theta_g is not None:
        _check_rows(heads.theta_row_n, len(heads.log_theta_g))


def _check_rows(row_n: Tensor, n_rows: int) -> None:
    """Refuse numbers of rows that do not exist; the kernels write to those rows."""
    if row_n.dtype != torch.int64 or (len(row_n) and not 0 <= row_n.min() <= row_n.max() < n_rows):
        raise OptionError(
            f"theta_row_n must hold int64 numbers from 0 to {n_rows - 1}, the rows of log_theta_g, "
            f"but is {row_n.dtype} from {row_n.min().item()} to {row_n.max().item()}."
        )
