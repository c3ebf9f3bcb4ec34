"""What the count distributions share: checks, expansion, drawing by a passed generator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vivace.distributions.checks import check_value

_NUMBERS_OF_A_DRAW = 512  # more than any draw of torch's CUDA samplers takes
_LARGEST_POISSON = 1e9  # CUDA's draws are 32-bit integers


class CountDistribution(Distribution):
    """A distribution of counts, every entry independent.  Abstract.

    A subclass keeps its parameters in ``vars(self)``, as tensors of the batch
    shape or as distributions of it, and calls :meth:`_begin` when they are there.
    """

    support = constraints.nonnegative_integer
    shown: tuple[str, ...]  # the parameters that repr names

    def _begin(self, batch_shape: torch.Size) -> None:
        # parameters were checked already, with better messages than torch's
        checked = self._validate_args
        super().__init__(batch_shape, validate_args=False)
        self._validate_args = checked

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution, its parameters expanded to ``batch_shape`` without copying."""
        shape = torch.Size(batch_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        for name, value in vars(self).items():
            expands = isinstance(value, Tensor | Distribution)
            setattr(new, name, value.expand(shape) if expands else value)
        new._begin(shape)
        return new

    @abstractmethod
    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Counts of shape ``sample_shape + batch_shape``."""

    def __repr__(self) -> str:
        tensors = ((name, getattr(self, name)) for name in self.shown)
        values = (f"{n}: {t.item() if t.numel() == 1 else tuple(t.shape)}" for n, t in tensors)
        return f"{type(self).__name__}({', '.join(values)})"

    def _validate_sample(self, value: Tensor) -> None:
        check_value(self, value)

    def _aligned(self, value: Tensor, *parameters: Tensor) -> tuple[torch.dtype, list[Tensor]]:
        """Type of the result; value and parameters in one shape and the type to compute in."""
        value = check_value(self, value).detach()
        dtype = parameters[0].dtype
        for tensor in (value, *parameters[1:]):
            if tensor.is_floating_point():
                dtype = torch.promote_types(dtype, tensor.dtype)
        work = working_type(dtype)
        tensors = torch.broadcast_tensors(value, *parameters)  # type: ignore[no-untyped-call]
        return dtype, [t.to(work) for t in tensors]


def working_type(dtype: torch.dtype) -> torch.dtype:
    """Half precision holds neither counts nor their logarithms: float32 there."""
    return torch.float32 if torch.finfo(dtype).bits < 32 else dtype


def float64_if_there(tensor: Tensor) -> Tensor:
    """In float64, but on MPS, which has none."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def place_of_draws(parameter: Tensor, generator: torch.Generator | None) -> torch.device:
    """Where random numbers are made: the generator's device."""
    if generator is not None:
        return generator.device
    # torch has no gamma or Poisson sampler for MPS
    return torch.device("cpu") if parameter.device.type == "mps" else parameter.device


def draw_gamma(shape_parameter: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard gamma draws."""
    draws = torch._standard_gamma(shape_parameter, generator=generator)
    move_on(shape_parameter.device, generator)
    return draws


def move_on(device: torch.device, generator: torch.Generator | None) -> None:
    """On CUDA, leave behind the random numbers that a sampler may have used.

    torch's gamma and Poisson kernels move the stream by a fixed 10 or 20 numbers, but take
    as many as their rejections or their counts ask for; the next draws would be made of
    some of the same numbers (a Poisson count of 25 and the uniform after it, for one).
    """
    if device.type != "cuda":
        return
    if generator is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    generator.set_offset(generator.get_offset() + _NUMBERS_OF_A_DRAW)


def draw_poisson(rate: Tensor, generator: torch.Generator | None) -> Tensor:
    """Poisson counts, in the float type of ``rate``; normal where no one could tell."""
    counts = torch.poisson(rate.clamp(max=_LARGEST_POISSON), generator=generator)
    move_on(rate.device, generator)
    large = rate > _LARGEST_POISSON
    if not large.any():
        return counts
    noise = torch.randn(rate.shape, dtype=rate.dtype, device=rate.device, generator=generator)
    return torch.where(large, (rate + rate.sqrt() * noise).round(), counts)
