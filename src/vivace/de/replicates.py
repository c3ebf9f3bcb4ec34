"""Is a gene expressed differently across samples?  Effects within samples, and how they vary.

A sample (a donor, a mouse) is what was replicated, not a cell.  Each sample has one effect
a gene, the difference of its mean log2 expression between the sides; or, where no sample is
on both sides, one mean a side.  What is asked is the mean effect over the population that
the samples were taken from:

* the effect is the mean of what the model expects of the samples' cells;
* the variance between samples is that of the counts of each sample, added up: the model
  draws samples together that it was not told of, and would find them too much alike;
* it is moderated over genes (Smyth 2004, doi:10.2202/1544-6115.1027), since few samples say
  little about it;
* where the model expects more than was counted in the mean, or the contrary, that is added to
  the error: a change of one sample, which the model expects of all, is not one of all;
* effects have a prior that is learned from all genes, a mixture of normals around zero and
  of zero itself (Stephens 2017, doi:10.1093/biostatistics/kxw041), so that where no gene
  differs none is called;
* their posterior follows from both, with Student's t for what was observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from vivace.de.change import Change
from vivace.types import F64, Bool

_GRID_STEP = 0.02  # log2 units between the points of the posterior of an effect
_ERRORS = 6  # that the grid goes beyond an effect
_FARTHEST = 40.0  # log2 units: no expression of a model differs more
_GENES_AT_ONCE = 512
_NULL_WEIGHT = 10.0  # pseudo-genes without an effect, so that the prior leans to zero
_EM_STEPS = 500
_EM_TOLERANCE = 1e-6
_MANY = 1e6  # degrees of freedom that stand for infinitely many


@dataclass(frozen=True)
class Effects:
    """What was observed for each of g genes.

    Parameters
    ----------
    mean
        Effect, log2.
    error
        Its standard error, of the moderated variance and of what goes beyond the counts.
    dof
        Degrees of freedom of that.
    least, largest
        Effect in the counts of one sample (of one pair, where they are unpaired).
    """

    mean: F64
    error: F64
    dof: float
    least: F64
    largest: F64


def paired_effects(expected: tuple[F64, F64], counted: tuple[F64, F64], fit: Bool) -> Effects:
    """Effects of samples that are on both sides.

    ``expected`` and ``counted``: log2 expression of the samples of either side as the model
    expects it and as it was counted, shape (samples, g) each.  The genes of ``fit`` say what
    variance is usual.
    """
    mean = (expected[0] - expected[1]).mean(0)
    difference = counted[0] - counted[1]
    n = len(difference)
    variance, dof = moderated(difference.var(0, ddof=1), n - 1, fit)
    error = np.hypot(np.sqrt(variance / n), _excess(mean, difference.mean(0)))
    return Effects(mean, error, dof, difference.min(0), difference.max(0))


def unpaired_effects(expected: tuple[F64, F64], counted: tuple[F64, F64], fit: Bool) -> Effects:
    """Effects of samples that are on one side each."""
    mean = expected[0].mean(0) - expected[1].mean(0)
    n, m = (len(side) for side in counted)
    squares = sum(((side - side.mean(0)) ** 2).sum(0) for side in counted)
    variance, dof = moderated(squares / (n + m - 2), n + m - 2, fit)
    excess = _excess(mean, counted[0].mean(0) - counted[1].mean(0))
    return Effects(
        mean,
        np.hypot(np.sqrt(variance * (1 / n + 1 / m)), excess),
        dof,
        counted[0].min(0) - counted[1].max(0),
        counted[0].max(0) - counted[1].min(0),
    )


def _excess(expected: F64, counted: F64) -> F64:
    """How far an effect goes beyond the one that was counted, or against it; 0 if it does not."""
    return np.abs(expected - np.clip(expected, np.minimum(counted, 0), np.maximum(counted, 0)))


def moderated(variance: F64, dof: int, fit: Bool) -> tuple[F64, float]:
    """Variances drawn towards what is usual over genes, and their degrees of freedom.

    Variances follow a scaled inverse chi-squared distribution over the genes of ``fit``,
    whose two parameters are those that match mean and variance of their logarithms.
    """
    usable = fit & (variance > 0)
    if usable.sum() < 3:
        return np.maximum(variance, np.finfo(float).tiny), float(dof)
    logs = np.log(variance[usable]) - digamma(dof / 2) + np.log(dof / 2)
    spread = logs.var(ddof=1) - polygamma(1, dof / 2)
    if spread <= polygamma(1, _MANY / 2):
        return np.full_like(variance, np.exp(logs.mean())), _MANY
    prior_dof = 2 * brentq(lambda half: polygamma(1, half) - spread, 1e-6, _MANY)
    prior = np.exp(logs.mean() + digamma(prior_dof / 2) - np.log(prior_dof / 2))
    together = prior_dof + dof
    return (prior_dof * prior + dof * variance) / together, float(together)


def change_over_samples(
    effects: Effects, delta: float, fit: Bool, levels: Sequence[float]
) -> Change:
    """The posterior of each gene's mean effect; the prior is learned from the genes of ``fit``."""
    n_genes = len(effects.mean)
    reach = (np.abs(effects.mean) + _ERRORS * effects.error).max(initial=delta + 1.0)
    reach = min(reach, _FARTHEST)
    half = int(np.ceil(reach / _GRID_STEP))
    grid: F64 = np.arange(-half, half + 1, dtype=np.float64) * _GRID_STEP
    components = _components(grid, effects)
    weights = _prior_weights(effects, grid, components, fit)
    prior = weights @ components
    found = {
        name: np.empty(n_genes) for name in ("plus", "minus", "above", "mean", "median", "std")
    }
    ends = {level: (np.empty(n_genes), np.empty(n_genes)) for level in levels}
    plus, minus = _beyond(grid, delta), _beyond(-grid, delta)
    above = _beyond(grid, 0.0) + 0.5 * (grid == 0)
    for start in range(0, n_genes, _GENES_AT_ONCE):
        part = slice(start, start + _GENES_AT_ONCE)
        posterior = _likelihood(effects, grid, part) * prior
        posterior /= posterior.sum(1, keepdims=True)
        below = np.cumsum(posterior, axis=1)
        found["plus"][part] = posterior @ plus
        found["minus"][part] = posterior @ minus
        found["above"][part] = posterior @ above
        mean = posterior @ grid
        found["mean"][part] = mean
        found["std"][part] = np.sqrt(np.maximum(posterior @ grid**2 - mean**2, 0.0))
        found["median"][part] = grid[(below >= 0.5).argmax(1)]
        for level, (low, high) in ends.items():
            low[part] = grid[(below >= (1 - level) / 2).argmax(1)]
            high[part] = grid[(below >= (1 + level) / 2).argmax(1)]
    return Change(**found, min=effects.least, max=effects.largest, intervals=ends)


