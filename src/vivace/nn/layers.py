"""Layers that encoders and decoders share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

from vivace.nn.category_rows import OneHotRows, TableRows
from vivace.nn.surgery import Role, Surgery
from vivace.ops.runtime.products import linear
from vivace.ops.runtime.threads import on_one_thread
from vivace.types import F64

# ---- linear maps ------------------------------------------------------------


class Linear(nn.Module):
    """``x @ weight + bias`` with the weight stored input-major, shape (inputs, outputs).

    The CPU kernels read it that way; ``nn.Linear`` stores the transpose. The initial
    values have the distribution of those of ``nn.Linear``.

    Parameters
    ----------
    n_in, n_out
        Inputs and outputs.
    generator
        Of the initial values; None for torch's global one.
    """

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(max(n_in, 1))
        weight, bias = (
            torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            for shape in ((n_in, n_out), (n_out,))
        )
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def fill_bias(self, values: F64) -> None:
        """Start at these outputs, shape (outputs,), where the inputs are zero."""
        fill(self.bias, values)


class CategoryLinear(Linear):
    """A linear map whose last inputs are one-hot categories.

    Parameters
    ----------
    n_in, n_out
        Inputs before the one-hot columns, and outputs.
    one_hot_sizes
        One-hot columns of each covariate, the batch first; 0 for a covariate without columns.
    role
        Role of the layer in the network; None if no flag unfreezes the whole layer.
    generator
        Of the initial values.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        one_hot_sizes: tuple[int, ...] = (),
        role: Role | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_in + sum(one_hot_sizes), n_out, generator)
        self.role = role
        self.category_rows = {"weight": OneHotRows(one_hot_sizes)}


class BatchEmbedding(nn.Embedding):
    """A learned vector for each batch."""

    def __init__(
        self, n_batches: int, n_dimensions: int, generator: torch.Generator | None = None
    ) -> None:
        values = torch.empty(n_batches, n_dimensions, dtype=torch.float32)
        values.normal_(generator=generator)
        super().__init__(n_batches, n_dimensions, _weight=values)
        self.category_rows = {"weight": TableRows("batch")}


def join_columns(*parts: Tensor | None) -> Tensor:
    """The parts side by side, except those that are None or have no columns."""
    present = [part for part in parts if part is not None and part.shape[1] > 0]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def fill(tensor: Tensor | None, values: F64) -> None:
    """Copy values into a parameter or buffer, every row of it, unless it is None or frozen."""
    frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    if tensor is not None and not frozen:
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values).to(tensor.dtype))


# ---- what follows a hidden linear map ---------------------------------------


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that also accepts a single cell and can be frozen.

    A single cell has no variance. Training normalises it by the running statistics, as
    evaluation does, and leaves them unchanged. Where the layer is ``frozen``, this holds
    for minibatches of any size.

    Parameters
    ----------
    n_features
        Columns.
    role
        Role of the layer in the network; None if it is always frozen for a query.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    frozen = False

    def __init__(self, n_features: int, role: Role | None = None) -> None:
        super().__init__(n_features, eps=1e-3, momentum=0.01, dtype=torch.float32)
        self.role = role

    def forward(self, input: Tensor) -> Tensor:
        if self.training and not self.uses_minibatch(len(input)):
            return batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.training and input.device.type == "cpu" and not self.frozen:
            self.num_batches_tracked.add_(1)
            arguments = (input, self.weight, self.bias, self.running_mean, self.running_var)
            out: Tensor = _MinibatchNorm.apply(*arguments, self.momentum, self.eps)  # type: ignore[no-untyped-call]
            return out
        return super().forward(input)

    def uses_minibatch(self, n_cells: int) -> bool:
        """Whether training normalises this many cells by their own statistics."""
        return n_cells > 1 and not self.frozen

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of a minibatch of n cells."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        self.num_batches_tracked.add_(1)

    def freeze(self, surgery: Surgery) -> None:
        """Use the running statistics, where the flags say so."""
        self.frozen = not surgery.trains(self.role)


