"""Which implementation of an operation runs.

The folder of an operation has one module per backend: ``reference.py`` in plain PyTorch,
and kernels such as ``cpu.py``. All of them define the same functions. To add kernels, add a
module to each folder, a line to the table below and a name to :data:`Backend`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vivace.errors import OptionError

Backend = Literal["auto", "reference", "cpu"]

# the kernels, with the device and the float type of the tensors that they read
_KERNELS: dict[str, tuple[str, torch.dtype]] = {"cpu": ("cpu", torch.float32)}


def pick(operation: str, backend: Backend, *tensors: Tensor | None) -> Any:
    """Return the module that computes an operation.

    Parameters
    ----------
    operation
        Name of its folder in ``vivace.ops``.
    backend
        "auto" uses the first kernels that can read all tensors, or the reference if there
        are none.
    tensors
        The float tensors that the operation reads; None for one that is absent.

    Raises
    ------
    OptionError
        If there is no such backend, or its kernels cannot read the tensors.
    """
    if backend not in get_args(Backend):
        listed = ", ".join(map(repr, get_args(Backend)))
        raise OptionError(f"backend must be one of {listed}, not {backend!r}.")
    if backend == "auto":
        fitting = (name for name in _KERNELS if _can_read(name, tensors))
        return _load(operation, next(fitting, "reference"))
    if backend != "reference" and not _can_read(backend, tensors):
        device, dtype = _KERNELS[backend]
        raise OptionError(
            f"backend={backend!r} needs {dtype} tensors on device {device!r}; use "
            "backend='reference' for others."
        )
    return _load(operation, backend)


def _can_read(kernels: str, tensors: tuple[Tensor | None, ...]) -> bool:
    device, dtype = _KERNELS[kernels]
    return all(t is None or (t.device.type == device and t.dtype == dtype) for t in tensors)


@cache
def _load(operation: str, name: str) -> Any:
    # lazy: importing Numba takes a second
    return import_module(f"vivace.ops.{operation}.{name}")
