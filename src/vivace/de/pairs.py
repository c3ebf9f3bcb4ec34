"""Effects over a subset of the pairs of samples, for intervals and user functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.cells import child_seeds
from vivace.de.options import Options
from vivace.de.result_table import EffectSummary
from vivace.de.samples import ExpressionSamples
from vivace.de.thresholds import choose_delta
from vivace.errors import ArgumentTypeError, OptionError, one_line
from vivace.types import F32, F64, Rows


@dataclass(frozen=True)
class Sides:
    """The two sides of a comparison, as positions of groups among those that were sampled.

    Parameters
    ----------
    first
        The group of the first side.
    second
        The groups of the second side.
    weights
        Weights of the groups of the second side, which sum to 1.
    """

    first: int
    second: tuple[int, ...]
    weights: tuple[float, ...]


def choose_all_pairs(
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
    """``n`` of the positions in random order; how often they are used differs by at most one."""
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
    """Ends of the shortest interval that contains a share ``level`` of ascending numbers."""
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
        log_first, log_second = (
            np.log2(x + np.float32(pseudocount)) for x in (first_pg, second_pg)
        )
        effect = log_first - log_second
    else:
        effect = _call("change_fn", options.change_fn, first_pg, second_pg, pseudocount)
        _check_shape("change_fn", effect, first_pg.shape)
    effect = np.asarray(effect)
    if not np.isfinite(effect).all():
        raise OptionError(
            "change_fn returned effects that are not finite; it must return a finite number per pair."
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
            f"m1_domain_fn returned {len(arrays)} arrays; it must return two boolean arrays, for "
            "effects upwards and downwards, or one for both."
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
        raise ArgumentTypeError(
            f"{name} failed ({one_line(error)}); it is called as {signature}."
        ) from error


def _check_shape(name: str, returned: Any, shape: tuple[int, ...]) -> None:
    if np.shape(returned) != shape:
        raise ArgumentTypeError(
            f"{name} returned an array of shape {np.shape(returned)}; it must be {shape}, pairs x "
            "genes."
        )
