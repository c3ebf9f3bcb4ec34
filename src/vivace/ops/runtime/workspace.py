"""Arrays that are reused between calls.

Making and freeing a dozen arrays of a megabyte costs a training step a tenth of a
millisecond, and evicts the old ones from the processor's cache.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vivace.types import F32

_MOST_NUMBERS = 64 * 2**20  # kept by one workspace, 256 MB


class Pair(NamedTuple):
    """A float32 CPU tensor, and its memory as an array for the kernels."""

    tensor: Tensor
    array: F32

    @classmethod
    def new(cls, *shape: int) -> Pair:
        """Make a pair of this shape with undefined contents."""
        return cls.view(torch.empty(shape, dtype=torch.float32))

    @classmethod
    def view(cls, tensor: Tensor) -> Pair:
        """Pair a tensor with its own memory."""
        array: Any = tensor.numpy()
        return cls(tensor, array)


@dataclass
class _Buffer:
    flat: Tensor
    shape: tuple[int, ...]
    pair: Pair  # the first numbers of ``flat``, in this shape


class Workspace:
    """Float32 CPU arrays by name; the next call that takes a name overwrites its array.

    A name has one buffer, as large as its largest array so far. Shapes that change from
    call to call share it, so a workspace does not grow with every new minibatch size.
    Beyond 256 MB the buffers that were made first are dropped. An array that is still
    referenced stays valid when its buffer is dropped.

    Examples
    --------
    >>> workspace = Workspace()
    >>> workspace.take("sums", 2, 3) is workspace.take("sums", 2, 3)
    True
    """

    def __init__(self, most_numbers: int = _MOST_NUMBERS) -> None:
        self._most_numbers = most_numbers
        self._buffers: dict[str, _Buffer] = {}

    def pair(self, name: str, *shape: int) -> Pair:
        """Take the tensor and array of a name in this shape; the contents are undefined."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self._reshape(name, shape)
        return buffer.pair

    def take(self, name: str, *shape: int) -> Tensor:
        """Take the tensor of a name in this shape; the contents are undefined."""
        return self.pair(name, *shape).tensor

    @property
    def kept_numbers(self) -> int:
        """Float32 numbers that the buffers hold in all."""
        return sum(buffer.flat.numel() for buffer in self._buffers.values())

    def _reshape(self, name: str, shape: tuple[int, ...]) -> _Buffer:
        size = math.prod(shape)
        old = self._buffers.get(name)
        if old is not None and size <= old.flat.numel():
            old.shape, old.pair = shape, Pair.view(old.flat[:size].view(shape))
            return old
        self._buffers.pop(name, None)
        flat = torch.empty(size, dtype=torch.float32)
        made = self._buffers[name] = _Buffer(flat, shape, Pair.view(flat.view(shape)))
        while self.kept_numbers > self._most_numbers:
            self._buffers.pop(next(iter(self._buffers)))
        return made


class _ThreadLocal(threading.local):
    """One workspace per Python thread."""

    def __init__(self) -> None:
        self.workspace = Workspace()


_thread_local = _ThreadLocal()


def thread_workspace() -> Workspace:
    """Return the workspace of this Python thread.

    An array from it is valid until the same thread takes its name again. So take it, use
    it and copy the result within one function that neither yields nor calls its caller
    back.
    """
    return _thread_local.workspace
