"""Decoder state and head weights to the negative log-likelihood of each cell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vivace.config import GeneLikelihood
from vivace.errors import OptionError, ShapeError
from vivace.ops.backend import Backend, use_cpu_kernel
from vivace.ops.count_nll.likelihoods import (
    LIKELIHOODS,
    Activation,
    CountHeads,
    Likelihood,
)
from vivace.ops.count_nll.reference import count_nll_reference
from vivace.ops.csr import SparseCounts
from vivace.ops.runtime.workspace import Memory

Reduction = Literal["none", "sum", "mean"]

__all__ = [
    "LIKELIHOODS",
    "Activation",
    "CountHeads",
    "Likelihood",
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
    memory: Memory | None = None,
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
        "none" gives one value a cell; "sum" the weighted sum; "mean" the weighted sum divided by n.
    backend
        "auto", "reference" or "cpu" (not for "normal").
    memory
        Memory for arrays on the way, where no gradient is asked for; None for new ones.

    Returns
    -------
    Tensor, nats, shape (n,) or a scalar.  Differentiable in ``hidden_nh``,
    every head and ``log_library_n``.

    Raises
    ------
    ShapeError
        If shapes disagree; the message names them.
    OptionError
        If the heads do not fit the likelihood.

    Notes
    -----
    With "sum" and "mean" the CPU kernel computes the gradients in the pass that
    computes the loss, a block of cells at a time, and no array of size cells x
    genes outlives its block.  With "none" the gradient computes the heads again.
    Counts are not checked here; ``data/counts.py`` checks them once.  Theta is held
    between exp(-15) and exp(15).  Against float64 the kernel errs at most twice
    as much as the float32 reference.  Source: Lopez et al. 2018,
    doi:10.1038/s41592-018-0229-2; derivation in ``ops/count_nll/README.md``.

    Examples
    --------
    >>> counts = SparseCounts.from_dense(torch.zeros(1, 1))
    >>> heads = CountHeads(torch.zeros(2, 1), torch.zeros(1), log_theta_g=torch.zeros(1))
    >>> count_nll(counts, torch.zeros(1, 2), heads, torch.zeros(1), likelihood="nb")
    tensor([0.6931])
    """
    family = LIKELIHOODS[likelihood]
    _check(counts, hidden_nh, heads, log_library_n, weight_n, family)
    if backend == "cpu" and not family.counts:
        raise OptionError(f"backend='cpu' has no {likelihood!r}; use backend='reference'.")
    inputs = (hidden_nh, *heads.tensors()[:-1], log_library_n, weight_n)
    if family.counts and use_cpu_kernel(backend, *inputs, counts.values):
        from vivace.ops.count_nll.autograd import cell_nll, losses, weighted_nll

        csr = (counts.indptr, counts.genes, counts.values)
        softplus = activation == "softplus"
        if reduction == "none" or not torch.is_grad_enabled():
            nll_n: Tensor
            if torch.is_grad_enabled() or torch.compiler.is_compiling():
                nll_n = cell_nll(
                    *csr, hidden_nh, *heads.tensors(), log_library_n, family.code, softplus
                )
            else:
                passing = memory or Memory()
                nll_n = losses(csr, hidden_nh, heads, log_library_n, family.code, softplus, passing)
        else:
            share = 1.0 if reduction == "sum" else 1.0 / counts.n_cells
            weights = torch.full_like(log_library_n, share)
            if weight_n is not None:
                weights *= weight_n
            return weighted_nll(
                *csr, hidden_nh, *heads.tensors(), log_library_n, weights, family.code, softplus
            )
    else:
        nll_n = count_nll_reference(counts, hidden_nh, heads, log_library_n, activation, likelihood)
    if reduction == "none":
        return nll_n
    total = nll_n.sum() if weight_n is None else (nll_n * weight_n.detach()).sum()
    return total if reduction == "sum" else total / counts.n_cells


def _check(
    counts: SparseCounts,
    hidden_nh: Tensor,
    heads: CountHeads,
    log_library_n: Tensor,
    weight_n: Tensor | None,
    family: Likelihood,
) -> None:
    n, g = counts.n_cells, counts.n_genes
    hidden = hidden_nh.shape[-1]
    per_cell = family.dispersed and heads.theta_hg is not None
    tabled = family.dispersed and not per_cell
    table_shape = (g,)
    if heads.theta_row_n is not None and heads.log_theta_g is not None:
        table_shape = (len(heads.log_theta_g), g)  # type: ignore[assignment]
    needed: list[tuple[str, Tensor | None, tuple[int, ...], bool]] = [
        ("hidden_nh", hidden_nh, (n, hidden), True),
        ("scale_hg", heads.scale_hg, (hidden, g), True),
        ("scale_g", heads.scale_g, (g,), True),
        ("log_theta_g", heads.log_theta_g, table_shape, tabled),
        ("dropout_hg", heads.dropout_hg, (hidden, g), family.zero_inflated),
        ("dropout_g", heads.dropout_g, (g,), family.zero_inflated),
        ("theta_hg", heads.theta_hg, (hidden, g), per_cell),
        ("theta_bias_g", heads.theta_bias_g, (g,), per_cell),
        ("log_library_n", log_library_n, (n,), True),
    ]
    if heads.theta_row_n is not None:
        needed.append(("theta_row_n", heads.theta_row_n, (n,), tabled))
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
    """The kernel writes where these point."""
    if row_n.dtype != torch.int64 or (len(row_n) and not 0 <= row_n.min() <= row_n.max() < n_rows):
        raise OptionError(
            f"theta_row_n must hold int64 numbers from 0 to {n_rows - 1}, the rows of log_theta_g, "
            f"but is {row_n.dtype} from {row_n.min().item()} to {row_n.max().item()}."
        )
