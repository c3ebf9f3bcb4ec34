"""Poisson counts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from vivace.distributions.base import (
    CountDistribution,
    draw_poisson,
    float64_if_there,
    place_of_draws,
    working_type,
)
from vivace.distributions.checks import broadcast, carried, refuse_parameter
from vivace.distributions.density import log_poisson
from vivace.distributions.quantile import quantile


class Poisson(CountDistribution):
    """Poisson distribution.

    Parameters
    ----------
    rate
        Tensor or float, any shape, mean molecules, >= 0.
    validate_args
        Bool, optional Check parameters and values; None follows torch's default.
    scale
        Tensor, optional, normalised expression Only carried along.

    Raises
    ------
    OptionError
        If ``rate`` is negative or not finite.
    ShapeError
        If ``scale`` does not have the shape of ``rate``.

    Examples
    --------
    >>> d = Poisson(torch.tensor([1.0, 2.0]))
    >>> d.log_prob(torch.tensor([0.0, 3.0]))
    tensor([-1.0000, -1.7123])
    >>> d.cdf(torch.tensor([0.0, 3.0]))
    tensor([0.3679, 0.8571])
    """

    shown = ("rate",)
    arg_constraints: ClassVar = {"rate": constraints.nonnegative}

    def __init__(
        self,
        rate: Tensor | float,
        validate_args: bool | None = None,
        scale: Tensor | None = None,
    ) -> None:
        if validate_args is not None:
            self._validate_args = validate_args
        (self.rate,) = broadcast("Poisson", rate=rate)
        if self._validate_args:
            good = (self.rate >= 0) & self.rate.isfinite()
            refuse_parameter("Poisson", "rate", self.rate, good, "finite and not negative")
        self.scale = carried("Poisson", "scale", scale, self.rate.shape)
        self._begin(self.rate.shape)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.rate

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts, in nats.

        Parameters
        ----------
        value
            Tensor, any shape that broadcasts with the batch shape, counts.

        Returns
        -------
        Tensor, broadcast shape.  Differentiable in ``rate``, not in ``value``.

        Raises
        ------
        DataError
            If a value is no count, and ``validate_args`` is on.

        Notes
        -----
        For rates of 1e-4 to 1e6 and counts to 1e6, against 50 digits: within 4
        float32 or 10 float64 units in the last place of max(1, abs(log_prob)).
        """
        dtype, (x, rate) = self._aligned(value, self.rate)
        return log_poisson(x, rate).to(dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``; differentiable in ``rate``.

        By torch's incomplete gamma function, in float64 where there is one: to 2e-9.
        """
        dtype, (x, rate) = self._aligned(value, self.rate)
        x, rate = float64_if_there(x), float64_if_there(rate)
        below = torch.special.gammaincc(x.clamp(min=0).floor() + 1.0, rate)
        return torch.where(x < 0, 0.0, below).to(dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """Smallest count whose cdf is at least ``value``; see :meth:`NegativeBinomial.icdf`."""
        return quantile(self, value, self.rate)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Counts, as floats of the parameters' type.

        Parameters
        ----------
        sample_shape
            Sequence of int How many draws.
        generator
            Torch.Generator, optional Draws are made on its device; None takes torch's global
            generator.

        Returns
        -------
        Tensor, shape ``sample_shape + batch_shape``

        Notes
        -----
        Float32 holds counts exactly up to 2**24, about 17 million.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            rate = self.rate.to(place_of_draws(self.rate, generator), working_type(self.rate.dtype))
            return draw_poisson(rate.expand(shape), generator).to(self.rate)
