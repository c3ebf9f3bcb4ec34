"""Plain PyTorch reference, on any device and in any float type: dense products."""

from __future__ import annotations

import torch
from torch import Tensor

from vivace.ops.csr import SparseCounts


def log1p(values: Tensor) -> Tensor:
    """``log(1 + x)``."""
    return torch.log1p(values)


def product(counts: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``x @ weight``, shape (n, h); torch differentiates it."""
    return counts.dense(weight_gh.dtype) @ weight_gh


def weight_gradient(counts: SparseCounts, grad_nh: Tensor) -> Tensor:
    """``x.T @ grad``, shape (g, h): the gradient in the weight, from that in the product."""
    return counts.dense(grad_nh.dtype).T @ grad_nh
