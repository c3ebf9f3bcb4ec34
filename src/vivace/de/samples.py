"""Is a gene expressed differently, whichever the sample?  Effects of samples, and their mean."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vivace.cells import Cells, child_seeds
from vivace.data.schema import Codes
from vivace.de.change import delta_of
from vivace.de.counts import CountSums, count_sums
from vivace.de.draws import DrawnExpression, draw_group
from vivace.de.groups import Comparison, Plan
from vivace.de.options import Options
from vivace.de.replicates import (
    Effects,
    change_over_samples,
    paired_effects,
    unpaired_effects,
)
from vivace.de.sampling import Design, Found, Sampling, by_part, pseudocount_of, typical
from vivace.errors import DataError, VivaceWarning
from vivace.types import F64, Rows

Piece = tuple[int, str]  # a part of the plan, and the sample whose cells of it are meant
Side = dict[str, list[Piece]]  # by sample, the pieces that it is made of
LEAST_CELLS = 10  # of a sample on a side
_LEAST_DRAWS = 100  # of a piece


def over_samples(
    cells: Cells,
    plan: Plan,
    options: Options,
    sampling: Sampling,
    sums: CountSums,
    samples: NDArray[np.str_],
    seeds: tuple[int, int],
) -> list[Found | None]:
    """The mean effect over samples, for each comparison; None where there are too few of them."""
    cut: dict[Piece, Rows] = {}
    for i, rows in enumerate(plan.parts):
        kept = typical(cells, rows, sampling, seeds[0])
        for name in np.unique(samples[kept]):
            cut[i, name] = kept[samples[kept] == name]
    chosen = [_choose(comparison, cut) for comparison in plan.comparisons]
    if not any(chosen):
        raise DataError(
            f"No comparison has two samples of at least {LEAST_CELLS} cells on each side, which a "
            "comparison across samples needs; leave sample_key out, or compare other groups."
        )
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
    n_draws = max(_LEAST_DRAWS, options.draws(len(plan.parts)) * len(plan.parts) // len(wanted))
    groups = [
        draw_group(cells.take(cut[piece]).quiet(), n_draws, codes, seed, sampling.weighting)
        for (piece, codes), seed in zip(wanted, child_seeds(seeds[0], len(wanted)), strict=True)
    ]
    at = {key: i for i, key in enumerate(wanted)}
    drawn = DrawnExpression(groups, cells.network.dims.n_genes, silent=cells.silent)
    scale, largest = drawn.summary()
    reach = by_part(largest, [part for (part, _), _ in wanted], len(plan.parts))
    pseudocount = pseudocount_of(reach, sums, options)
    expected = _mean_logs(drawn, pseudocount)
    pieces = count_sums(cells, [cut[piece] for piece, _ in wanted])
    share = pieces.counts / pieces.size[:, None]
    found: list[Found | None] = []
    for sides in chosen:
        if sides is None:
            found.append(None)
            continue
        design, *both = sides
        logs, shares, scales = (
            [
                _of_samples(values, side, at, codes, cut)
                for side, codes in zip(both, sampling.codes, strict=True)
            ]
            for values in (expected, share, scale)
        )
        counted = tuple(np.log2(values + pseudocount) for values in shares)
        means = (scales[0].mean(0), scales[1].mean(0))
        fit = np.maximum(*means) > pseudocount
        compare = paired_effects if design == "paired" else unpaired_effects
        effects: Effects = compare((logs[0], logs[1]), (counted[0], counted[1]), fit)
        delta = delta_of(effects.mean, seeds[1]) if options.delta is None else float(options.delta)
        found.append(
            Found(
                change=change_over_samples(effects, delta, fit, options.cred_interval_lvls),
                scale=means,
                pseudocount=pseudocount,
                delta=delta,
                n_cells=tuple(  # type: ignore[arg-type]
                    sum(len(cut[piece]) for pieces in side.values() for piece in pieces)
                    for side in both
                ),
                n_draws=(n_draws * sum(map(len, both[0].values())),
                         n_draws * sum(map(len, both[1].values()))),
                design=design,
                n_samples=(len(both[0]), len(both[1])),
            )
        )  # fmt: skip
    return found


def _choose(comparison: Comparison, cut: Mapping[Piece, Rows]) -> tuple[Design, Side, Side] | None:
    """The samples of each side that have enough cells there.

    Where two or more, and at least half of the smaller side's, are on the other side too, those
    alone, in pairs.
    """
    found: list[Side] = []
    for parts in ((comparison.first,), comparison.second):
        side: Side = {}
        for i, name in cut:
            if i in parts:
                side.setdefault(name, []).append((i, name))
        enough = {
            name: pieces
            for name, pieces in side.items()
            if sum(len(cut[piece]) for piece in pieces) >= LEAST_CELLS
        }
        found.append(enough)
    one, other = found
    shared = [name for name in one if name in other]
    enough_shared = len(shared) >= 2 and 2 * len(shared) >= min(len(one), len(other))
    design: Design = "paired" if enough_shared else "unpaired"
    if design == "paired":
        one, other = ({name: side[name] for name in shared} for side in found)
    if min(len(one), len(other)) >= 2:
        return design, one, other
    warnings.warn(
        f"{comparison.name} is left out: {len(one)} and {len(other)} samples of at least "
        f"{LEAST_CELLS} cells, where a comparison across samples needs two a side.",
        VivaceWarning,
        stacklevel=6,
    )
    return None


def _mean_logs(drawn: DrawnExpression, pseudocount: float) -> F64:
    """The mean log2 expression of each group's draws, shape (groups, g)."""
    found = np.empty((len(drawn.groups), drawn.n_genes))
    for genes, x in drawn.blocks():
        for i, place in enumerate(drawn.places):
            part = x[:, place[0] : place[-1] + 1]
            found[i, genes] = np.log2(part + np.float32(pseudocount)).mean(1)
    return found


def _of_samples(
    values: F64,
    side: Side,
    at: Mapping[tuple[Piece, tuple[Codes, ...]], int],
    codes: tuple[Codes, ...],
    cut: Mapping[Piece, Rows],
) -> F64:
    """Means of samples from those of their pieces, which count by their cells, (samples, g)."""
    return np.stack(
        [
            np.average(
                values[[at[piece, codes] for piece in pieces]],
                axis=0,
                weights=[len(cut[piece]) for piece in pieces],
            )
            for pieces in side.values()
        ]
    )
