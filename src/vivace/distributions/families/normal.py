"""Normal observations, for data that are not counts."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from vivace.distributions.families.base import sampling_device
from vivace.distributions.parameter_checks import (
    broadcast_parameters,
    check_parameter,
    check_value,
    expand_expression,
)


class Normal(torch.distributions.Normal):
    """torch's normal distribution, with normalised expression and a generator for samples.

    Parameters
    ----------
    mu
        Tensor or float, mean, stored as ``loc``.
    scale
        Tensor or float, standard deviation, > 0. In the other distributions ``scale`` is the
        normalised expression; the names are scvi-tools' and torch's.
    validate_args
        Whether to check parameters and values; None follows torch's default.
    normal_mu
        Tensor, the normalised expression, which is stored and expanded with the parameters; None
        stores none.

    Raises
    ------
    OptionError
        If ``mu`` is not a number or ``scale`` is not above zero.
    ShapeError
        If shapes do not broadcast.

    Examples
    --------
    >>> Normal(torch.zeros(2), 1.0).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-0.9189, -1.4189])
    """

    def __init__(
        self,
        mu: Tensor | float,
        scale: Tensor | float,
        validate_args: bool | None = None,
        normal_mu: Tensor | None = None,
    ) -> None:
        if validate_args is not None:
            self._validate_args = validate_args
        checked = self._validate_args
        loc, deviation = broadcast_parameters("Normal", mu=mu, scale=scale)
        if checked:
            check_parameter("Normal", "mu", loc, ~loc.isnan(), "a number")
            check_parameter("Normal", "scale", deviation, deviation > 0, "above 0")
        super().__init__(loc, deviation, validate_args=False)
        self._validate_args = checked
        self.normal_mu = expand_expression("Normal", "normal_mu", normal_mu, loc.shape)

    @property
    def mu(self) -> Tensor:
        """The mean."""
        return self.loc

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution, its parameters expanded to ``batch_shape`` without copying."""
        shape = torch.Size(batch_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.normal_mu = None if self.normal_mu is None else self.normal_mu.expand(shape)
        super().expand(shape, new)  # type: ignore[no-untyped-call]
        return new

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Samples of shape ``sample_shape + batch_shape``.

        They are made on the device of ``generator``; None uses torch's global one.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        place = sampling_device(self.loc, generator)
        with torch.no_grad():
            noise = torch.randn(shape, dtype=self.loc.dtype, device=place, generator=generator)
            return self.loc + self.scale * noise.to(self.loc.device)

    def _validate_sample(self, value: Tensor) -> None:
        check_value(self, value)
