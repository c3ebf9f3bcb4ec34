"""What the effect on a gene is like: fold changes over pairs of draws, and what they say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.de.draws import DrawnExpression
from vivace.de.options import Options
from vivace.errors import ArgumentTypeError, MissingExtraError, OptionError
from vivace.types import F32, F64, I32, Rows

_LEAST_DELTA, _DELTA_SHARE = 0.1, 0.6


@dataclass
class Change:
    """What the effect on each of g genes is like, shape (g,) each.

    Parameters
    ----------
    plus, minus
        Probability that it is at least delta, or below -delta.
    above
        That the first side is above the second.
    mean, median, std, min, max
        Of the effect.
    intervals
        By level, least and largest of the shortest interval that holds so much.
    """

    plus: F64
    minus: F64
    above: F64
    mean: F64
    median: F64
    std: F64
    min: F64
    max: F64
    intervals: dict[float, tuple[F64, F64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """The two sides of a comparison, by the place of their groups among those that are drawn.

    Parameters
    ----------
    first
        The one group of the first side.
    second
        The groups of the other.
    weights
        What those count, adding up to 1.
    """

    first: int
    second: tuple[int, ...]
    weights: tuple[float, ...]


def change(
    drawn: DrawnExpression, pseudocount: float, sides: Sequence[Sides], deltas: Sequence[float]
) -> list[Change]:
    """The log2 fold change of each gene, all draws of one side against all of the other.

    Where both sides are decoded as the same categories, only draws of the same are compared.
    """
    from vivace.de import histograms  # the compiler: only those who ask wait

    starts, stretches = _stretches(drawn, sides)
    n_codes = stretches.shape[1]
    first = np.array([stretches[s.first] for s in sides], np.int32)
    widest = max(len(s.second) for s in sides)
    second = np.zeros((len(sides), widest, n_codes), np.int32)
    weights = np.zeros((len(sides), widest))
    for c, side in enumerate(sides):
        second[c, : len(side.second)] = stretches[list(side.second)]
        weights[c, : len(side.second)] = side.weights
    stats = np.empty((len(sides), drawn.n_genes, 8))
    for genes, x in drawn.blocks():
        out = np.empty((len(sides), len(x), 8))
        histograms.describe(
            out, x, pseudocount, starts, first, second, weights, np.asarray(deltas, float)
        )
        stats[:, genes] = out
    return [
        Change(
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


def _stretches(drawn: DrawnExpression, sides: Sequence[Sides]) -> tuple[I32, I32]:
    """Where stretches of draws begin, and which are each group's, shape (groups, codes)."""
    alike = all(
        drawn.groups[j].codes == drawn.groups[s.first].codes for s in sides for j in s.second
    )
    n_codes = len(drawn.groups[sides[0].first].codes) if alike else 1
    starts = np.concatenate([place[:: len(place) // n_codes] for place in drawn.places])
    starts = np.append(starts, drawn.places[-1][-1] + 1).astype(np.int32)
    numbers = np.arange(len(drawn.groups) * n_codes, dtype=np.int32)
    return starts, numbers.reshape(len(drawn.groups), n_codes)


def intervals(
    drawn: DrawnExpression,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    levels: Sequence[float],
) -> list[dict[float, tuple[F64, F64]]]:
    """Shortest intervals of the fold change over pairs of draws, by level, for each comparison."""
    found = np.empty((len(pairs), len(levels), 2, drawn.n_genes))
    for genes, x in drawn.blocks():
        for g, row in enumerate(x):
            logs = np.log2(row + np.float32(pseudocount))
            for c, (first, second) in enumerate(pairs):
                effect = np.sort(logs[first] - logs[second])
                for i, level in enumerate(levels):
                    found[c, i, :, genes.start + g] = shortest_interval(effect, level)
    return [{lv: (v[i, 0], v[i, 1]) for i, lv in enumerate(levels)} for v in found]


def shortest_interval(ordered: NDArray[Any], level: float) -> tuple[float, float]:
    """Ends of the shortest interval that holds a share ``level`` of rising numbers."""
    inside = min(len(ordered) - 1, int(np.floor(level * len(ordered))))
    start = int((ordered[inside:] - ordered[: len(ordered) - inside]).argmin())
    return float(ordered[start]), float(ordered[start + inside])


def change_by_functions(
    drawn: DrawnExpression,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    options: Options,
    seed: int,
) -> tuple[list[Change], list[float | None]]:
    """The same with a user's own effect or region; and the deltas, None where there is none.

    Every gene is in memory: pairs x genes.
    """
    ((_, x),) = drawn.blocks()
    found = [
        _by_functions(x[:, first].T, x[:, second].T, pseudocount, options, seed)
        for first, second in pairs
    ]
    return [one for one, _ in found], [delta for _, delta in found]


def _by_functions(
    first_pg: F32, second_pg: F32, pseudocount: float, options: Options, seed: int
) -> tuple[Change, float | None]:
    sides = first_pg, second_pg
    if options.change_fn is None:
        one, other = (np.log2(side + np.float32(pseudocount)) for side in sides)
        effect = one - other
    else:
        effect = _called("change_fn", options.change_fn, *sides, pseudocount)
        _check_shape("change_fn", effect, first_pg.shape)
    effect = np.asarray(effect)
    if not np.isfinite(effect).all():
        raise OptionError(
            "change_fn gave effects that are not finite; it must give a number a pair."
        )
    delta: float | None = None
    if options.m1_domain_fn is None:
        delta = delta_of(effect.mean(0), seed) if options.delta is None else options.delta
        plus, minus = effect >= delta, effect < -delta
    else:
        region = _called("m1_domain_fn", options.m1_domain_fn, effect)
        both = list(region) if isinstance(region, tuple | list) else [region, None]
        if len(both) != 2:
            raise ArgumentTypeError(
                f"m1_domain_fn gave {len(both)} arrays; it must give the pairs with an effect upwards "
                "and those downwards, or one array for both."
            )
        plus, minus = both[0], np.zeros(effect.shape, bool) if both[1] is None else both[1]
        _check_shape("m1_domain_fn", plus, effect.shape)
        _check_shape("m1_domain_fn", minus, effect.shape)
        if np.asarray(plus).dtype != bool or np.asarray(minus).dtype != bool:
            raise ArgumentTypeError("m1_domain_fn must give arrays of True and False.")
    ordered = np.sort(effect, axis=0) if options.cred_interval_lvls else effect
    shortest = {
        level: np.array([shortest_interval(column, level) for column in ordered.T])
        for level in options.cred_interval_lvls
    }
    return Change(
        plus=np.mean(plus, axis=0),
        minus=np.mean(minus, axis=0),
        above=(first_pg > second_pg).mean(0),
        mean=effect.mean(0, dtype=np.float64),
        median=np.median(effect, axis=0).astype(np.float64),
        std=effect.std(0, dtype=np.float64),
        min=effect.min(0),
        max=effect.max(0),
        intervals={level: (ends[:, 0], ends[:, 1]) for level, ends in shortest.items()},
    ), delta


def _called(name: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except TypeError as error:
        wanted = (
            "change_fn(scale1, scale2, pseudocounts)"
            if name == "change_fn"
            else "m1_domain_fn(effects)"
        )
        raise ArgumentTypeError(f"{name} failed ({error}); it is called as {wanted}.") from error


def _check_shape(name: str, found: Any, shape: tuple[int, ...]) -> None:
    if np.shape(found) != shape:
        raise ArgumentTypeError(
            f"{name} gave an array of shape {np.shape(found)}; it must be {shape}, pairs x genes."
        )


def delta_of(effects: F64, seed: int) -> float:
    """A threshold for fold changes from their own distribution over genes.

    Three normal components are fitted; the threshold is 0.6 times the mean size of the
    outer two's means, and 0.1 at least.
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
        warnings.simplefilter("ignore")  # where it has not converged it is near enough
        means = np.sort(mixture.fit(effects[:, None]).means_.ravel())
    return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(means[[0, -1]]).mean()))
