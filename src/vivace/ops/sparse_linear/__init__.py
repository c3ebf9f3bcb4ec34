"""Sparse counts times a dense weight: the encoder's first layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vivace.errors import ShapeError
from vivace.ops.backend import Backend, pick
from vivace.ops.csr import SparseCounts
from vivace.ops.sparse_linear import reference

Transform = Literal["none", "log1p"]

__all__ = ["SparseLinearBackend", "Transform", "sparse_linear"]


class SparseLinearBackend(Protocol):
    """The functions of a backend of this operation; a module is one."""

    def log1p(self, values: Tensor) -> Tensor:
        """Transform of the counts."""

    def product(self, counts: SparseCounts, weight_gh: Tensor) -> Tensor:
        """``x @ weight``, shape (n, h)."""

    def weight_gradient(self, counts: SparseCounts, grad_nh: Tensor) -> Tensor:
        """``x.T @ grad``, shape (g, h)."""


def sparse_linear(
    counts: SparseCounts,
    weight_gh: Tensor,
    *,
    transform: Transform = "none",
    backend: Backend = "auto",
) -> Tensor:
    """``f(x) @ weight`` for sparse x, where f is the identity or log(1 + x).

    Parameters
    ----------
    counts
        SparseCounts, n cells x g genes, molecules.
    weight_gh
        Tensor, shape (g, h).
    transform
        "none", or "log1p" for log(1 + x), which keeps zeros zero.
    backend
        "auto", "reference" or "cpu".

    Returns
    -------
    Tensor, shape (n, h). Differentiable in ``weight_gh``.

    Raises
    ------
    ShapeError
        If the weight does not have one row per gene, or the counts are damaged.

    Notes
    -----
    The kernels err at most twice as much as the float32 reference. Source of the layer:
    Lopez et al. 2018, doi:10.1038/s41592-018-0229-2; derivation in
    ``ops/sparse_linear/README.md``.

    Examples
    --------
    >>> counts = SparseCounts.from_dense(torch.tensor([[0.0, 2.0]]))
    >>> sparse_linear(counts, torch.tensor([[1.0], [10.0]]))
    tensor([[20.]])
    """
    if weight_gh.ndim != 2 or len(weight_gh) != counts.n_genes:
        raise ShapeError(
            f"weight_gh has shape {tuple(weight_gh.shape)}, but the counts have "
            f"{counts.n_genes} genes; give it one row per gene."
        )
    counts.check()
    # the logarithm is taken in the wider of the two types
    values = counts.values.to(torch.promote_types(counts.values.dtype, weight_gh.dtype))
    kernels: SparseLinearBackend = pick("sparse_linear", backend, weight_gh, values)
    counts = replace(counts, values=kernels.log1p(values) if transform == "log1p" else values)
    if kernels is reference:
        return reference.product(counts, weight_gh)
    out: Tensor = _SparseLinear.apply(kernels, counts, weight_gh)  # type: ignore[no-untyped-call]
    return out


class _SparseLinear(Function):
    """The product of a backend with kernels, and its gradient in the weight."""

    @staticmethod
    def forward(
        ctx: Any, kernels: SparseLinearBackend, counts: SparseCounts, weight_gh: Tensor
    ) -> Tensor:
        ctx.kernels, ctx.counts = kernels, counts
        return kernels.product(counts, weight_gh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.kernels.weight_gradient(ctx.counts, grad_nh)
