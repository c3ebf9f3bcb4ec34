"""Adam as one kernel over the flat buffer of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import prange
from torch import Tensor

from vivace.ops.runtime.kernels import EXACT, inner_kernel, parallel_kernel
from vivace.ops.runtime.llvm import as_array, floats_at, vector_loop
from vivace.train.subnormal import TINY
from vivace.types import F32, F64, I64

_TINY = np.float32(TINY)
_ZERO = np.float32(0)
_BLOCK = 4096  # numbers handed to a thread at a time
_BYTES = 4  # of a float32


@inner_kernel(fastmath=EXACT)
def _move(
    weight: F32,
    gradient: F32,
    average: F32,
    square: F32,
    decay: np.float32,
    average_rate: np.float32,
    keep_square: np.float32,
    square_rate: np.float32,
    lr: np.float32,
    root: np.float32,
    eps: np.float32,
) -> None:
    """Move a block of weights by one step; ``lr`` and ``root`` hold the bias corrections."""
    vector_loop()
    for i in range(weight.size):
        w = weight[i]
        d = gradient[i] + decay * w
        a = average[i] + average_rate * (d - average[i])
        s = keep_square * square[i] + (square_rate * d) * d  # beyond float32 it stays infinite
        w -= lr * a / (np.sqrt(s) * root + eps)
        average[i] = _ZERO if abs(a) < _TINY else a
        square[i] = _ZERO if s < _TINY else s
        weight[i] = _ZERO if abs(w) < _TINY else w


@parallel_kernel(fastmath=EXACT)
def _move_all(
    weights: F32,
    moments: F32,
    addresses: I64,
    starts: I64,
    sizes: I64,
    segments: I64,
    offsets: I64,
    decays: F32,
    factors: F64,
    lr: float,
    beta1: float,
    beta2: float,
    root: float,
    eps: float,
) -> None:
    """Move all segments by one step, in blocks of some thousand numbers.

    Segment s is the ``sizes[s]`` weights from ``starts[s]`` on, and its gradient is in
    memory at ``addresses[s]``. Block b begins ``offsets[b]`` numbers into segment
    ``segments[b]``. ``moments``, of shape (2, weights), are Adam's.
    """
    for block in prange(segments.size):
        s, offset = segments[block], offsets[block]
        size = min(_BLOCK, sizes[s] - offset)
        first = starts[s] + offset
        _move(
            weights[first : first + size],
            as_array(floats_at(addresses[s] + _BYTES * offset), size),
            moments[0, first : first + size], moments[1, first : first + size],
            decays[s], np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2),
            np.float32(factors[s] * lr), np.float32(root), np.float32(eps),
        )  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """Consecutive numbers of the buffer that share settings.

    Parameters
    ----------
    start, stop
        Their first position, and the one after their last.
    weight_decay
        L2 penalty.
    lr_factor
        Their learning rate, as a multiple of Adam's.
    """

    start: int
    stop: int
    weight_decay: float
    lr_factor: float = 1.0


class FusedAdam:
    """Adam on the CPU over a float32 buffer.

    torch's fused Adam spends 0.2 ms per step on grouping the parameters by device and
    type and on profiler hooks, as long as a matrix product of the model. Its kernel
    takes twice as long as this one (Zen 5), and its first call in a process spends a second
    on imports. Numbers below 1e-30 become zero; ``subnormal.py`` says why. Autograd is not
    notified of updates, so it cannot detect a graph that was made before a step.

    Parameters
    ----------
    weights
        Tensor, float32, one axis, contiguous; its memory must stay where it is.
    gradients
        Tensor like ``weights``: gradients of the first ``len(gradients)`` of them.
    segments
        The parts to update. They lie within the gradients and do not overlap.
    lr
        Learning rate; may be changed between steps.
    eps, betas
        As in torch.

    Attributes
    ----------
    moments
        Array, float32, shape (2, numbers in ``gradients``), averages of the gradients
        and of their squares.

    Examples
    --------
    >>> weights, gradients = torch.ones(1), torch.ones(1)
    >>> adam = FusedAdam(weights, gradients, [Segment(0, 1, weight_decay=0.0)], lr=0.1, eps=1e-8)
    >>> adam.step()
    >>> weights
    tensor([0.9000])

    Notes
    -----
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        weights: Tensor,
        gradients: Tensor,
        segments: Sequence[Segment],
        *,
        lr: float,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        for tensor in (weights, gradients):
            _check_memory(tensor)
            if tensor.ndim != 1:
                raise ValueError(f"FusedAdam takes buffers of one axis, not {tensor.ndim}.")
        self.lr, self.eps, self.betas = lr, eps, betas
        self.steps = 0
        self.moments: F32 = np.zeros((2, len(gradients)), np.float32)
        self._weights = weights.detach().numpy()
        self._gradients = gradients  # keeps the memory that the addresses are of
        self._starts = np.array([s.start for s in segments], np.int64)
        self._sizes = np.array([s.stop - s.start for s in segments], np.int64)
        self._decays = np.array([s.weight_decay for s in segments], np.float32)
        self._factors = np.array([s.lr_factor for s in segments], np.float64)
        self._addresses = gradients.data_ptr() + _BYTES * self._starts
        blocks = [(i, k) for i, size in enumerate(self._sizes) for k in range(0, size, _BLOCK)]
        self._segments, self._offsets = np.array(blocks, np.int64).reshape(-1, 2).T.copy()

    def step(self, elsewhere: Mapping[int, Tensor] | None = None) -> None:
        """Move the weights by their gradients.

        Parameters
        ----------
        elsewhere
            Gradients that are not in the buffer but in tensors of their own, by the number
            of their segment. A matrix product makes a new tensor, and copying it would take
            3 to 4 % of a step.
        """
        self.steps += 1
        addresses = self._addresses
        if elsewhere:
            addresses = addresses.copy()
            elsewhere = {i: tensor.contiguous() for i, tensor in elsewhere.items()}
            for i, tensor in elsewhere.items():
                _check_memory(tensor)
                if tensor.numel() != self._sizes[i]:
                    raise ValueError(
                        f"segment {i} has {self._sizes[i]} weights, its gradient {tensor.numel()}"
                    )
                addresses[i] = tensor.data_ptr()
        beta1, beta2 = self.betas
        _move_all(
            self._weights, self.moments, addresses, self._starts, self._sizes, self._segments,
            self._offsets, self._decays, self._factors, self.lr / (1.0 - beta1**self.steps),
            beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**self.steps), self.eps,
        )  # fmt: skip


def _check_memory(tensor: Tensor) -> None:
    """Refuse memory that the kernel cannot read."""
    if not (
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
    ):
        raise ValueError(
            "FusedAdam takes contiguous float32 tensors on the CPU; use torch.optim.Adam for others."
        )
