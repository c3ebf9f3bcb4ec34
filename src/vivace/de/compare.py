"""Is a gene expressed differently?  The fold change between a cell of one group and of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vivace.de.change import Change, change, change_by_functions, delta_of
from vivace.de.counts import CountSums
from vivace.de.draws import DrawnExpression, draw_group
from vivace.de.groups import Plan
from vivace.de.options import Options
from vivace.de.sampling import Found, Sampling, pseudocount_of, typical
from vivace.posterior import Cells
from vivace.posterior.cells import children

Values = NDArray[np.float64]
Rows = NDArray[np.int64]
_TINY = 1e-30  # so that a logarithm is finite; expression has no pseudocount in mode vanilla


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
    part_seeds = children(seeds[0], len(plan.parts))
    parts = [
        typical(cells, rows, sampling, seed)
        for rows, seed in zip(plan.parts, part_seeds, strict=True)
    ]
    groups = [
        draw_group(cells.at(parts[i]).quiet(), n_draws, codes, part_seeds[i], sampling.weighting)
        for i, codes in wanted
    ]
    custom = options.change_fn is not None or options.m1_domain_fn is not None
    drawn = DrawnExpression(groups, cells.network.dims.n_genes, at_once=custom)
    mean, largest = drawn.summary()
    at = {key: i for i, key in enumerate(wanted)}
    sides = [
        (at[c.first, first_codes], [at[j, second_codes] for j in c.second])
        for c in plan.comparisons
    ]
    n_cells = np.array([len(plan.parts[i]) for i, _ in wanted], float)
    n_pairs = options.pairs(n_draws)
    pairs = [
        pairs_of(drawn, one, others, n_cells, n_pairs, seed)
        for (one, others), seed in zip(sides, children(seeds[1], len(sides)), strict=True)
    ]
    scales = [
        (mean[one], np.average(mean[others], axis=0, weights=n_cells[others]))
        for one, others in sides
    ]
    sizes = [(len(groups[one]), sum(len(groups[i]) for i in others)) for one, others in sides]
    deltas: list[float | None]
    if options.mode == "vanilla":
        pseudocount, deltas = 0.0, [None] * len(pairs)
        changes = change(drawn, _TINY, pairs, [0.0] * len(pairs))
    else:
        pseudocount = pseudocount_of(largest, sums, options)
        by_pair = change_by_functions if custom else _changes
        changes, deltas = by_pair(drawn, pseudocount, pairs, options, seeds[2])
    return [
        Found(found, scale, pseudocount, delta, size)
        for found, scale, delta, size in zip(changes, scales, deltas, sizes, strict=True)
    ]


def _changes(
    drawn: DrawnExpression,
    pseudocount: float,
    pairs: Sequence[tuple[Rows, Rows]],
    options: Options,
    seed: int,
) -> tuple[list[Change], list[float | None]]:
    """The log2 fold change, and the threshold, of each comparison."""
    deltas: list[float | None] = [options.delta] * len(pairs)
    if options.delta is None:
        at_zero = change(drawn, pseudocount, pairs, [0.0] * len(pairs))
        deltas = [delta_of(found.mean, seed) for found in at_zero]
    thresholds = [float(delta or 0.0) for delta in deltas]
    levels = options.cred_interval_lvls
    return change(drawn, pseudocount, pairs, thresholds, levels), list(thresholds)


def pairs_of(
    drawn: DrawnExpression,
    one: int,
    others: Sequence[int],
    n_cells: Values,
    n_pairs: int,
    seed: int,
) -> tuple[Rows, Rows]:
    """Which draws are compared: places of one of each side, shape (pairs,) each.

    Draws of the second side's groups are in proportion to their cells.  Where both sides
    are decoded as the same categories, both of a pair are.
    """
    rng = np.random.default_rng(seed)
    codes = drawn.groups[one].codes
    n_codes = len(codes) if drawn.groups[others[0]].codes == codes else 1
    ends = np.round(np.linspace(0, max(n_pairs, n_codes), n_codes + 1)).astype(int)
    share = n_cells[list(others)] / n_cells[list(others)].sum()
    first, second = [], []
    for i, n in enumerate(np.diff(ends)):
        first.append(_cycled(_stretch(drawn, one, i, n_codes), n, rng))
        numbers = np.diff(np.round(np.cumsum([0.0, *share]) * n).astype(int))
        picked = [
            _cycled(_stretch(drawn, j, i, n_codes), number, rng)
            for j, number in zip(others, numbers, strict=True)
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
