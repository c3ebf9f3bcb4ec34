"""Inverse cumulative distribution functions: uniform numbers to counts.

Of single-cell counts nine in ten are zero, which one comparison with P(0) tells; the
rest is found by adding up probabilities from zero, and the few large counts by bisection.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

Doubles = NDArray[np.float64]
_STEPS = 256  # counts up to here are found by adding up
_MARGIN = 1e-5  # float32 errs by less in P(0)


def nb_icdf(value: Tensor, mu: Tensor, theta: Tensor, lost: Tensor | None = None) -> Tensor:
    """Smallest count at which the (zero-inflated) negative binomial's cdf is ``value`` or more.

    All of one shape, on the CPU; ``lost`` is the probability of an inflated zero.
    """
    zero = torch.exp(-theta * torch.log1p(mu / theta))
    if lost is not None:
        zero = lost + (1.0 - lost) * zero
    counts, at = _seen(value, zero)
    u, m, t = (_picked(x, at) for x in (value, mu, theta))
    if lost is not None:
        share = _picked(lost, at)
        # of those that are not lost, the same uniform number; below 0 where all are
        u = 1.0 - (1.0 - u) / np.maximum(1.0 - share, np.finfo(np.float64).tiny)
    odds = m / (m + t)

    def step(k: int, chosen: NDArray[np.int64]) -> Doubles:
        return (k + t[chosen]) / (k + 1.0) * odds[chosen]

    def below(k: Doubles, chosen: NDArray[np.int64]) -> Doubles:
        found: Doubles = special.betainc(t[chosen], k + 1.0, 1.0 / (1.0 + m[chosen] / t[chosen]))
        return found

    first = np.exp(-t * np.log1p(m / t))
    counts[at] = torch.from_numpy(_inverted(u, first, step, below, m)).to(counts.dtype)
    return counts


def poisson_icdf(value: Tensor, rate: Tensor) -> Tensor:
    """Smallest count at which Poisson's cdf is ``value`` or more; both on the CPU, of one shape."""
    counts, at = _seen(value, torch.exp(-rate))
    u, m = _picked(value, at), _picked(rate, at)

    def step(k: int, chosen: NDArray[np.int64]) -> Doubles:
        found: Doubles = m[chosen] / (k + 1.0)
        return found

    def below(k: Doubles, chosen: NDArray[np.int64]) -> Doubles:
        found: Doubles = special.gammaincc(k + 1.0, m[chosen])
        return found

    counts[at] = torch.from_numpy(_inverted(u, np.exp(-m), step, below, m)).to(counts.dtype)
    return counts


def _seen(value: Tensor, zero: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Zeros of the parameters' type, and where there may be something else."""
    counts = torch.zeros_like(zero)
    there = value > zero - _MARGIN  # a single number is its own mask
    return counts, torch.nonzero(there, as_tuple=True) if there.dim() else (there,)


def _picked(x: Tensor, at: tuple[Tensor, ...]) -> Doubles:
    return x[at].double().numpy()


def _inverted(
    u: Doubles,
    first: Doubles,
    step: Callable[[int, NDArray[np.int64]], Doubles],
    below: Callable[[Doubles, NDArray[np.int64]], Doubles],
    mean: Doubles,
) -> Doubles:
    """The counts of ``u``, infinity where it is 1; each by itself, whatever the others are.

    Parameters
    ----------
    u : uniform numbers, shape (m,)
    first : P(0)
    step : P(k + 1) / P(k) of the chosen entries
    below : P(x <= k) of the chosen entries
    mean : a mean, where the search for large counts begins
    """
    counts = np.where((u >= 1.0) & (mean > 0.0), np.inf, 0.0)
    total, mass = first.copy(), first.copy()
    left = np.flatnonzero((u > total) & (u < 1.0))  # a sum of probabilities may round to 1
    for k in range(_STEPS):
        if len(left) == 0:
            return counts
        mass[left] *= step(k, left)
        total[left] += mass[left]
        counts[left] = k + 1
        left = left[u[left] > total[left]]
    if len(left):
        counts[left] = _bisected(u[left], lambda k: below(k, left), mean[left])
    return counts


def _bisected(u: Doubles, below: Callable[[Doubles], Doubles], mean: Doubles) -> Doubles:
    """Smallest whole k with ``below(k) >= u``, by halving an interval."""
    low = np.full(len(u), -1.0)  # below(low) < u
    high = np.ceil(mean) + 1.0
    for _ in range(1100):  # as often as a float64 can be doubled
        short = (below(high) < u) & np.isfinite(high)
        if not short.any():
            break
        low = np.where(short, high, low)
        high = np.where(short, 2.0 * high, high)
    while True:
        middle = np.floor(0.5 * (low + high))
        open_ = (high - low > 1.0) & np.isfinite(high) & (middle > low) & (middle < high)
        if not open_.any():
            return high
        enough = below(middle) >= u
        low = np.where(open_ & ~enough, middle, low)
        high = np.where(open_ & enough, middle, high)
