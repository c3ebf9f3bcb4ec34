"""Is a gene expressed differently?  The fold change between a cell of one group and of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vivace.cells import Cells, child_seeds
from vivace.de.change import Change, Sides, change, change_by_functions, delta_of, intervals
from vivace.de.counts import CountSums
from vivace.de.draws import DrawnExpression, draw_group
from vivace.de.groups import Plan
from vivace.de.options import Options
from vivace.de.sampling import Found, Sampling, by_part, pseudocount_of, typical
from vivace.types import Rows

_TINY = 1e-10  # so that a logarithm is finite; expression has no pseudocount in mode vanilla


def over_cells(
    cells: Cells,
    plan: Plan,
    options: Options,
    sampling: Sampling,
    sums: CountSums | None,
    seeds: tuple[int, int, int],
) -> list[Found]:
    """The fold change between cells, for each comparison.

    Each part of the plan is drawn from once, and serves every comparison that it is in.
    """
    first_codes, second_codes = sampling.codes
    wanted = list(
        dict.fromkeys(
            key
            for c in plan.comparisons
            for key in ((c.first, first_codes), *((j, second_codes) for j in c.second))
        )
    )
    n_draws = options.draws(len(wanted))
    part_seeds = child_seeds(seeds[0], len(plan.parts))
    parts = [
        typical(cells, rows, sampling, seed)
        for rows, seed in zip(plan.parts, part_seeds, strict=True)
    ]
    groups = [
        draw_group(cells.take(parts[i]).quiet(), n_draws, codes, part_seeds[i], sampling.weighting)
        for i, codes in wanted
    ]
    custom = options.change_fn is not None or options.m1_domain_fn is not None
    drawn = DrawnExpression(groups, cells.network.dims.n_genes, at_once=custom, silent=cells.silent)
    mean, largest = drawn.summary()
    at = {key: i for i, key in enumerate(wanted)}
    sides = []
    for c in plan.comparisons:
        size = np.array([len(parts[j]) for j in c.second], float)
        second = tuple(at[j, second_codes] for j in c.second)
        sides.append(Sides(at[c.first, first_codes], second, tuple(size / size.sum())))
    scales = [
        (mean[s.first], np.average(mean[list(s.second)], axis=0, weights=s.weights)) for s in sides
    ]
    n_draws_of = [(len(groups[s.first]), sum(len(groups[j]) for j in s.second)) for s in sides]
    n_cells_of = [
        (len(parts[c.first]), sum(len(parts[j]) for j in c.second)) for c in plan.comparisons
    ]
    deltas: list[float | None]
    if options.mode == "vanilla":
        pseudocount, deltas = 0.0, [None] * len(sides)
        changes = change(drawn, _TINY, sides, [0.0] * len(sides))
    else:
        reach = by_part(largest, [part for part, _ in wanted], len(plan.parts))
        pseudocount = pseudocount_of(reach, sums, options)
        by = _changes_of_users if custom else _changes
        changes, deltas = by(drawn, pseudocount, sides, options, seeds[1:])
    return [
        Found(found, scale, pseudocount, delta, n_cells, n_draws)
        for found, scale, delta, n_cells, n_draws in zip(
            changes, scales, deltas, n_cells_of, n_draws_of, strict=True
        )
    ]


def _changes(
    drawn: DrawnExpression,
    pseudocount: float,
    sides: Sequence[Sides],
    options: Options,
    seeds: Sequence[int],
) -> tuple[list[Change], list[float | None]]:
    """The log2 fold change, and the threshold, of each comparison."""
    if options.delta is None:
        at_zero = change(drawn, pseudocount, sides, [0.0] * len(sides))
        deltas = [delta_of(found.mean, seeds[1]) for found in at_zero]
    else:
        deltas = [float(options.delta)] * len(sides)
    changes = change(drawn, pseudocount, sides, deltas)
    if options.cred_interval_lvls:
        pairs = _all_pairs(drawn, sides, options, seeds[0])
        found = intervals(drawn, pseudocount, pairs, options.cred_interval_lvls)
        changes = [replace(c, intervals=i) for c, i in zip(changes, found, strict=True)]
    return changes, list(deltas)


def _changes_of_users(
    drawn: DrawnExpression,
    pseudocount: float,
    sides: Sequence[Sides],
    options: Options,
    seeds: Sequence[int],
) -> tuple[list[Change], list[float | None]]:
    """The same with a user's own effect or region, which sees all genes of pairs of draws."""
    pairs = _all_pairs(drawn, sides, options, seeds[0])
    return change_by_functions(drawn, pseudocount, pairs, options, seeds[1])


def _all_pairs(
    drawn: DrawnExpression, sides: Sequence[Sides], options: Options, seed: int
) -> list[tuple[Rows, Rows]]:
    n = options.pairs(len(drawn.groups[0]))
    return [
        pairs_of(drawn, side, n, s)
        for side, s in zip(sides, child_seeds(seed, len(sides)), strict=True)
    ]


def pairs_of(drawn: DrawnExpression, sides: Sides, n_pairs: int, seed: int) -> tuple[Rows, Rows]:
    """Which draws are compared: places of one of each side, shape (pairs,) each.

    Draws of the second side's groups are in proportion to their weights.  Where both sides
    are decoded as the same categories, both of a pair are.
    """
    rng = np.random.default_rng(seed)
    codes = drawn.groups[sides.first].codes
    n_codes = len(codes) if drawn.groups[sides.second[0]].codes == codes else 1
    ends = np.round(np.linspace(0, max(n_pairs, n_codes), n_codes + 1)).astype(int)
    first, second = [], []
    for i, n in enumerate(np.diff(ends)):
        first.append(_cycled(_stretch(drawn, sides.first, i, n_codes), n, rng))
        numbers = np.diff(np.round(np.cumsum([0.0, *sides.weights]) * n).astype(int))
        picked = [
            _cycled(_stretch(drawn, j, i, n_codes), number, rng)
            for j, number in zip(sides.second, numbers, strict=True)
        ]
        second.append(rng.permutation(np.concatenate(picked)))
    return np.concatenate(first), np.concatenate(second)


def _stretch(drawn: DrawnExpression, group: int, i: int, n: int) -> Rows:
    """The i-th of n stretches of a group's draws: those that are decoded alike."""
    return np.array_split(drawn.places[group], n)[i]


def _cycled(places: Rows, n: int, rng: np.random.Generator) -> Rows:
    """``n`` of the places, each equally often or once more than another, in any order."""
    rounds = [rng.permutation(places) for _ in range(-(-n // len(places)))]
    return np.concatenate([places[:0], *rounds])[:n]
