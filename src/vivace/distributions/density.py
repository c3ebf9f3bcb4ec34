"""Log densities of counts, accurate in any float type; derivation in README.md.

The textbook formula subtracts log-gammas of up to 1e7 from one another: at theta = 1e6
float32 has no correct digit left. Here every term is about as large as the result or
smaller. Float32 is enough then, and MPS has no float64.

Source: Loader 2000, "Fast and accurate computation of binomial probabilities".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# log Gamma(z + 1) - (z + 1/2) log z + z - log(2 pi) / 2, in odd powers of 1 / z;
# Abramowitz and Stegun 1964, 6.1.41
_STIRLING = (
    *(1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156),
    -3617 / 122400,
)
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_nb(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Negative binomial log density, in nats.

    Tensors of one shape and float type, with x >= 0 and theta > 0. Differentiable twice in
    ``mu`` and ``theta``.
    """
    value: Tensor = _LogNB.apply(x, mu, theta)  # type: ignore[no-untyped-call]
    return value


def log_zinb(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Zero-inflated negative binomial log density, in nats; arguments as in ``log_nb``."""
    kept = logsigmoid(-zi_logits) + log_nb(x, mu, theta)
    # mu = 0 < x without inflation: two infinities make NaN in the gradient of the branch not taken
    kept_at_zero = torch.where(x == 0, kept, 0.0)
    return torch.where(x == 0, torch.logaddexp(logsigmoid(zi_logits), kept_at_zero), kept)


def log_poisson(x: Tensor, rate: Tensor) -> Tensor:
    """Poisson log density, in nats.

    Tensors of one shape and float type, with x >= 0. Differentiable twice in ``rate``.
    """
    value: Tensor = _LogPoisson.apply(x, rate)  # type: ignore[no-untyped-call]
    return value


class _LogNB(torch.autograd.Function):
    """Value and gradient are written out separately, because their large terms cancel differently.

    Zeros, most of the entries of a count matrix, need one logarithm; only the other entries
    are gathered for the long formula.
    """

    @staticmethod
    def forward(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
        log_prob_zero = -theta * torch.log1p(mu / theta)
        positive = x > 0
        return log_prob_zero.masked_scatter_(
            positive, _log_nb_positive(x[positive], mu[positive], theta[positive])
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, mu, theta = ctx.saved_tensors
        positive, total = x > 0, theta + mu
        t_theta = (x - mu) / total
        d_mu = d_theta = None
        if ctx.needs_input_grad[1]:
            d_mu = (-theta / total).masked_scatter(
                positive, t_theta[positive] * (theta[positive] / mu[positive])
            )
            d_mu = upstream * d_mu
        if ctx.needs_input_grad[2]:
            gammas = torch.zeros_like(x).masked_scatter(
                positive, _gammas_slope(x[positive], theta[positive])
            )
            d_theta = upstream * (gammas - excess(t_theta, (theta + x) / total))
        return None, d_mu, d_theta


def _log_nb_positive(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """``log_nb`` where x > 0; without gradient."""
    n, total = x + theta, theta + mu
    t_theta = (x - mu) / total
    t_x = -t_theta * (theta / x)
    gammas = stirling(n) - stirling(theta) - stirling(x)
    size = _HALF_LOG_2PI + 0.5 * torch.log(x * (n / theta))
    misfit = x * excess(t_x, (n / x) * (mu / total)) + theta * excess(t_theta, n / total)
    return gammas - size - misfit


def _gammas_slope(x: Tensor, theta: Tensor) -> Tensor:
    """Derivative in theta of ``_log_nb_positive`` without its misfit."""
    n = x + theta
    return stirling_slope(n) - stirling_slope(theta) + 0.5 * (x / n) / theta


class _LogPoisson(torch.autograd.Function):
    """Value and gradient written out, as in ``_LogNB``."""

    @staticmethod
    def forward(x: Tensor, rate: Tensor) -> Tensor:
        positive = x > 0
        return torch.neg(rate).masked_scatter_(
            positive, _log_poisson_positive(x[positive], rate[positive])
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, rate = ctx.saved_tensors
        positive = x > 0
        slope = (x[positive] - rate[positive]) / rate[positive]
        return None, upstream * torch.full_like(x, -1.0).masked_scatter(positive, slope)


def _log_poisson_positive(x: Tensor, rate: Tensor) -> Tensor:
    """``log_poisson`` where x > 0; without gradient."""
    misfit = x * excess((rate - x) / x, rate / x)
    return -stirling(x) - (_HALF_LOG_2PI + 0.5 * torch.log(x)) - misfit


def excess(t: Tensor, ratio: Tensor) -> Tensor:
    """``t - log(1 + t)``, relatively accurate near t = 0; ``ratio`` is 1 + t, before it is rounded."""
    small = (t > -0.5) & (t < 1.0)
    s = torch.where(small, t, 0.0)
    r = s / (2.0 + s)  # log(1 + s) = 2 atanh(r), and |r| < 1/3
    r2 = r * r
    series = torch.zeros_like(r2)
    for k in reversed(range(_terms_of_atanh(t.dtype))):
        series = series * r2 + 1.0 / (2 * k + 3)
    return torch.where(small, r * (s - 2.0 * r2 * series), t - torch.log(ratio))


def stirling(z: Tensor) -> Tensor:
    """The difference of log Gamma(z + 1) from Stirling's formula, for z > 0."""
    bound = _stirling_bound(z.dtype)
    low, high = z.clamp(max=bound), z.clamp(min=bound)
    direct = torch.lgamma(low + 1.0) - (low + 0.5) * torch.log(low) + (low - _HALF_LOG_2PI)
    return torch.where(z < bound, direct, _odd_powers(_STIRLING, 1.0 / high))


def stirling_slope(z: Tensor) -> Tensor:
    """Derivative of ``stirling``."""
    bound = _stirling_bound(z.dtype)
    low, high = z.clamp(max=bound), z.clamp(min=bound)
    direct = torch.digamma(low) + 0.5 / low - torch.log(low)
    coefficients = tuple(-(2 * k + 1) * c for k, c in enumerate(_STIRLING))
    return torch.where(z < bound, direct, _odd_powers(coefficients, 1.0 / high) / high)


def _odd_powers(coefficients: tuple[float, ...], r: Tensor) -> Tensor:
    """``r (c0 + c1 r^2 + c2 r^4 + ...)``."""
    r2 = r * r
    series = torch.full_like(r, coefficients[-1])
    for c in coefficients[-2::-1]:
        series = series * r2 + c
    return series * r


def _stirling_bound(dtype: torch.dtype) -> float:
    """The z from which on the asymptotic series is exact to rounding."""
    return 10.0 if dtype == torch.float64 else 3.0


def _terms_of_atanh(dtype: torch.dtype) -> int:
    """Number of terms that leave an error below rounding at r = 1/3."""
    return 17 if dtype == torch.float64 else 8
