"""Plain PyTorch reference: make the counts dense and multiply."""

from __future__ import annotations

from torch import Tensor

from vivace.ops.csr import SparseCounts


def sparse_linear_reference(counts: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``x @ weight`` on any device and in any float type, shape (n, h)."""
    return counts.dense(weight_gh.dtype) @ weight_gh
