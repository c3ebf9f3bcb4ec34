"""Adam as one kernel over all parameters of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@inner_kernel(fastmath=EXACT)
def _move(
    weight: F32,
    gradient: F32,
    average: F32,
    square: F32,
    decay: np.float32,
    by_average: np.float32,
    keep_square: np.float32,
    by_square: np.float32,
    rate: np.float32,
    root: np.float32,
    eps: np.float32,
) -> None:
    """One step of a stretch of a parameter; ``rate`` and ``root`` hold the bias corrections."""
    vector_loop()
    for i in range(weight.size):
        w = weight[i]
        d = gradient[i] + decay * w
        a = average[i] + by_average * (d - average[i])
        s = keep_square * square[i] + (by_square * d) * d  # beyond float32 it stays infinite
        w -= rate * a / (np.sqrt(s) * root + eps)
        average[i] = _ZERO if abs(a) < _TINY else a
        square[i] = _ZERO if s < _TINY else s
        weight[i] = _ZERO if abs(w) < _TINY else w


@parallel_kernel(fastmath=EXACT)
def _move_all(
    addresses: I64,
    parameters: I64,
    starts: I64,
    sizes: I64,
    moments: F32,
    decays: F32,
    factors: F64,
    rate: float,
    beta1: float,
    beta2: float,
    root: float,
    eps: float,
) -> None:
    """One step of all parameters, in blocks of some thousand numbers.

    Block b is of parameter ``parameters[b]``, from ``starts[b]`` on.  ``addresses``, of shape
    (2, parameters), are those of the weights and of their gradients; ``moments``, of shape (2, of
    all parameters one after another), Adam's.
    """
    for block in prange(parameters.size):
        p, start = parameters[block], starts[block]
        before = sizes[p]
        size = min(_BLOCK, sizes[p + 1] - before - start)
        first = before + start
        _move(
            as_array(floats_at(addresses[0, p]), sizes[p + 1] - before)[start : start + size],
            as_array(floats_at(addresses[1, p]), sizes[p + 1] - before)[start : start + size],
            moments[0, first : first + size], moments[1, first : first + size],
            decays[p], np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2),
            np.float32(factors[p] * rate), np.float32(root), np.float32(eps),
        )  # fmt: skip


@dataclass
class Group:
    """Parameters that share settings.

    Parameters
    ----------
    params
        Leaves whose gradients are in ``.grad``.
    weight_decay
        L2 penalty.
    lr_factor
        Their learning rate, as a multiple of that of all.
    """

    params: list[Tensor]
    weight_decay: float
    lr_factor: float = 1.0


class FusedAdam:
    """Adam on the CPU over contiguous float32 parameters, whose memory must stay where it is.

    torch's fused one spends 0.2 ms a step on grouping the parameters by device and type
    and on profiler hooks, as long as a matrix product of the model.  Its kernel takes twice as
    long as this one (Zen 5), and the first in a process imports for a second.  What is smaller
    than 1e-30 becomes zero, as ``subnormal.py`` says.  The weights are moved behind the back of
    autograd, which cannot tell that a graph made before a step is out of date.

    Parameters
    ----------
    groups
        Parameters and their weight decay.
    lr
        Learning rate; may be changed between steps.
    eps, betas
        As in torch.

    Attributes
    ----------
    moments
        Array, float32, shape (2, numbers in all parameters), averages of the gradients and of their
        squares.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> adam = FusedAdam([Group([weight], weight_decay=0.0)], lr=0.1, eps=1e-8)
    >>> weight.grad = torch.ones(1)
    >>> adam.step()
    >>> weight.data
    tensor([0.9000])

    Notes
    -----
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        lr: float,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.lr, self.eps, self.betas = lr, eps, betas
        self.steps = 0
        self.params = [p for group in groups for p in group.params]
        fit = (p.is_contiguous() and p.dtype == torch.float32 for p in self.params)
        if not all(fit) or any(p.device.type != "cpu" for p in self.params):
            raise ValueError(
                "FusedAdam moves contiguous float32 parameters on the CPU, and others were given; "
                "take torch.optim.Adam for them."
            )
        self._weights = [p.detach() for p in self.params]  # their memory, for as long as this lives
        of_each: list[tuple[float, float]] = [
            (group.weight_decay, group.lr_factor) for group in groups for _ in group.params
        ]
        decays, self._factors = np.array(of_each).reshape(-1, 2).T.copy()
        self._decays = decays.astype(np.float32)
        sizes = [p.numel() for p in self.params]
        self._sizes = np.cumsum([0, *sizes])
        blocks = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, _BLOCK)]
        self._parameters, self._starts = np.array(blocks, np.int64).reshape(-1, 2).T.copy()
        self.moments: F32 = np.zeros((2, self._sizes[-1]), np.float32)
        self._addresses = np.zeros((2, len(sizes)), np.int64)
        self._addresses[0] = [w.data_ptr() for w in self._weights]

    def step(self) -> None:
        """Move every parameter by its gradient; each must have one."""
        self.steps += 1
        grads: list[Any] = [p.grad for p in self.params]
        grads = [g if g.is_contiguous() else g.contiguous() for g in grads]
        self._addresses[1] = [g.data_ptr() for g in grads]
        beta1, beta2 = self.betas
        _move_all(
            self._addresses, self._parameters, self._starts, self._sizes, self.moments,
            self._decays, self._factors, self.lr / (1.0 - beta1**self.steps),
            beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**self.steps), self.eps,
        )  # fmt: skip
