"""Pieces that encoder and decoder share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

from vivace.ops.runtime.products import linear
from vivace.ops.runtime.threads import on_one_thread


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a single cell too, and that can be frozen.

    One cell has no variance: it is normalised by the running statistics, in
    training as in evaluation, and leaves them as they are.  So are all cells where
    it is ``frozen``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    frozen = False

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, eps=1e-3, momentum=0.01)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and not self.uses_minibatch(len(input)):
            return batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.training and input.device.type == "cpu" and not self.frozen:
            self.num_batches_tracked.add_(1)
            arguments = (input, self.weight, self.bias, self.running_mean, self.running_var)
            out: Tensor = _OwnNorm.apply(*arguments, self.momentum, self.eps)  # type: ignore[no-untyped-call]
            return out
        return super().forward(input)

    def uses_minibatch(self, n_cells: int) -> bool:
        """Whether training normalises so many cells by their own statistics."""
        return n_cells > 1 and not self.frozen

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics by those of a minibatch of n cells."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        self.num_batches_tracked.add_(1)


class _OwnNorm(torch.autograd.Function):
    """torch's batch norm by the minibatch's statistics, on one thread.

    On several, torch adds a sum for each thread, and their number shows in the last bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_nh: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        with on_one_thread():
            out, mean, inv_std = torch.native_batch_norm(
                x_nh, weight, bias, running_mean, running_variance, True, momentum, eps
            )
        ctx.save_for_backward(x_nh, weight, mean, inv_std)
        ctx.eps = eps
        ctx.mark_non_differentiable(running_mean, running_variance)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        x_nh, weight, mean, inv_std = ctx.saved_tensors
        with on_one_thread():
            gradients = torch.ops.aten.native_batch_norm_backward(
                by_out, x_nh, weight, None, None, mean, inv_std, True, ctx.eps, [True, True, True]
            )
        return (*gradients, None, None, None, None)


class Activation(nn.Module):
    """What follows each hidden linear map: batch norm, layer norm, ReLU, dropout."""

    def __init__(
        self, n_hidden: int, *, batch_norm: bool, layer_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(n_hidden) if batch_norm else nn.Identity()
        self.layer_norm = (
            nn.LayerNorm(n_hidden, elementwise_affine=False) if layer_norm else nn.Identity()
        )
        self.dropout = dropout

    def forward(self, x_nh: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x_nh = self.layer_norm(self.batch_norm(x_nh)).relu()
        if self.training and self.dropout > 0:
            x_nh = x_nh * dropout_mask(x_nh, self.dropout, generator)
        return x_nh


def dropout_bits(shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
    """16 uniform random bits a unit, int16, cut from 64-bit draws.

    A uniform float or a Bernoulli draw a unit takes four times as long.
    """
    units = math.prod(shape)
    words = torch.empty((units + 3) // 4, dtype=torch.int64, device=device)
    bits: Tensor = words.random_(-(2**63), None, generator=generator).view(torch.int16)
    return bits[:units].view(shape)


def dropout_threshold(rate: float) -> tuple[int, float]:
    """What the bits are compared with, and the scale of the units that are kept.

    Units whose bits are below the threshold are dropped.  The rate is rounded to
    a multiple of 2**-16, and the scale is that of the rounded rate.
    """
    steps = min(round(rate * 2**16), 2**16 - 1)
    return steps - 2**15, 2**16 / (2**16 - steps)


def dropout_mask(x_nh: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """1 / (1 - rate) where a unit is kept, 0 elsewhere, shaped as ``x_nh``."""
    threshold, scale = dropout_threshold(rate)
    kept = dropout_bits(tuple(x_nh.shape), generator, x_nh.device) >= threshold
    return kept.to(x_nh.dtype).mul_(scale)


class Linear(nn.Module):
    """``x @ weight + bias`` with the weight stored input-major, shape (inputs, outputs).

    The CPU kernels read it that way; ``nn.Linear`` stores the transpose.  The
    initial values are drawn as ``nn.Linear`` draws them.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(max(n_in, 1))
        self.weight = nn.Parameter(torch.empty(n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def columns_of(n_categories: Iterable[int]) -> tuple[int, ...]:
    """One-hot columns of each covariate: a single category needs none."""
    return tuple(n if n > 1 else 0 for n in n_categories)


def joined(*parts: Tensor | None) -> Tensor:
    """The parts that are there and not empty, side by side."""
    there = [p for p in parts if p is not None and p.shape[1] > 0]
    return there[0] if len(there) == 1 else torch.cat(there, dim=1)
