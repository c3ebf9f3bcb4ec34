"""Is a gene expressed differently? The fold change between a cell of one group and of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vivace.cells import Cells, child_seeds
from vivace.de import histograms
from vivace.de.counts import CountSums
from vivace.de.options import Options, Sampling
from vivace.de.pairs import Sides, choose_all_pairs, find_intervals, summarise_user_effects
from vivace.de.plan import Plan
from vivace.de.result_table import ComparisonResult, EffectSummary
from vivace.de.samples import ExpressionSamples, drop_outliers, sample_latents
from vivace.de.thresholds import choose_delta, choose_pseudocount, max_by_part
from vivace.types import I32

_TINY = 1e-10  # mode vanilla has no pseudocount, but logarithms must be finite


def compare_cells(
    cells: Cells,
    plan: Plan,
    options: Options,
    sampling: Sampling,
    sums: CountSums | None,
    seeds: tuple[int, int, int],
) -> list[ComparisonResult]:
    """The fold change between cells, for each comparison.

    Parameters
    ----------
    cells
        All cells of the data.
    plan
        What is compared.
    options, sampling
        How it is compared.
    sums
        Sums of the counts of each part of the plan; None if the data have no counts.
    seeds
        Seeds of the samples, of the pairs of samples and of the search for delta.
    """
    samples_seed, pairs_seed, delta_seed = seeds
    first_codes, second_codes = sampling.codes

    # Sample each part once per set of categories; every comparison that includes it reuses it.
    wanted = list(
        dict.fromkeys(
            key
            for c in plan.comparisons
            for key in ((c.first, first_codes), *((j, second_codes) for j in c.second))
        )
    )
    part_seeds = child_seeds(samples_seed, len(plan.parts))
    parts = drop_outliers(cells, plan.parts, sampling, part_seeds)
    n_samples = options.n_samples(len(wanted))
    groups = [
        sample_latents(
            cells.take(parts[i]).quiet(), n_samples, codes, part_seeds[i], sampling.weighting
        )
        for i, codes in wanted
    ]
    samples = ExpressionSamples(
        groups,
        cells.network.dims.n_genes,
        all_genes=options.has_user_functions,
        silent=cells.silent,
    )
    mean, largest = samples.summarise()

    # The second side is a mixture of its groups, in proportion to their numbers of cells.
    position = {key: i for i, key in enumerate(wanted)}
    sides = []
    for c in plan.comparisons:
        size = np.array([len(parts[j]) for j in c.second], float)
        second = tuple(position[j, second_codes] for j in c.second)
        sides.append(Sides(position[c.first, first_codes], second, tuple(size / size.sum())))

    deltas: list[float | None]
    if options.mode == "vanilla":
        pseudocount, deltas = 0.0, [None] * len(sides)
        effects = summarise_effects(samples, _TINY, sides, [0.0] * len(sides))
    else:
        part_largest = max_by_part(largest, [part for part, _ in wanted], len(plan.parts))
        pseudocount = choose_pseudocount(part_largest, sums, options)
        if options.has_user_functions:
            pairs = choose_all_pairs(samples, sides, options, pairs_seed)
            effects, deltas = summarise_user_effects(
                samples, pseudocount, pairs, options, delta_seed
            )
        else:
            effects, deltas = _summarise_fold_changes(
                samples, pseudocount, sides, options, pairs_seed, delta_seed
            )

    return [
        ComparisonResult(
            effect=effect,
            scale=(
                mean[s.first],
                np.average(mean[list(s.second)], axis=0, weights=s.weights),
            ),
            pseudocount=pseudocount,
            delta=delta,
            n_cells=(len(parts[c.first]), sum(len(parts[j]) for j in c.second)),
            n_samples=(len(groups[s.first]), sum(len(groups[j]) for j in s.second)),
        )
        for c, s, effect, delta in zip(plan.comparisons, sides, effects, deltas, strict=True)
    ]


def _summarise_fold_changes(
    samples: ExpressionSamples,
    pseudocount: float,
    sides: Sequence[Sides],
    options: Options,
    pairs_seed: int,
    delta_seed: int,
) -> tuple[list[EffectSummary], list[float | None]]:
    """The log2 fold change and the threshold of each comparison."""
    if options.delta is None:
        unthresholded = summarise_effects(samples, pseudocount, sides, [0.0] * len(sides))
        deltas = [choose_delta(effect.mean, delta_seed) for effect in unthresholded]
    else:
        deltas = [float(options.delta)] * len(sides)
    effects = summarise_effects(samples, pseudocount, sides, deltas)
    if options.cred_interval_lvls:
        pairs = choose_all_pairs(samples, sides, options, pairs_seed)
        intervals = find_intervals(samples, pseudocount, pairs, options.cred_interval_lvls)
        effects = [replace(e, intervals=i) for e, i in zip(effects, intervals, strict=True)]
    return effects, list(deltas)


def summarise_effects(
    samples: ExpressionSamples,
    pseudocount: float,
    sides: Sequence[Sides],
    deltas: Sequence[float],
) -> list[EffectSummary]:
    """The log2 fold change of each gene, all samples of one side against all of the other.

    If both sides are decoded as the same categories, only samples with equal categories
    are compared.
    """
    starts, segments = _number_segments(samples, sides)
    n_codes = segments.shape[1]
    first = np.array([segments[s.first] for s in sides], np.int32)
    widest = max(len(s.second) for s in sides)
    second = np.zeros((len(sides), widest, n_codes), np.int32)
    weights = np.zeros((len(sides), widest))
    for c, side in enumerate(sides):
        second[c, : len(side.second)] = segments[list(side.second)]
        weights[c, : len(side.second)] = side.weights
    stats = np.empty((len(sides), samples.n_genes, 8))
    for genes, x_gm in samples.blocks():
        out = np.empty((len(sides), len(x_gm), 8))
        histograms.describe(
            out, x_gm, pseudocount, starts, first, second, weights, np.asarray(deltas, float)
        )
        stats[:, genes] = out
    return [
        EffectSummary(
            plus=s[:, histograms.PLUS],
            minus=s[:, histograms.MINUS],
            above=s[:, histograms.ABOVE],
            mean=s[:, histograms.MEAN],
            median=s[:, histograms.MEDIAN],
            std=s[:, histograms.STD],
            min=s[:, histograms.MIN],
            max=s[:, histograms.MAX],
        )
        for s in stats
    ]


def _number_segments(samples: ExpressionSamples, sides: Sequence[Sides]) -> tuple[I32, I32]:
    """Start of each segment of samples, and each group's segment numbers, (groups, codes).

    If the sides are decoded differently, all samples of a group count as one segment.
    """
    alike = all(
        samples.groups[j].codes == samples.groups[s.first].codes for s in sides for j in s.second
    )
    n_codes = len(samples.groups[sides[0].first].codes) if alike else 1
    starts = np.concatenate([p[:: len(p) // n_codes] for p in samples.positions])
    starts = np.append(starts, samples.positions[-1][-1] + 1).astype(np.int32)
    numbers = np.arange(len(samples.groups) * n_codes, dtype=np.int32)
    return starts, numbers.reshape(len(samples.groups), n_codes)
