"""Pieces that encoder and decoder share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a single cell too.

    One cell has no variance: it is normalised by the running statistics, in
    training as in evaluation, and leaves them as they are.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, eps=1e-3, momentum=0.01)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


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
            keep = 1.0 - self.dropout
            # uniform draws: torch's bernoulli_ takes twice as long with a generator
            drawn = torch.rand(x_nh.shape, generator=generator, device=x_nh.device)
            x_nh = x_nh * (drawn < keep).to(x_nh.dtype).div_(keep)
        return x_nh


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
        return torch.addmm(self.bias, x, self.weight)


def joined(*parts: Tensor | None) -> Tensor:
    """The parts that are there and not empty, side by side."""
    there = [p for p in parts if p is not None and p.shape[1] > 0]
    return there[0] if len(there) == 1 else torch.cat(there, dim=1)
