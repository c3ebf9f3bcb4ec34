"""Is a gene expressed differently? The fold change between a cell of one group and of another."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.cells import Cells, child_seeds
from vivace.de import histograms
from vivace.de.counts import CountSums
from vivace.de.options import Options, Sampling
from vivace.de.plan import Plan
from vivace.de.result_table import ComparisonResult, EffectSummary
from vivace.de.samples import ExpressionSamples, drop_outliers, sample_latents
from vivace.errors import ArgumentTypeError, MissingExtraError, OptionError
from vivace.types import F32, F64, I32, Rows

_TINY = 1e-10  # mode vanilla has no pseudocount, but logarithms must be finite
_LEAST_PSEUDOCOUNT = 1e-10
_SILENT_QUANTILE = 0.9  # of the largest expression of genes that are not expressed
_LEAST_DELTA, _DELTA_SHARE = 0.1, 0.6


@dataclass(frozen=True)
class Sides:
    """The two sides of a comparison, as positions of groups among those that were sampled.

    Parameters
    ----------
    first
        The one group of the first side.
    second
        The groups of the second side.
    weights
        Weights of the groups of the second side, which sum to 1.
    """

    first: int
    second: tuple[int, ...]
    weights: tuple[float, ...]


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
        Of the samples, of pairs of samples, and of the search for delta.
    """
    samples_seed, pairs_seed, delta_seed = seeds
    first_codes, second_codes = sampling.codes

    # Each part is sampled once per set of categories, and serves every comparison it is in.
    wanted = list(
        dict.fromkeys(
            key
            for c in plan.comparisons
            for key in ((c.first, first_codes), *((j, second_codes) for j in c.second))
        )
    )
    part_seeds = child_seeds(samples_seed, len(plan.parts))
    parts = [
        drop_outliers(cells, rows, sampling, seed)
        for rows, seed in zip(plan.parts, part_seeds, strict=True)
    ]
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
        by_part = max_by_part(largest, [part for part, _ in wanted], len(plan.parts))
        pseudocount = choose_pseudocount(by_part, sums, options)
        if options.has_user_functions:
            pairs = _choose_all_pairs(samples, sides, options, pairs_seed)
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
        at_zero = summarise_effects(samples, pseudocount, sides, [0.0] * len(sides))
        deltas = [choose_delta(effect.mean, delta_seed) for effect in at_zero]
    else:
        deltas = [float(options.delta)] * len(sides)
    effects = summarise_effects(samples, pseudocount, sides, deltas)
    if options.cred_interval_lvls:
        pairs = _choose_all_pairs(samples, sides, options, pairs_seed)
        intervals = find_intervals(samples, pseudocount, pairs, options.cred_interval_lvls)
        effects = [replace(e, intervals=i) for e, i in zip(effects, intervals, strict=True)]
    return effects, list(deltas)


# ---- the pseudocount and the threshold --------------------------------------------------


def max_by_part(largest: F64, part_of_group: Sequence[int], n_parts: int) -> F64:
    """The maximum over the sampled groups of each part of the plan, shape (parts, g)."""
    maximum = np.zeros((n_parts, largest.shape[1]))
    for values, part in zip(largest, part_of_group, strict=True):
        np.maximum(maximum[part], values, out=maximum[part])
    return maximum


def choose_pseudocount(largest: F64, sums: CountSums | None, options: Options) -> float:
    """What is added to the expression before its logarithm.

    A gene with hardly a count in a group is expressed there in the decoder's opinion alone.
    The pseudocount is the 0.9 quantile of what such genes reach, which makes changes below it
    count as nothing. It is the largest over the groups that have enough cells for one count to
    lie above ``threshold_counts``, or over the largest group alone, if none has: in ten cells
    most genes are silent. It is at least the share of a cell's molecules that
    ``threshold_counts`` molecules are.

    Parameters
    ----------
    largest
        Typical largest expression in each part of the plan, shape (parts, g).
    sums
        Sums of the counts of each part; None if the data have no counts.
    options
        Options of the comparison.
    """
    if options.pseudocounts is not None:
        return max(float(options.pseudocounts), _LEAST_PSEUDOCOUNT)
    if sums is None:
        raise OptionError(
            "The pseudocount is chosen from the counts, which minify_adata dropped; give a number "
            "as pseudocounts=, for example 1e-6."
        )
    n_cells = sums.n_cells
    least = options.threshold_counts * n_cells.sum() / sums.size.sum()
    pseudocount = max(_LEAST_PSEUDOCOUNT, float(least))
    large = n_cells * options.threshold_counts >= 1
    for i in np.flatnonzero(large) if large.any() else [int(n_cells.argmax())]:
        silent = sums.counts[i] / n_cells[i] < options.threshold_counts
        if silent.any():
            reached = float(np.quantile(largest[i, silent], _SILENT_QUANTILE))
            pseudocount = max(pseudocount, reached)
    return pseudocount


