"""Arrays that are used again in the next call instead of being made anew."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vivace.types import F32


class Pair(NamedTuple):
    """A float32 CPU tensor, and its memory as an array, as kernels take it."""

    tensor: Tensor
    array: F32

    @classmethod
    def new(cls, *shape: int) -> Pair:
        """Of that shape; its contents are anything."""
        tensor = torch.empty(shape)
        array: Any = tensor.numpy()
        return cls(tensor, array)


class Memory:
    """Float32 CPU tensors by name and shape; what a call takes, the next may overwrite.

    Making and freeing a dozen arrays of a megabyte costs a training step a tenth
    of a millisecond, and the processor's cache what it had of the old ones.

    Examples
    --------
    >>> memory = Memory()
    >>> memory.take("sums", 2, 3) is memory.take("sums", 2, 3)
    True
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...]], Pair] = {}

    def pair(self, name: str, *shape: int) -> Pair:
        """The tensor of that name and shape, and its array; the contents are anything."""
        kept = self._kept.get((name, shape))
        if kept is None:
            kept = self._kept[name, shape] = Pair.new(*shape)
        return kept

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name and shape; its contents are anything."""
        return self.pair(name, *shape).tensor


class NoMemory(Memory):
    """Every tensor is new, for results that somebody keeps."""

    def pair(self, name: str, *shape: int) -> Pair:
        """A new tensor and its array."""
        return Pair.new(*shape)
