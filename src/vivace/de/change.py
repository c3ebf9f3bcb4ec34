"""What the effect on a gene is like: fold changes over pairs of draws, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.de.draws import DrawnExpression
from vivace.de.kernels import ABOVE, MAX, MEAN, MEDIAN, MIN, MINUS, PLUS, STD, describe
from vivace.de.options import Options
from vivace.errors import ArgumentTypeError, MissingExtraError

Floats = NDArray[np.float32]
Values = NDArray[np.float64]
Rows = NDArray[np.int64]
_LEAST_DELTA, _DELTA_SHARE = 0.1, 0.6


@dataclass
class Change:
    """What the effect on each of g genes is like, shape (g,) each.

    Parameters
    ----------
    plus, minus : probability that it is at least delta, or below -delta
    above : that the first side is above the second
    mean, median, std, min, max : of the effect
    intervals : by level, least and largest of the shortest interval that holds so much
    """

    plus: Values
    minus: Values
    above: Values
    mean: Values
    median: Values
    std: Values
    min: Values
    max: Values
    intervals: dict[float, tuple[Values, Values]]


def change(
    drawn: DrawnExpression,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    deltas: Sequence[float],
    levels: Sequence[float] = (),
) -> list[Change]:
    """The log2 fold change of each gene over pairs of draws, for each comparison."""
    first, second = (np.stack([p[i] for p in pairs]).astype(np.int32) for i in (0, 1))
    stats = np.empty((len(pairs), drawn.n_genes, 8))
    intervals = np.empty((len(pairs), len(levels), 2, drawn.n_genes))
    for genes, x in drawn.blocks():
        out = np.empty((len(pairs), len(x), 8))
        describe(out, x, pseudocount, first, second, np.asarray(deltas, float))
        stats[:, genes] = out
        for g, row in enumerate(x if levels else ()):
            logs = np.log2(row + np.float32(pseudocount))
            for c, (one, other) in enumerate(pairs):
                effect = np.sort(logs[one] - logs[other])
                for i, level in enumerate(levels):
                    intervals[c, i, :, genes.start + g] = shortest_interval(effect, level)
    return [
        Change(
            plus=s[:, PLUS],
            minus=s[:, MINUS],
            above=s[:, ABOVE],
            mean=s[:, MEAN],
            median=s[:, MEDIAN],
            std=s[:, STD],
            min=s[:, MIN],
            max=s[:, MAX],
            intervals={lv: (v[i, 0], v[i, 1]) for i, lv in enumerate(levels)},
        )
        for s, v in zip(stats, intervals, strict=True)
    ]


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
    first_pg: Floats, second_pg: Floats, pseudocount: float, options: Options, seed: int
) -> tuple[Change, float | None]:
    sides = first_pg, second_pg
    if options.change_fn is None:
        one, other = (np.log2(side + np.float32(pseudocount)) for side in sides)
        effect = one - other
    else:
        effect = _called("change_fn", options.change_fn, *sides, pseudocount)
        _check_shape("change_fn", effect, first_pg.shape)
    effect = np.asarray(effect, np.float64)
    delta: float | None = None
    if options.m1_domain_fn is None:
        delta = delta_of(effect.mean(0), seed) if options.delta is None else options.delta
        plus, minus = effect >= delta, effect < -delta
    else:
        region = _called("m1_domain_fn", options.m1_domain_fn, effect)
        plus, minus = region if isinstance(region, tuple | list) else (region, False)
        minus = np.broadcast_to(minus, np.shape(plus))
        _check_shape("m1_domain_fn", plus, effect.shape)
    ordered = np.sort(effect, axis=0) if options.cred_interval_lvls else effect
    intervals = {
        level: np.array([shortest_interval(column, level) for column in ordered.T])
        for level in options.cred_interval_lvls
    }
    return Change(
        plus=np.mean(plus, axis=0),
        minus=np.mean(minus, axis=0),
        above=(first_pg > second_pg).mean(0),
        mean=effect.mean(0),
        median=np.median(effect, axis=0),
        std=effect.std(0),
        min=effect.min(0),
        max=effect.max(0),
        intervals={level: (ends[:, 0], ends[:, 1]) for level, ends in intervals.items()},
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


def delta_of(effects: Values, seed: int) -> float:
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
    mixture = GaussianMixture(n_components=min(3, len(effects)), random_state=seed % 2**32)
    means = np.sort(mixture.fit(effects[:, None]).means_.ravel())
    return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(means[[0, -1]]).mean()))
