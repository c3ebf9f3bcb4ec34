"""Negative binomial counts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from scipy import special
from torch import Tensor
from torch.distributions import constraints

from vivace.distributions.base import (
    CountDistribution,
    draw_gamma,
    draw_poisson,
    place_of_draws,
    working_type,
)
from vivace.distributions.checks import broadcast, carried, refuse_parameter
from vivace.distributions.density import log_nb
from vivace.distributions.quantile import quantile
from vivace.errors import OptionError


class NegativeBinomial(CountDistribution):
    """Negative binomial distribution: Poisson counts whose rate is gamma distributed.

    Give ``mu`` and ``theta``, or ``total_count`` and one of ``probs`` and ``logits``.
    ``total_count`` is theta; ``logits = log(mu / theta)``; ``probs = mu / (mu + theta)``.

    Parameters
    ----------
    total_count
        Tensor or float, > 0 Failures at which the experiment of the textbook stops.
    probs
        Tensor or float, from 0 to below 1 Probability of a success, which counts one.
    logits
        Tensor or float Log odds of a success.
    mu
        Tensor or float, mean molecules, >= 0.
    theta
        Tensor or float, inverse dispersion, > 0 The variance is ``mu + mu**2 / theta``.
    scale
        Tensor, optional, normalised expression Only carried along.
    validate_args
        Bool, optional Check parameters and values; None follows torch's default.

    Raises
    ------
    OptionError
        If the parameters are not one of these pairs, or out of their range.
    ShapeError
        If shapes do not broadcast.

    Notes
    -----
    All parameters broadcast.  ``mu`` is what is kept: where ``logits`` are given, their
    rounding moves the mean, and so the density of counts in the thousands, by more than
    the error of :meth:`log_prob`.
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

    Examples
    --------
    >>> d = NegativeBinomial(mu=torch.tensor([2.0, 2.0]), theta=torch.tensor([1.0, 1e6]))
    >>> d.log_prob(torch.tensor(3.0))
    tensor([-2.3150, -1.7123])
    >>> d.variance
    tensor([6.0000, 2.0000])
    >>> NegativeBinomial(total_count=1.0, logits=d.logits[0]).mean
    tensor(2.)
    """

    shown = ("mu", "theta")
    arg_constraints: ClassVar = {
        "total_count": constraints.positive,
        "probs": constraints.half_open_interval(0.0, 1.0),  # type: ignore[no-untyped-call]
        "logits": constraints.real,
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
    }

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        scale: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if validate_args is not None:
            self._validate_args = validate_args
        name = type(self).__name__
        self.mu, self.theta = mean_and_theta(
            name,
            {
                "total_count": total_count,
                "probs": probs,
                "logits": logits,
                "mu": mu,
                "theta": theta,
            },
            self._validate_args,
        )
        self.scale = carried(name, "scale", scale, self.mu.shape)
        self._begin(self.mu.shape)

    @property
    def total_count(self) -> Tensor:
        """The same as theta."""
        return self.theta

    @property
    def logits(self) -> Tensor:
        """Log odds of a success, ``log(mu / theta)``."""
        return self.mu.log() - self.theta.log()

    @property
    def probs(self) -> Tensor:
        """Probability of a success, ``mu / (mu + theta)``."""
        return self.mu / (self.mu + self.theta)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mu * (1.0 + self.mu / self.theta)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts, in nats.

        Parameters
        ----------
        value
            Tensor, any shape that broadcasts with the batch shape, counts.

        Returns
        -------
        Tensor, broadcast shape.  Differentiable in the parameters, not in ``value``.

        Raises
        ------
        DataError
            If a value is no count, and ``validate_args`` is on.

        Notes
        -----
        For theta and mu of 1e-4 to 1e6 and counts to 1e6, against 50 digits: within 6
        float32 or 20 float64 units in the last place of max(1, abs(log_prob)).
        """
        dtype, (x, mu, theta) = self._aligned(value, self.mu, self.theta)
        return log_nb(x, mu, theta).to(dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``; by SciPy in float64, so without gradient."""
        dtype, aligned = self._aligned(value, self.mu, self.theta)
        x, mu, theta = (t.detach().cpu().double() for t in aligned)
        failure = 1.0 / (1.0 + mu / theta)
        below = special.betainc(
            theta.numpy(), x.clamp(min=0).floor().numpy() + 1.0, failure.numpy()
        )
        found = torch.where(x < 0, 0.0, torch.as_tensor(below))
        return found.to(aligned[0].device, dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """Smallest count whose cdf is at least ``value``; without gradient.

        Of uniform numbers it makes draws.

        Parameters
        ----------
        value
            Tensor, any shape that broadcasts with the batch shape, probabilities Best in float64:
            float32 has no number between 1 - 6e-8 and 1.

        Returns
        -------
        Tensor, broadcast shape, counts as floats of the parameters' type; infinite where
        ``value`` is 1 and the mean is not 0.

        Raises
        ------
        OptionError
            If a value is not from 0 to 1, and ``validate_args`` is on.
        ShapeError
            If the shape of ``value`` does not broadcast with the batch shape.

        Notes
        -----
        On the CPU, in float64, for theta and mu of 1e-4 to 1e6: the cdf at the result is
        at least ``value`` and that at one less is below it, to 1e-9.  From 1 - 1e-12 on,
        the result is that for 1 - 1e-12.

        Examples
        --------
        >>> d = NegativeBinomial(mu=2.0, theta=1.0)
        >>> d.icdf(torch.tensor([0.3, 0.5, 0.99]))
        tensor([ 0.,  1., 11.])
        """
        return quantile(self, value, self.mu, self.theta)

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
        Float32 holds counts exactly up to 2**24, about 17 million.  Gamma draws that
        underflow, as most do at theta = 1e-4, are rates at which every count is zero.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            place, work = place_of_draws(self.mu, generator), working_type(self.mu.dtype)
            mu, theta = self.mu.to(place, work), self.theta.to(place, work)
            gamma = draw_gamma(theta.expand(shape), generator)
            return draw_poisson(gamma * (mu / theta), generator).to(self.mu)


_PAIRS = ({"mu", "theta"}, {"total_count", "probs"}, {"total_count", "logits"})


def mean_and_theta(
    owner: str, parameters: dict[str, Tensor | float | None], checked: bool
) -> tuple[Tensor, Tensor]:
    """Mean and inverse dispersion from any of the pairs of parameters; None is not given."""
    given = {name: value for name, value in parameters.items() if value is not None}
    if set(given) not in _PAIRS:
        raise OptionError(
            f"{owner} takes mu and theta, or total_count and one of probs and logits, "
            f"but was given {' and '.join(given) or 'none of them'}."
        )
    tensors = dict(zip(given, broadcast(owner, **given), strict=True))
    if checked:
        for name, tensor in tensors.items():
            refuse_parameter(owner, name, tensor, *_range_of(name, tensor))
    if "mu" in tensors:
        return tensors["mu"], tensors["theta"]
    theta = tensors["total_count"]
    if "probs" in tensors:
        return theta * (tensors["probs"] / (1.0 - tensors["probs"])), theta
    mu = theta * tensors["logits"].exp()
    if checked:
        must = "small enough for the mean, total_count exp(logits), to be finite"
        refuse_parameter(owner, "logits", tensors["logits"], mu.isfinite(), must)
    return mu, theta


def _range_of(name: str, value: Tensor) -> tuple[Tensor, str]:
    """Which entries are allowed, and the words for it."""
    if name == "mu":
        return (value >= 0) & value.isfinite(), "finite and not negative"
    if name == "probs":
        return (value >= 0) & (value < 1), "at least 0 and below 1"
    if name == "logits":
        return ~value.isnan(), "a number"
    return (value > 0) & value.isfinite(), "finite and above 0"
