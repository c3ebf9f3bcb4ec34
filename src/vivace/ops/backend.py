"""Which implementation of an operation runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vivace.errors import OptionError

Backend = Literal["auto", "reference", "cpu"]


def use_cpu_kernel(backend: Backend, *tensors: Tensor | None) -> bool:
    """Whether the Numba kernel runs: asked for, or "auto" and everything fits it.

    It fits where every tensor is float32 on the CPU.
    """
    if backend == "reference":
        return False
    fits = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
    if backend == "cpu" and not fits:
        raise OptionError(
            "backend='cpu' needs float32 tensors on the CPU; use backend='reference' for others."
        )
    return fits