def _beyond(grid: F64, delta: float) -> F64:
    """Which points of the grid are delta or more; of one that is delta half; zero never is."""
    at = np.isclose(grid, delta, atol=1e-9)
    return np.where(at, 0.5 * (delta > 0), grid > delta)


def _components(grid: F64, effects: Effects) -> F64:
    """Densities over the grid, each adding up to 1: zero itself, and ever wider normals."""
    zero = np.zeros_like(grid)
    zero[len(grid) // 2] = 1.0
    widest = max(2 * np.abs(effects.mean).max(initial=0.0), 4 * _GRID_STEP)
    widths = []
    width = 2 * _GRID_STEP
    while width < widest:
        widths.append(width)
        width *= np.sqrt(2)
    widths.append(width)
    normals = [np.exp(-0.5 * (grid / w) ** 2) for w in widths]
    return np.stack([zero, *(x / x.sum() for x in normals)])


def _prior_weights(effects: Effects, grid: F64, components: F64, fit: Bool) -> F64:
    """Weights of the components by expectation-maximisation over the genes of ``fit``."""
    likelihood = np.concatenate(
        [
            _likelihood(effects, grid, slice(start, start + _GENES_AT_ONCE)) @ components.T
            for start in range(0, len(effects.mean), _GENES_AT_ONCE)
        ]
    )[fit]
    weights = np.full(len(components), 1 / len(components))
    extra = np.zeros(len(components))
    extra[0] = _NULL_WEIGHT
    for _ in range(_EM_STEPS):
        share = likelihood * weights
        share /= share.sum(1, keepdims=True)
        updated = share.sum(0) + extra
        updated /= updated.sum()
        moved = np.abs(updated - weights).max()
        weights = updated
        if moved < _EM_TOLERANCE:
            break
    return weights


def _likelihood(effects: Effects, grid: F64, genes: slice) -> F64:
    """Of each point of the grid, up to a factor a gene, shape (g, points)."""
    error = np.maximum(effects.error[genes, None], 0.5 * _GRID_STEP)
    standard = (effects.mean[genes, None] - grid) / error
    log = -0.5 * (effects.dof + 1) * np.log1p(standard**2 / effects.dof)  # Student's t
    found: F64 = np.exp(log - log.max(1, keepdims=True))
    return found
