"""Sparse counts times a dense weight: the encoder's first layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vivace.errors import ShapeError
from vivace.ops.backend import Backend, use_cpu_kernel
from vivace.ops.csr import SparseCounts
from vivace.ops.sparse_linear.reference import sparse_linear_reference

Transform = Literal["none", "log1p"]


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
    Tensor, shape (n, h).  Differentiable in ``weight_gh``.

    Raises
    ------
    ShapeError
        If the weight does not have one row a gene.

    Notes
    -----
    Kernel: at most twice the error of the float32 reference.  Source of the
    layer: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2; derivation in
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
            f"{counts.n_genes} genes; give it one row a gene."
        )
    # the logarithm in the wider of the two types: a float64 reference is float64 throughout
    values = counts.values.to(torch.promote_types(counts.values.dtype, weight_gh.dtype))
    if use_cpu_kernel(backend, weight_gh, values):
        from vivace.ops.sparse_linear.cpu import log1p_of, sparse_linear_cpu

        values = log1p_of(values) if transform == "log1p" else values
        out: Tensor = sparse_linear_cpu(counts.indptr, counts.genes, values, weight_gh)
        return out
    values = torch.log1p(values) if transform == "log1p" else values
    return sparse_linear_reference(
        SparseCounts(counts.indptr, counts.genes, values, counts.n_genes), weight_gh
    )
