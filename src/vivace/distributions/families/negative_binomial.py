"""Negative binomial counts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.distributions import constraints

from vivace.distributions.density import log_nb
from vivace.distributions.families.base import (
    CountDistribution,
    sample_gamma,
    sample_poisson,
    sampling_device,
    working_type,
)
from vivace.distributions.parameter_checks import (
    broadcast_parameters,
    check_parameter,
    expand_expression,
)
from vivace.distributions.quantile import quantile
from vivace.errors import OptionError


class NegativeBinomial(CountDistribution):
    """Negative binomial distribution: Poisson counts with a gamma distributed rate.

    Give ``mu`` and ``theta``, or ``total_count`` and one of ``probs`` and ``logits``.
    ``total_count`` is theta; ``logits = log(mu / theta)``; ``probs = mu / (mu + theta)``.

    Parameters
    ----------
    total_count
        Tensor or float, > 0, number of failures at which the experiment stops.
    probs
        Tensor or float, at least 0 and below 1, probability of a success.
    logits
        Tensor or float, log odds of a success.
    mu
        Tensor or float, mean molecules, >= 0.
    theta
        Tensor or float, inverse dispersion, > 0; the variance is ``mu + mu**2 / theta``.
    scale
        Tensor, the normalised expression, which is stored and expanded with the parameters; None
        stores none.
    validate_args
        Whether to check parameters and values; None follows torch's default.

    Raises
    ------
    OptionError
        If the parameters are not one of these pairs, or out of their range.
    ShapeError
        If shapes do not broadcast.

    Notes
    -----
    All parameters broadcast. The distribution stores ``mu``. If ``logits`` are given, their
    rounding changes the mean, and with it the density of counts in the thousands, by more than
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
        self.mu, self.theta = as_mean_and_theta(
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
        self.scale = expand_expression(name, "scale", scale, self.mu.shape)
        self._start(self.mu.shape)

    @property
    def total_count(self) -> Tensor:
        """Another name of theta."""
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
            Tensor of counts, any shape that broadcasts with the batch shape.

        Returns
        -------
        Tensor, broadcast shape. Differentiable in the parameters, not in ``value``.

        Raises
        ------
        DataError
            If a value is not a count, and ``validate_args`` is on.

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
        counts = x.clamp(min=0).floor().numpy() + 1.0
        with np.errstate(all="ignore"):  # a tail that underflows
            cdf_value = special.betainc(theta.numpy(), counts, failure.numpy())
        probability = torch.where(x < 0, 0.0, torch.from_numpy(np.asarray(cdf_value)))
        return probability.to(aligned[0].device, dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """Smallest count whose cdf is at least ``value``; without gradient.

        Applied to uniform random numbers, it gives samples.

        Parameters
        ----------
        value
            Tensor of probabilities, any shape that broadcasts with the batch shape. Float64 is
            best: float32 has no number between 1 - 6e-8 and 1.

        Returns
        -------
        Tensor, broadcast shape, counts as floats of the parameters' type; infinite if
        ``value`` is 1 and the mean is not 0.

        Raises
        ------
        OptionError
            If a value is not between 0 and 1, and ``validate_args`` is on.
        ShapeError
            If the shape of ``value`` does not broadcast with the batch shape.

        Notes
        -----
        On the CPU, in float64, for theta and mu of 1e-4 to 1e6: the cdf at the result is
        at least ``value`` and that at one less is below it, to 1e-9. Values above
        1 - 1e-12 count as 1 - 1e-12.

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
            Sequence of int, the shape of the samples.
        generator
            torch.Generator, on whose device the samples are made; None uses torch's global
            generator.

        Returns
        -------
        Tensor, shape ``sample_shape + batch_shape``

        Notes
        -----
        Float32 holds counts exactly up to 2**24, about 17 million. Gamma samples that
        underflow, as most do at theta = 1e-4, are rates so small that every count is zero.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            place, work = sampling_device(self.mu, generator), working_type(self.mu.dtype)
            mu, theta = self.mu.to(place, work), self.theta.to(place, work)
            gamma = sample_gamma(theta.expand(shape), generator)
            return sample_poisson(gamma * (mu / theta), generator).to(self.mu)


_PAIRS = ({"mu", "theta"}, {"total_count", "probs"}, {"total_count", "logits"})


def as_mean_and_theta(
    owner: str, parameters: dict[str, Tensor | float | None], checked: bool
) -> tuple[Tensor, Tensor]:
    """Mean and inverse dispersion from one of the pairs of parameters; the others are None."""
    given = {name: value for name, value in parameters.items() if value is not None}
    if set(given) not in _PAIRS:
        raise OptionError(
            f"{owner} takes mu and theta, or total_count and one of probs and logits, "
            f"but was given {' and '.join(given) or 'none of them'}."
        )
    tensors = dict(zip(given, broadcast_parameters(owner, **given), strict=True))
    if checked:
        for name, tensor in tensors.items():
            check_parameter(owner, name, tensor, *_allowed_range(name, tensor))
    if "mu" in tensors:
        return tensors["mu"], tensors["theta"]
    theta = tensors["total_count"]
    if "probs" in tensors:
        return theta * (tensors["probs"] / (1.0 - tensors["probs"])), theta
    mu = theta * tensors["logits"].exp()
    if checked:
        must = "small enough for the mean, total_count exp(logits), to be finite"
        check_parameter(owner, "logits", tensors["logits"], mu.isfinite(), must)
    return mu, theta


def _allowed_range(name: str, value: Tensor) -> tuple[Tensor, str]:
    """Whether each entry is allowed, and the range in words."""
    if name == "mu":
        return (value >= 0) & value.isfinite(), "finite and not negative"
    if name == "probs":
        return (value >= 0) & (value < 1), "at least 0 and below 1"
    if name == "logits":
        return ~value.isnan(), "a number"
    return (value > 0) & value.isfinite(), "finite and above 0"
