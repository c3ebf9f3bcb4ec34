"""Is a gene expressed differently across replicates? Effects within replicates, and how they vary.

A replicate is a biological sample: a donor or a mouse. It, not the cell, is the unit of
replication. Each replicate has one effect per gene, the difference of its mean log2 expression
between the sides. If no replicate is on both sides, each has one mean per gene instead. The
method estimates the mean effect over the population from which the replicates were sampled:

* the effect is the mean of what the model expects of the replicates' cells;
* the variance between replicates is that of their pooled counts: the model does not know the
  replicates and shrinks them together, and its estimates of them are too similar;
* the variance is moderated over genes (Smyth 2004, doi:10.2202/1544-6115.1027), because a few
  replicates determine it poorly;
* if the model expects a larger mean effect than the counts show, or one of opposite sign, the
  difference is added to the error, because the model may attribute a change in one replicate to
  all of them;
* effects have a prior that is learned from all genes, a mixture of normals around zero and of
  zero itself (Stephens 2017, doi:10.1093/biostatistics/kxw041). If no gene differs, none is
  called;
* the posterior of the mean effect follows from both, with Student's t for the observations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from vivace.cells import Cells, child_seeds
from vivace.data.schema import Codes
from vivace.de.counts import CountSums, sum_counts
from vivace.de.options import Options, Sampling
from vivace.de.plan import Comparison, Plan
from vivace.de.result_table import ComparisonResult, Design, EffectSummary
from vivace.de.samples import ExpressionSamples, drop_outliers, sample_latents
from vivace.de.thresholds import choose_delta, choose_pseudocount, max_by_part
from vivace.errors import DataError, list_names, one_line, warn
from vivace.types import F64, Bool, Rows

Piece = tuple[int, str]  # the cells of one replicate in one part of the plan
Side = dict[str, list[Piece]]  # the pieces of each replicate
LEAST_CELLS = 10  # of a replicate on a side
_LEAST_SAMPLES = 100  # of a piece

_GRID_STEP = 0.02  # log2 units between the points of the posterior of an effect
_N_ERRORS = 6  # standard errors that the grid reaches beyond an effect
_MAX_EFFECT = 40.0  # log2 units: a model's expression never differs by more
_GENES_AT_ONCE = 512
_NULL_WEIGHT = 10.0  # added genes without an effect, which pull the prior towards zero
_EM_STEPS = 500
_EM_TOLERANCE = 1e-6
_MANY = 1e6  # degrees of freedom that stand for infinitely many


def compare_replicates(
    cells: Cells,
    plan: Plan,
    options: Options,
    sampling: Sampling,
    sums: CountSums,
    replicates: NDArray[np.str_],
    seeds: tuple[int, int],
) -> list[ComparisonResult | None]:
    """The mean effect over replicates, for each comparison; None if there are too few of them.

    Parameters
    ----------
    cells
        All cells of the data.
    plan
        What is compared.
    options, sampling
        How it is compared.
    sums
        Sums of the counts of each part of the plan.
    replicates
        The replicate of each cell.
    seeds
        Seeds of the samples and of the search for delta.
    """
    samples_seed, delta_seed = seeds

    # Divide the parts of the plan by replicate, and choose the replicates of each side.
    rows_of_piece: dict[Piece, Rows] = {}
    seeds_of_parts = [samples_seed] * len(plan.parts)
    for i, kept in enumerate(drop_outliers(cells, plan.parts, sampling, seeds_of_parts)):
        for name in np.unique(replicates[kept]):
            rows_of_piece[i, name] = kept[replicates[kept] == name]
    n_cells = {piece: len(rows) for piece, rows in rows_of_piece.items()}
    considered = [_choose_replicates(comparison, n_cells) for comparison in plan.comparisons]
    chosen = [sides if _has_enough(sides) else None for sides in considered]
    if not any(chosen):
        raise DataError(
            f"No comparison has two samples of at least {LEAST_CELLS} cells on each side, which a "
            "comparison across samples needs; leave sample_key out, or compare other groups."
        )
    _warn_about_left_out(plan, considered)

    # Sample each piece once per set of categories; every comparison that includes it reuses it.
    wanted = list(
        dict.fromkeys(
            (piece, codes)
            for sides in chosen
            if sides is not None
            for side, codes in zip(sides[1:], sampling.codes, strict=True)
            for pieces in side.values()
            for piece in pieces
        )
    )
    n_total = options.n_samples(len(plan.parts)) * len(plan.parts)
    n_samples = max(_LEAST_SAMPLES, n_total // len(wanted))
    groups = [
        sample_latents(
            cells.take(rows_of_piece[piece]).quiet(), n_samples, codes, seed, sampling.weighting
        )
        for (piece, codes), seed in zip(wanted, child_seeds(samples_seed, len(wanted)), strict=True)
    ]
    position = {key: i for i, key in enumerate(wanted)}
    samples = ExpressionSamples(groups, cells.network.dims.n_genes, silent=cells.silent)
    scale, largest = samples.summarise()
    part_largest = max_by_part(largest, [part for (part, _), _ in wanted], len(plan.parts))
    pseudocount = choose_pseudocount(part_largest, sums, options)

    # Means of each piece: log2 expression that the model expects, and the share in the counts.
    expected = _mean_logs(samples, pseudocount)
    piece_sums = sum_counts(cells, [rows_of_piece[piece] for piece, _ in wanted])
    share = piece_sums.counts / piece_sums.size[:, None]

    results: list[ComparisonResult | None] = []
    for sides in chosen:
        if sides is None:
            results.append(None)
            continue
        design, first, second = sides
        first_codes, second_codes = sampling.codes
        expected_logs, shares, scales = (
            (
                _average_pieces(values, first, first_codes, position, n_cells),
                _average_pieces(values, second, second_codes, position, n_cells),
            )
            for values in (expected, share, scale)
        )
        counted_logs = np.log2(shares[0] + pseudocount), np.log2(shares[1] + pseudocount)
        mean_scale = scales[0].mean(0), scales[1].mean(0)
        expressed = np.maximum(*mean_scale) > pseudocount
        observe = observe_paired if design == "paired" else observe_unpaired
        observed = observe(expected_logs, counted_logs, expressed)
        if options.delta is None:
            delta = choose_delta(observed.mean, delta_seed)
        else:
            delta = float(options.delta)
        results.append(
            ComparisonResult(
                effect=infer_mean_effects(observed, delta, expressed, options.cred_interval_lvls),
                scale=mean_scale,
                pseudocount=pseudocount,
                delta=delta,
                n_cells=(_count_cells(first, n_cells), _count_cells(second, n_cells)),
                n_samples=(
                    n_samples * sum(map(len, first.values())),
                    n_samples * sum(map(len, second.values())),
                ),
                design=design,
                n_replicates=(len(first), len(second)),
            )
        )
    return results


def _choose_replicates(
    comparison: Comparison, n_cells: Mapping[Piece, int]
) -> tuple[Design, Side, Side]:
    """The design, and the replicates of each side that have enough cells there.

    If two replicates or more, and at least half of those of the smaller side, are on both
    sides, only those are compared, in pairs.
    """
    sides: list[Side] = []
    for parts in ((comparison.first,), comparison.second):
        side: Side = {}
        for i, name in n_cells:
            if i in parts:
                side.setdefault(name, []).append((i, name))
        enough = {
            name: pieces
            for name, pieces in side.items()
            if sum(n_cells[piece] for piece in pieces) >= LEAST_CELLS
        }
        sides.append(enough)
    first, second = sides
    shared = [name for name in first if name in second]
    design: Design = "unpaired"
    if len(shared) >= 2 and 2 * len(shared) >= min(len(first), len(second)):
        design = "paired"
        first, second = ({name: side[name] for name in shared} for side in sides)
    return design, first, second


def _has_enough(sides: tuple[Design, Side, Side]) -> bool:
    """Whether both sides have the two replicates that a variance needs."""
    _, first, second = sides
    return min(len(first), len(second)) >= 2


def _warn_about_left_out(plan: Plan, considered: Sequence[tuple[Design, Side, Side]]) -> None:
    """One warning of all comparisons with too few replicates."""
    left_out = [
        (comparison.name, sides)
        for comparison, sides in zip(plan.comparisons, considered, strict=True)
        if not _has_enough(sides)
    ]
    if len(left_out) == 1:
        name, (_, first, second) = left_out[0]
        warn(
            f"{one_line(name)} is left out: {len(first)} and {len(second)} samples of at least "
            f"{LEAST_CELLS} cells, but a comparison across samples needs two per side."
        )
    elif left_out:
        names = list_names([name for name, _ in left_out])
        warn(
            f"{len(left_out)} of {len(plan.comparisons)} comparisons are left out ({names}), because "
            f"a side has fewer than two samples of at least {LEAST_CELLS} cells."
        )


def _count_cells(side: Side, n_cells: Mapping[Piece, int]) -> int:
    return sum(n_cells[piece] for pieces in side.values() for piece in pieces)


def _mean_logs(samples: ExpressionSamples, pseudocount: float) -> F64:
    """The mean log2 expression of each group of samples, shape (groups, g)."""
    mean = np.empty((len(samples.groups), samples.n_genes))
    for genes, x_gm in samples.blocks():
        for i, positions in enumerate(samples.positions):
            group_gm = x_gm[:, positions[0] : positions[-1] + 1]
            mean[i, genes] = np.log2(group_gm + np.float32(pseudocount)).mean(1)
    return mean


def _average_pieces(
    values: F64,
    side: Side,
    codes: tuple[Codes, ...],
    position: Mapping[tuple[Piece, tuple[Codes, ...]], int],
    n_cells: Mapping[Piece, int],
) -> F64:
    """Means of replicates from those of their pieces, weighted by cells, shape (replicates, g)."""
    return np.stack(
        [
            np.average(
                values[[position[piece, codes] for piece in pieces]],
                axis=0,
                weights=[n_cells[piece] for piece in pieces],
            )
            for pieces in side.values()
        ]
    )


# ---- observed effects -------------------------------------------------------------------


@dataclass(frozen=True)
class ObservedEffects:
    """The observed effects of g genes.

    Parameters
    ----------
    mean
        Mean effect, log2, shape (g,).
    error
        Its standard error, from the moderated variance and the excess over the counts, (g,).
    dof
        Degrees of freedom of the error.
    least, largest
        Smallest and largest effect in the counts of one replicate, or of one pair of replicates
        if they are unpaired, shape (g,) each.
    """

    mean: F64
    error: F64
    dof: float
    least: F64
    largest: F64


def observe_paired(
    expected: tuple[F64, F64], counted: tuple[F64, F64], fit: Bool
) -> ObservedEffects:
    """Effects of replicates that are on both sides.

    Parameters
    ----------
    expected, counted
        Log2 expression of the replicates of each side, as the model expects it and as it was
        counted, shape (replicates, g) each.
    fit
        Genes from which the typical variance is estimated, shape (g,).
    """
    mean = (expected[0] - expected[1]).mean(0)
    difference = counted[0] - counted[1]
    n = len(difference)
    variance, dof = moderate_variances(difference.var(0, ddof=1), n - 1, fit)
    error = np.hypot(np.sqrt(variance / n), _excess(mean, difference.mean(0)))
    return ObservedEffects(mean, error, dof, difference.min(0), difference.max(0))


def observe_unpaired(
    expected: tuple[F64, F64], counted: tuple[F64, F64], fit: Bool
) -> ObservedEffects:
    """Effects of replicates that are on one side each; arguments as in :func:`observe_paired`."""
    mean = expected[0].mean(0) - expected[1].mean(0)
    n, m = (len(side) for side in counted)
    squares = sum(((side - side.mean(0)) ** 2).sum(0) for side in counted)
    variance, dof = moderate_variances(squares / (n + m - 2), n + m - 2, fit)
    excess = _excess(mean, counted[0].mean(0) - counted[1].mean(0))
    return ObservedEffects(
        mean,
        np.hypot(np.sqrt(variance * (1 / n + 1 / m)), excess),
        dof,
        counted[0].min(0) - counted[1].max(0),
        counted[0].max(0) - counted[1].min(0),
    )


def _excess(expected: F64, counted: F64) -> F64:
    """How far an effect lies outside the interval from 0 to the counted one."""
    return np.abs(expected - np.clip(expected, np.minimum(counted, 0), np.maximum(counted, 0)))


def moderate_variances(variance: F64, dof: int, fit: Bool) -> tuple[F64, float]:
    """Variances shrunk towards the typical one over genes, and their degrees of freedom.

    Variances of the genes of ``fit`` follow a scaled inverse chi-squared distribution. Its two
    parameters match the mean and variance of their logarithms.
    """
    usable = fit & (variance > 0)
    if usable.sum() < 3:
        return np.maximum(variance, np.finfo(float).tiny), float(dof)
    logs = np.log(variance[usable]) - digamma(dof / 2) + np.log(dof / 2)
    spread = logs.var(ddof=1) - polygamma(1, dof / 2)
    if spread <= polygamma(1, _MANY / 2):  # no more than by chance: all genes share one variance
        return np.full_like(variance, np.exp(logs.mean())), _MANY
    prior_dof = 2 * brentq(lambda half: polygamma(1, half) - spread, 1e-6, _MANY)
    prior = np.exp(logs.mean() + digamma(prior_dof / 2) - np.log(prior_dof / 2))
    total_dof = prior_dof + dof
    return (prior_dof * prior + dof * variance) / total_dof, float(total_dof)


# ---- the posterior of the mean effect ---------------------------------------------------


def infer_mean_effects(
    observed: ObservedEffects, delta: float, fit: Bool, levels: Sequence[float]
) -> EffectSummary:
    """The posterior of each gene's mean effect, on a grid of effects.

    Parameters
    ----------
    observed
        What was observed.
    delta
        Smallest effect that counts.
    fit
        Genes that the prior is learned from, shape (g,).
    levels
        Levels of central credible intervals.
    """
    n_genes = len(observed.mean)
    reach = (np.abs(observed.mean) + _N_ERRORS * observed.error).max(initial=delta + 1.0)
    reach = min(reach, _MAX_EFFECT)
    half = int(np.ceil(reach / _GRID_STEP))
    grid: F64 = np.arange(-half, half + 1, dtype=np.float64) * _GRID_STEP
    components = _prior_components(grid, observed)
    weights = _fit_prior_weights(observed, grid, components, fit)
    prior = weights @ components

    stats = {
        name: np.empty(n_genes) for name in ("plus", "minus", "above", "mean", "median", "std")
    }
    intervals = {level: (np.empty(n_genes), np.empty(n_genes)) for level in levels}
    plus, minus = _mark_above(grid, delta), _mark_above(-grid, delta)
    above = _mark_above(grid, 0.0) + 0.5 * (grid == 0)
    for start in range(0, n_genes, _GENES_AT_ONCE):
        genes = slice(start, start + _GENES_AT_ONCE)
        posterior = _likelihood(observed, grid, genes) * prior  # [genes, grid]
        posterior /= posterior.sum(1, keepdims=True)
        below = np.cumsum(posterior, axis=1)
        stats["plus"][genes] = posterior @ plus
        stats["minus"][genes] = posterior @ minus
        stats["above"][genes] = posterior @ above
        mean = posterior @ grid
        stats["mean"][genes] = mean
        stats["std"][genes] = np.sqrt(np.maximum(posterior @ grid**2 - mean**2, 0.0))
        stats["median"][genes] = grid[(below >= 0.5).argmax(1)]
        for level, (low, high) in intervals.items():
            low[genes] = grid[(below >= (1 - level) / 2).argmax(1)]
            high[genes] = grid[(below >= (1 + level) / 2).argmax(1)]
    return EffectSummary(**stats, min=observed.least, max=observed.largest, intervals=intervals)


def _mark_above(grid: F64, delta: float) -> F64:
    """Which points of the grid are above delta; a point at delta counts half, zero never counts."""
    is_delta = np.isclose(grid, delta, atol=1e-9)
    return np.where(is_delta, 0.5 * (delta > 0), grid > delta)


def _prior_components(grid: F64, observed: ObservedEffects) -> F64:
    """Densities over the grid that sum to 1: zero itself, and normals of growing width."""
    zero = np.zeros_like(grid)
    zero[len(grid) // 2] = 1.0
    widest = max(2 * np.abs(observed.mean).max(initial=0.0), 4 * _GRID_STEP)
    widths = []
    width = 2 * _GRID_STEP
    while width < widest:
        widths.append(width)
        width *= np.sqrt(2)
    widths.append(width)
    normals = [np.exp(-0.5 * (grid / w) ** 2) for w in widths]
    return np.stack([zero, *(x / x.sum() for x in normals)])


def _fit_prior_weights(observed: ObservedEffects, grid: F64, components: F64, fit: Bool) -> F64:
    """Weights of the components by expectation-maximisation over the genes of ``fit``."""
    likelihood = np.concatenate(
        [
            _likelihood(observed, grid, slice(start, start + _GENES_AT_ONCE)) @ components.T
            for start in range(0, len(observed.mean), _GENES_AT_ONCE)
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
        change = np.abs(updated - weights).max()
        weights = updated
        if change < _EM_TOLERANCE:
            break
    return weights


def _likelihood(observed: ObservedEffects, grid: F64, genes: slice) -> F64:
    """Student's t at each point of the grid, up to a factor per gene, shape (genes, points)."""
    error = np.maximum(observed.error[genes, None], 0.5 * _GRID_STEP)
    standard = (observed.mean[genes, None] - grid) / error
    log = -0.5 * (observed.dof + 1) * np.log1p(standard**2 / observed.dof)
    likelihood: F64 = np.exp(log - log.max(1, keepdims=True))
    return likelihood
