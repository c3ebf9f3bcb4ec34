"""How unlike the reference a cell is, compared with held-out cells of the reference.

There are two measures: that no label claims the cell, and that it lies where the query is denser
than the reference. A cell is judged by itself, with the first measure, and together with the
cells that are most like it, with both: cells of one new kind are novel together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.classifiers import principal_components
from vivace.transfer.latent_cells import LatentCells
from vivace.transfer.neighbours import log_density_ratio, log_distance, nearest_points
from vivace.types import F64

LEAST_HELD_OUT = 30  # held-out cells; with fewer, novelty is not measured
LEAST_GROUP = 50  # cells; with fewer, each is judged only by itself
_N_SIMILAR = 15  # cells, the cell itself among them, that measures are averaged over
_TAIL = 0.05  # share of held-out cells beyond which their distribution continues exponentially


def measure_novelty(
    cells: LatentCells,
    anchors: NDArray[Any],
    log_odds: F64 | None,
    n_neighbors: int,
    group_size: int,
    rng: np.random.Generator,
) -> list[F64]:
    """Measures of how untypical cells are, shape (n,) each; higher is less typical.

    Parameters
    ----------
    cells
        The cells.
    anchors
        Points of reference cells, shape (r, k).
    log_odds
        The largest log odds of a label for each cell, shape (n,); None to use the distance to
        the nearest anchors instead.
    n_neighbors
        Nearest cells that distances are taken to.
    group_size
        Cells are divided into groups of about this size, in which similar cells are searched.
        Held-out cells and a query are then judged alike.
    rng
        Source of randomness.

    Returns
    -------
    The first measure of each cell by itself, and both measures averaged over similar cells;
    the first alone if ``group_size`` is less than 50.
    """
    points = cells.points()
    distance = log_distance(anchors, points, n_neighbors)
    single = distance if log_odds is None else -log_odds
    if group_size < LEAST_GROUP:
        return [single]
    averaged = [np.zeros(len(cells)), np.zeros(len(cells))]
    n_groups = max(1, round(len(cells) / group_size))
    for group in np.array_split(rng.permutation(len(cells)), n_groups):
        # similar by expression, which unlike the latent space does not depend on the reference
        genes = None if cells.expression is None else cells.expression[group]
        coordinates = points[group] if genes is None else principal_components(genes, rng)
        similar = nearest_points(coordinates, _N_SIMILAR)
        density = log_density_ratio(distance[group], points[group], n_neighbors)
        for measure, value in zip(averaged, (single[group], density), strict=True):
            measure[group] = value[similar].mean(1)
    return [single, *averaged]


def rank_novelty(held_out: list[F64], measures: list[F64]) -> F64:
    """Share of held-out cells that are more typical than each cell, shape (n,).

    A cell may be novel by itself or together with similar cells. The larger of both ranks
    counts, and is ranked once more.

    Parameters
    ----------
    held_out, measures
        :func:`measure_novelty` of the held-out cells, and of the cells that are ranked.
    """
    single, *averaged = zip(held_out, measures, strict=True)
    if not averaged:
        return share_below(*single)
    ranks = [_rank([single]), _rank(averaged)]
    return share_below(*(np.maximum(*pair) for pair in zip(*ranks, strict=True)))


def _rank(measures: list[tuple[F64, F64]]) -> tuple[F64, F64]:
    """Ranks of held-out and of other cells among the held-out, by their summed ranks."""
    held_out = np.sum([share_below(known, known) for known, _ in measures], axis=0)
    ranked = np.sum([share_below(known, values) for known, values in measures], axis=0)
    return share_below(held_out, held_out), share_below(held_out, ranked)


def share_below(known: F64, values: F64) -> F64:
    """Share of ``known`` below each value, with an exponential tail beyond their last 5 %."""
    if len(known) < LEAST_HELD_OUT:
        return np.full(len(values), np.nan)
    ordered = np.sort(known)
    share = np.searchsorted(ordered, values, side="right") / (len(ordered) + 1)
    start = np.quantile(ordered, 1 - _TAIL)
    excess = ordered[ordered > start] - start
    scale = excess.mean() if len(excess) else 1.0
    tail = 1 - _TAIL * np.exp(-np.maximum(values - start, 0.0) / scale)
    return np.where(values > start, tail, np.minimum(share, 1 - _TAIL))
