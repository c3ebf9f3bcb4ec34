"""The base of the count distributions, and sampling from a passed generator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vivace.distributions.parameter_checks import check_value

_NUMBERS_PER_SAMPLE = 512  # more than torch's CUDA samplers use for any sample
_LARGEST_POISSON = 1e9  # CUDA's samples are 32-bit integers


class CountDistribution(Distribution):
    """A distribution of counts whose entries are independent. Abstract.

    A subclass sets its parameters as attributes, tensors or distributions of the batch shape,
    and then calls :meth:`_start`.
    """

    support = constraints.nonnegative_integer
    shown: tuple[str, ...]  # parameters in the repr

    def _start(self, batch_shape: torch.Size) -> None:
        # the parameters are checked before, with better messages than torch's
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
        new._start(shape)
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
    """The type to compute in: float32 for half precision, which cannot hold counts."""
    return torch.float32 if torch.finfo(dtype).bits < 32 else dtype


def float64_if_supported(tensor: Tensor) -> Tensor:
    """The tensor in float64; unchanged on MPS, which has none."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def sampling_device(parameter: Tensor, generator: torch.Generator | None) -> torch.device:
    """The device that samples are made on: the generator's, if there is one."""
    if generator is not None:
        return generator.device
    # torch has no gamma or Poisson sampler for MPS
    return torch.device("cpu") if parameter.device.type == "mps" else parameter.device


def sample_gamma(shape_parameter: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard gamma samples."""
    samples = torch._standard_gamma(shape_parameter, generator=generator)
    skip_used_numbers(shape_parameter.device, generator)
    return samples


def skip_used_numbers(device: torch.device, generator: torch.Generator | None) -> None:
    """On CUDA, skip the random numbers that a sampler may have used.

    torch's gamma and Poisson kernels advance the stream by a fixed 10 or 20 numbers, but use
    more after rejections or for large counts. The next samples would share some of them, for
    example a Poisson count of 25 and the uniform number after it.
    """
    if device.type != "cuda":
        return
    if generator is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    generator.set_offset(generator.get_offset() + _NUMBERS_PER_SAMPLE)


def sample_poisson(rate: Tensor, generator: torch.Generator | None) -> Tensor:
    """Poisson counts, in the float type of ``rate``; rounded normal ones above a rate of 1e9."""
    counts = torch.poisson(rate.clamp(max=_LARGEST_POISSON), generator=generator)
    skip_used_numbers(rate.device, generator)
    large = rate > _LARGEST_POISSON
    if not large.any():
        return counts
    noise = torch.randn(rate.shape, dtype=rate.dtype, device=rate.device, generator=generator)
    return torch.where(large, (rate + rate.sqrt() * noise).round(), counts)
