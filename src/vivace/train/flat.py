"""A network's parameters in one buffer while it is trained.

The optimiser, the check that weights are finite and a copy of the weights are then
one call each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivace.nn import VAE, trained_parts

# Every tensor starts at a multiple of 64 bytes, as torch's own allocations do: the results of
# MKL's products may depend on it. The padding is zero and stays zero.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Stretch:
    """Consecutive numbers of the buffer that are trained.

    Parameters
    ----------
    start, stop
        Their first position, and the one after their last.
    parameter
        The parameter that they belong to.
    rows
        The rows of it that they hold; None for all.
    is_matrix
        Whether the parameter multiplies something. A table of dispersions does
        not: it is a list of vectors.
    """

    start: int
    stop: int
    parameter: nn.Parameter
    rows: slice | None
    is_matrix: bool


class FlatWeights:
    """The numbers of a network, whose tensors are views into these buffers.

    Parameters
    ----------
    network
        VAE; each of its tensors gets the memory of its part of a buffer. Parameters
        with gradients come first (matrices, then vectors), then frozen parameters and
        batch norm's running statistics.

    Attributes
    ----------
    values
        Tensor, shape (m,), parameters and statistics.
    gradients
        Tensor, shape (t,), places for gradients of the first t values; zero at first. The
        fused step writes them, except for some large ones (``train/step/README.md``);
        autograd keeps its own.
    counters
        Tensor, int64, shape (c,), minibatches that each batch norm has seen.
    stretches
        What the optimiser updates; matrices first.

    Examples
    --------
    >>> from vivace.config import ModelConfig
    >>> from vivace.nn import Dimensions
    >>> network = VAE(ModelConfig(n_hidden=8), Dimensions(n_genes=2))
    >>> weights = FlatWeights(network)
    >>> _ = weights.values.fill_(2.0)
    >>> network.log_theta
    Parameter containing:
    tensor([2., 2.], requires_grad=True)
    """

    def __init__(self, network: VAE) -> None:
        self.network = network
        tensors = network.state_dict(keep_vars=True)
        parts = [p for p in trained_parts(network) if p.parameter.requires_grad]
        parts.sort(key=lambda p: not _is_matrix(p.parameter, network))  # keeps their order
        trained = {p.name: p.parameter for p in parts}
        floats = {k: v for k, v in tensors.items() if v.is_floating_point() and k not in trained}
        self.counters = _join([t for t in tensors.values() if not t.is_floating_point()], 1)
        self.values = _join([*trained.values(), *floats.values()], _ALIGNMENT)
        starts = _starts(list(trained.values()))
        self.gradients = torch.zeros_like(self.values[: starts.pop()])
        self._trained = dict(zip(trained.values(), starts, strict=True))
        self.stretches = []
        for part in parts:
            parameter, start = part.parameter, self._trained[part.parameter]
            rows = part.rows or slice(0, len(parameter))
            width = parameter[0].numel()
            first, last = start + rows.start * width, start + rows.stop * width
            is_matrix = _is_matrix(parameter, network)
            self.stretches.append(Stretch(first, last, parameter, part.rows, is_matrix))

    def gradient_views(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with gradients, and the place of its gradient in the buffer."""
        for parameter, start in self._trained.items():
            view = self.gradients[start : start + parameter.numel()].view(parameter.shape)
            yield parameter, view

    def all_finite(self) -> bool:
        """Whether every weight and statistic is a finite number."""
        return bool(self.values.isfinite().all())

    def release(self) -> None:
        """Give every tensor of the network its own memory, and drop the gradients."""
        self.network.zero_grad(set_to_none=True)
        for tensor in self.network.state_dict(keep_vars=True).values():
            tensor.data = tensor.data.clone()


@contextmanager
def flat_weights(network: VAE) -> Iterator[FlatWeights]:
    """Inside, the tensors of ``network`` are views into flat buffers."""
    weights = FlatWeights(network)
    try:
        yield weights
    finally:
        weights.release()


def _is_matrix(parameter: Tensor, network: VAE) -> bool:
    return parameter.ndim > 1 and parameter is not network.log_theta


def _starts(tensors: list[Tensor], alignment: int = _ALIGNMENT) -> list[int]:
    """Where each tensor starts in their buffer, and where the buffer ends."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.numel() // alignment) * alignment)
    return starts


def _join(tensors: list[Tensor], alignment: int) -> Tensor:
    """Copy tensors of one type into one buffer, and make them views of it."""
    starts = _starts(tensors, alignment)
    if not tensors:
        return torch.zeros(0, dtype=torch.float32)
    buffer = torch.zeros(starts.pop(), dtype=tensors[0].dtype, device=tensors[0].device)
    for tensor, start in zip(tensors, starts, strict=True):
        view = buffer[start : start + tensor.numel()].view(tensor.shape)
        view.copy_(tensor.detach())
        tensor.data = view
    return buffer