def choose_delta(effects: F64, seed: int) -> float:
    """A threshold for fold changes, from their distribution over genes.

    Three normal components are fitted. The threshold is 0.6 times the mean absolute value of
    the outer two means, and at least 0.1.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise MissingExtraError(
            "delta=None needs scikit-learn, which is not installed; run pip install 'vivace[de]'."
        ) from error
    if len(effects) < 2:
        return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(effects).max(initial=0.0)))
    n_components = min(3, len(np.unique(effects)))
    mixture = GaussianMixture(n_components=n_components, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is close enough
        means = np.sort(mixture.fit(effects[:, None]).means_.ravel())
    return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(means[[0, -1]]).mean()))


# ---- log2 fold changes of all pairs of samples ------------------------------------------


def summarise_effects(
    samples: ExpressionSamples,
    pseudocount: float,
    sides: Sequence[Sides],
    deltas: Sequence[float],
) -> list[EffectSummary]:
    """The log2 fold change of each gene, all samples of one side against all of the other.

    If both sides are decoded as the same categories, only samples of the same are compared.
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
    """Where segments of samples begin, and the numbers of each group's, (groups, codes).

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


# ---- a part of the pairs, for intervals and users' functions ----------------------------


def _choose_all_pairs(
    samples: ExpressionSamples, sides: Sequence[Sides], options: Options, seed: int
) -> list[tuple[Rows, Rows]]:
    """Pairs of samples for each comparison."""
    n_pairs = options.n_pairs(len(samples.groups[0]))
    return [
        choose_pairs(samples, side, n_pairs, side_seed)
        for side, side_seed in zip(sides, child_seeds(seed, len(sides)), strict=True)
    ]


def choose_pairs(
    samples: ExpressionSamples, sides: Sides, n_pairs: int, seed: int
) -> tuple[Rows, Rows]:
    """Pairs of samples: positions of those of the first and of the second side, (pairs,) each.

    The groups of the second side occur in proportion to their weights. If both sides are
    decoded as the same categories, so are both samples of a pair.
    """
    rng = np.random.default_rng(seed)
    codes = samples.groups[sides.first].codes
    n_codes = len(codes) if samples.groups[sides.second[0]].codes == codes else 1
    ends = np.round(np.linspace(0, max(n_pairs, n_codes), n_codes + 1)).astype(int)
    first, second = [], []
    for i, n in enumerate(np.diff(ends)):
        first.append(_cycle(_segment_positions(samples, sides.first, i, n_codes), n, rng))
        numbers = np.diff(np.round(np.cumsum([0.0, *sides.weights]) * n).astype(int))
        chosen = [
            _cycle(_segment_positions(samples, j, i, n_codes), number, rng)
            for j, number in zip(sides.second, numbers, strict=True)
        ]
        second.append(rng.permutation(np.concatenate(chosen)))
    return np.concatenate(first), np.concatenate(second)


def _segment_positions(samples: ExpressionSamples, group: int, i: int, n_segments: int) -> Rows:
    """Positions of the i-th segment of a group: samples that are decoded alike."""
    return np.array_split(samples.positions[group], n_segments)[i]


def _cycle(positions: Rows, n: int, rng: np.random.Generator) -> Rows:
    """``n`` of the positions in a random order, each equally often or once more than another."""
    rounds = [rng.permutation(positions) for _ in range(-(-n // len(positions)))]
    return np.concatenate([positions[:0], *rounds])[:n]


def find_intervals(
    samples: ExpressionSamples,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    levels: Sequence[float],
) -> list[dict[float, tuple[F64, F64]]]:
    """Shortest intervals of the log2 fold change over pairs, by level, for each comparison."""
    ends = np.empty((len(pairs), len(levels), 2, samples.n_genes))
    for genes, x_gm in samples.blocks():
        for g, x_m in enumerate(x_gm):
            logs = np.log2(x_m + np.float32(pseudocount))
            for c, (first, second) in enumerate(pairs):
                effect = np.sort(logs[first] - logs[second])
                for i, level in enumerate(levels):
                    ends[c, i, :, genes.start + g] = shortest_interval(effect, level)
    return [{level: (e[i, 0], e[i, 1]) for i, level in enumerate(levels)} for e in ends]


def shortest_interval(ordered: NDArray[Any], level: float) -> tuple[float, float]:
    """Ends of the shortest interval that holds a share ``level`` of numbers in rising order."""
    inside = min(len(ordered) - 1, int(np.floor(level * len(ordered))))
    start = int((ordered[inside:] - ordered[: len(ordered) - inside]).argmin())
    return float(ordered[start]), float(ordered[start + inside])


# ---- users' functions -------------------------------------------------------------------


def summarise_user_effects(
    samples: ExpressionSamples,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    options: Options,
    seed: int,
) -> tuple[list[EffectSummary], list[float | None]]:
    """Effects with a user's ``change_fn`` or ``m1_domain_fn``, over pairs of samples.

    All genes are in memory at once, pairs x genes.

    Returns
    -------
    The effects and the thresholds, one of each per comparison; a threshold is None if the
    user's function decides which effects are relevant.
    """
    ((_, x_gm),) = samples.blocks()
    results = [
        _summarise_user_effect(x_gm[:, first].T, x_gm[:, second].T, pseudocount, options, seed)
        for first, second in pairs
    ]
    return [effect for effect, _ in results], [delta for _, delta in results]


def _summarise_user_effect(
    first_pg: F32, second_pg: F32, pseudocount: float, options: Options, seed: int
) -> tuple[EffectSummary, float | None]:
    """The effect and the threshold of one comparison."""
    if options.change_fn is None:
        one, other = (np.log2(x + np.float32(pseudocount)) for x in (first_pg, second_pg))
        effect = one - other
    else:
        effect = _call("change_fn", options.change_fn, first_pg, second_pg, pseudocount)
        _check_shape("change_fn", effect, first_pg.shape)
    effect = np.asarray(effect)
    if not np.isfinite(effect).all():
        raise OptionError(
            "change_fn returned effects that are not finite; it must return a number per pair."
        )
    delta: float | None = None
    if options.m1_domain_fn is None:
        delta = choose_delta(effect.mean(0), seed) if options.delta is None else options.delta
        plus, minus = effect >= delta, effect < -delta
    else:
        plus, minus = _call_region(options.m1_domain_fn, effect)
    ordered = np.sort(effect, axis=0) if options.cred_interval_lvls else effect
    intervals = {
        level: np.array([shortest_interval(column, level) for column in ordered.T])
        for level in options.cred_interval_lvls
    }
    return EffectSummary(
        plus=np.mean(plus, axis=0),
        minus=np.mean(minus, axis=0),
        above=(first_pg > second_pg).mean(0),
        mean=effect.mean(0, dtype=np.float64),
        median=np.median(effect, axis=0).astype(np.float64),
        std=effect.std(0, dtype=np.float64),
        min=effect.min(0),
        max=effect.max(0),
        intervals={level: (ends[:, 0], ends[:, 1]) for level, ends in intervals.items()},
    ), delta


def _call_region(function: Any, effect: NDArray[Any]) -> tuple[Any, Any]:
    """Which pairs have a relevant effect upwards and downwards, from a user's function."""
    region = _call("m1_domain_fn", function, effect)
    arrays = list(region) if isinstance(region, tuple | list) else [region, None]
    if len(arrays) != 2:
        raise ArgumentTypeError(
            f"m1_domain_fn returned {len(arrays)} arrays; it must return the pairs with an effect "
            "upwards and those with one downwards, or one array for both."
        )
    plus, minus = arrays[0], np.zeros(effect.shape, bool) if arrays[1] is None else arrays[1]
    _check_shape("m1_domain_fn", plus, effect.shape)
    _check_shape("m1_domain_fn", minus, effect.shape)
    if np.asarray(plus).dtype != bool or np.asarray(minus).dtype != bool:
        raise ArgumentTypeError("m1_domain_fn must return arrays of True and False.")
    return plus, minus


def _call(name: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except TypeError as error:
        signature = (
            "change_fn(scale1, scale2, pseudocounts)"
            if name == "change_fn"
            else "m1_domain_fn(effects)"
        )
        raise ArgumentTypeError(f"{name} failed ({error}); it is called as {signature}.") from error


def _check_shape(name: str, returned: Any, shape: tuple[int, ...]) -> None:
    if np.shape(returned) != shape:
        raise ArgumentTypeError(
            f"{name} returned an array of shape {np.shape(returned)}; it must be {shape}, pairs x "
            "genes."
        )