class _MinibatchNorm(torch.autograd.Function):
    """torch's batch norm by the statistics of the minibatch, on one thread.

    On several threads torch adds one partial sum per thread, so the last bit depends on
    their number.
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
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x_nh, weight, mean, inv_std = ctx.saved_tensors
        with on_one_thread():
            gradients = torch.ops.aten.native_batch_norm_backward(
                grad_out, x_nh, weight, None, None, mean, inv_std, True, ctx.eps, [True, True, True]
            )
        return (*gradients, None, None, None, None)


class Activation(nn.Module):
    """The operations after a hidden linear map: batch norm, layer norm, ReLU, dropout.

    Parameters
    ----------
    n_hidden
        Columns.
    batch_norm, layer_norm
        Whether each is there; layer norm has no parameters.
    dropout
        Fraction of units dropped in training.
    norm_role
        Role of batch norm in the network.
    """

    def __init__(
        self,
        n_hidden: int,
        *,
        batch_norm: bool,
        layer_norm: bool,
        dropout: float,
        norm_role: Role | None = None,
    ) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(n_hidden, norm_role) if batch_norm else nn.Identity()
        self.layer_norm = (
            nn.LayerNorm(n_hidden, elementwise_affine=False) if layer_norm else nn.Identity()
        )
        self.dropout = dropout

    def forward(self, x_nh: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x_nh = self.layer_norm(self.batch_norm(x_nh)).relu()
        if self.training and self.dropout > 0:
            x_nh = x_nh * dropout_mask(x_nh, self.dropout, generator)
        return x_nh

    def freeze(self, surgery: Surgery) -> None:
        """Train without dropout, where the flags say so."""
        if surgery.freeze_dropout:
            self.dropout = 0.0


def hidden_layers(
    n_in: int,
    n_hidden: int,
    n_layers: int,
    one_hot_sizes: tuple[int, ...],
    *,
    inject: bool,
    batch_norm: bool,
    layer_norm: bool,
    dropout: float,
    input_role: Role,
    norm_role: Role,
    generator: torch.Generator | None = None,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The linear maps of some hidden layers, and what follows each of them.

    Parameters
    ----------
    n_in
        Inputs of the first layer before the one-hot columns.
    n_hidden, n_layers
        Units of each layer, and number of layers.
    one_hot_sizes
        One-hot columns of each categorical covariate.
    inject
        Whether one-hot columns enter every layer, not only the first.
    batch_norm, layer_norm, dropout
        As in :class:`Activation`.
    input_role, norm_role
        Roles of the first linear map and of batch norm.
    generator
        Of the initial values.
    """
    first = CategoryLinear(n_in, n_hidden, one_hot_sizes, input_role, generator)
    injected = one_hot_sizes if inject else ()
    deeper = (
        CategoryLinear(n_hidden, n_hidden, injected, generator=generator)
        for _ in range(n_layers - 1)
    )
    linears = nn.ModuleList([first, *deeper])
    activations = nn.ModuleList(
        Activation(
            n_hidden,
            batch_norm=batch_norm,
            layer_norm=layer_norm,
            dropout=dropout,
            norm_role=norm_role,
        )
        for _ in range(n_layers)
    )
    return linears, activations


def dropout_bits(shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
    """16 random bits per unit, int16, cut from random 64-bit integers.

    A uniform float or a Bernoulli sample per unit takes four times as long.
    """
    units = math.prod(shape)
    words = torch.empty((units + 3) // 4, dtype=torch.int64, device=device)
    bits: Tensor = words.random_(-(2**63), None, generator=generator).view(torch.int16)
    return bits[:units].view(shape)


def dropout_threshold(rate: float) -> tuple[int, float]:
    """The threshold of the bits, and the scale of the units that are kept.

    Units whose bits are below the threshold are dropped. The rate is rounded to a
    multiple of 2**-16, and the scale belongs to the rounded rate.
    """
    steps = min(round(rate * 2**16), 2**16 - 1)
    return steps - 2**15, 2**16 / (2**16 - steps)


def dropout_mask(x_nh: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """1 / (1 - rate) where a unit is kept and 0 elsewhere, shaped as ``x_nh``."""
    threshold, scale = dropout_threshold(rate)
    kept = dropout_bits(tuple(x_nh.shape), generator, x_nh.device) >= threshold
    return kept.to(x_nh.dtype).mul_(scale)
