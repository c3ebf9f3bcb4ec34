"""Negative binomial counts, some of which are lost and observed as zero."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from vivace.distributions.density import log_zinb
from vivace.distributions.families.base import (
    CountDistribution,
    sampling_device,
    working_type,
)
from vivace.distributions.families.negative_binomial import NegativeBinomial, as_mean_and_theta
from vivace.distributions.parameter_checks import (
    broadcast_parameters,
    check_parameter,
    check_value,
    expand_expression,
)
from vivace.distributions.quantile import quantile
from vivace.errors import OptionError


class ZeroInflatedNegativeBinomial(CountDistribution):
    """Zero-inflated negative binomial distribution.

    With probability ``zi_probs = sigmoid(zi_logits)`` a count is zero; otherwise it follows the
    :class:`NegativeBinomial` with ``mu``, ``theta``, ``total_count``, ``logits``, ``probs`` and
    ``scale``. ``mean`` and ``variance`` are those of the mixture.

    Parameters
    ----------
    total_count, probs, logits, mu, theta, scale
        As for :class:`NegativeBinomial`.
    zi_logits
        Tensor or float, log odds that a count is lost; required.
    validate_args
        Whether to check parameters and values; None follows torch's default.

    Raises
    ------
    OptionError
        If parameters are missing, too many, or out of their range.
    ShapeError
        If shapes do not broadcast.

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

    Examples
    --------
    >>> d = ZeroInflatedNegativeBinomial(mu=2.0, theta=1.0, zi_logits=0.0)
    >>> d.log_prob(torch.tensor([0.0, 3.0]))
    tensor([-0.4055, -3.0082])
    >>> d.mean, d.zi_probs
    (tensor(1.), tensor(0.5000))
    """

    shown = ("mu", "theta", "zi_logits")
    arg_constraints: ClassVar = {
        **NegativeBinomial.arg_constraints,
        "zi_logits": constraints.real,
    }

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        zi_logits: Tensor | float | None = None,
        scale: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if validate_args is not None:
            self._validate_args = validate_args
        name = type(self).__name__
        if zi_logits is None:
            raise OptionError(
                f"{name} needs zi_logits, the log odds that a count is lost; "
                "without them use NegativeBinomial."
            )
        given = {"total_count": total_count, "probs": probs, "logits": logits, "mu": mu}
        mu, theta = as_mean_and_theta(name, given | {"theta": theta}, self._validate_args)
        mu, theta, self.zi_logits = broadcast_parameters(
            name, mu=mu, theta=theta, zi_logits=zi_logits
        )
        if self._validate_args:
            good = ~self.zi_logits.isnan()
            check_parameter(name, "zi_logits", self.zi_logits, good, "a number")
        scale = expand_expression(name, "scale", scale, mu.shape)
        self._nb = NegativeBinomial(mu=mu, theta=theta, scale=scale, validate_args=False)
        self._start(mu.shape)

    @property
    def mu(self) -> Tensor:
        """Mean of the counts before some are lost."""
        return self._nb.mu

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion."""
        return self._nb.theta

    @property
    def total_count(self) -> Tensor:
        """Another name of theta."""
        return self._nb.theta

    @property
    def logits(self) -> Tensor:
        """``log(mu / theta)``."""
        return self._nb.logits

    @property
    def probs(self) -> Tensor:
        """``mu / (mu + theta)``."""
        return self._nb.probs

    @property
    def scale(self) -> Tensor | None:
        """The normalised expression, if it was given."""
        return self._nb.scale

    @property
    def zi_probs(self) -> Tensor:
        """Probability that a count is lost."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Expected counts, zeros included."""
        return torch.sigmoid(-self.zi_logits) * self.mu

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, zeros included."""
        return self.mean * (1.0 + self.mu * (1.0 / self.theta + self.zi_probs))

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
        As accurate as that of :class:`NegativeBinomial`, for ``zi_logits`` of -60 to 60.
        """
        dtype, aligned = self._aligned(value, self.mu, self.theta, self.zi_logits)
        return log_zinb(*aligned).to(dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``; by SciPy in float64, so without gradient."""
        check_value(self, value)
        lost = self.zi_probs.detach()
        # 1 - lost would round to 0 if lost is near 1, and the sum must not exceed 1
        probability = lost + torch.sigmoid(-self.zi_logits).detach() * self._nb.cdf(value)
        return torch.where(value < 0, 0.0, probability).clamp(max=1.0)

    def icdf(self, value: Tensor) -> Tensor:
        """Smallest count whose cdf is at least ``value``; see :meth:`NegativeBinomial.icdf`."""
        return quantile(self, value, self.mu, self.theta, self.zi_logits)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Counts, as floats of the parameters' type; see :meth:`NegativeBinomial.sample`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            counts = self._nb.sample(sample_shape, generator=generator)
            place, work = sampling_device(self.mu, generator), working_type(self.mu.dtype)
            # in (0, 1]: counts with a probability of 0 are never lost, those with 1 always
            uniform = 1.0 - torch.rand(shape, dtype=work, device=place, generator=generator)
            return counts.masked_fill(uniform.to(self.mu.device) <= self.zi_probs, 0.0)
