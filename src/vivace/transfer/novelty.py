"""How unlike the reference a cell is, beside cells of the reference that were held out.

Two measures: that nothing claims the cell, and that it lies where its own kind is denser
than the reference.  A cell is judged by itself, by the first, and with those most like it,
by both: cells of one kind are novel together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.cells import LatentCells
from vivace.transfer.expression import components
from vivace.transfer.neighbours import distance_to, near_each_other, strangeness
from vivace.types import F64

FEWEST = 30  # held-out cells, below which nothing can be measured on them
FEWEST_COMPANY = 50  # cells, below which none is judged by the others
_LIKE = 15  # cells, with itself, that a cell's novelty is averaged over
_TAIL = 0.05  # of the held-out cells; beyond it their distribution is continued exponentially


def untypical(
    cells: LatentCells,
    anchors: NDArray[Any],
    claimed: F64 | None,
    n_neighbors: int,
    company: int,
    rng: np.random.Generator,
) -> list[F64]:
    """What each measure says, shape (n,) each, higher for less typical cells.

    ``anchors`` are places of reference cells, shape (r, k), and ``claimed`` the log odds of the
    label that claims a cell most; None for the distance to its neighbours in its place.
    Three: the first measure of the cell by itself, and both averaged over its kind.  For that
    cells are taken in groups of about ``company``, so that held-out cells and a query are
    judged alike; with fewer than 50 there is the first alone.
    """
    places = cells.places()
    far = distance_to(anchors, places, n_neighbors)
    alone = far if claimed is None else -claimed
    if company < FEWEST_COMPANY:
        return [alone]
    found = [np.zeros(len(cells)), np.zeros(len(cells))]
    for group in np.array_split(rng.permutation(len(cells)), max(1, round(len(cells) / company))):
        genes = None if cells.expression is None else cells.expression[group]
        own = places[group] if genes is None else components(genes, rng)
        like = near_each_other(own, _LIKE)
        strange = strangeness(far[group], places[group], n_neighbors)
        for measure, value in zip(found, (alone[group], strange), strict=True):
            measure[group] = value[like].mean(1)
    return [alone, *found]


def novelty(known: list[F64], values: list[F64]) -> F64:
    """Share of held-out cells that are more typical, of :func:`untypical`'s measures.

    ``known`` are the measures of held-out cells, ``values`` of those that are asked about.
    A cell may be novel by itself or with its kind: the larger counts, ranked once more.
    """
    alone, *kind = zip(known, values, strict=True)
    if not kind:
        return share_below(*alone)
    views = [_ranked([alone]), _ranked(kind)]
    return share_below(*(np.maximum(*both) for both in zip(*views, strict=True)))


def _ranked(measures: list[tuple[F64, F64]]) -> tuple[F64, F64]:
    """Ranks of held-out and of other cells among the held-out, by the sum of their ranks in each."""
    held_out = np.sum([share_below(k, k) for k, _ in measures], axis=0)
    others = np.sum([share_below(k, v) for k, v in measures], axis=0)
    return share_below(held_out, held_out), share_below(held_out, others)


def share_below(known: F64, values: F64) -> F64:
    """Share of ``known`` below each value; beyond their last 5 % an exponential tail."""
    if len(known) < FEWEST:
        return np.full(len(values), np.nan)
    ordered = np.sort(known)
    share = np.searchsorted(ordered, values, side="right") / (len(ordered) + 1)
    start = np.quantile(ordered, 1 - _TAIL)
    beyond = ordered[ordered > start] - start
    scale = beyond.mean() if len(beyond) else 1.0
    tail = 1 - _TAIL * np.exp(-np.maximum(values - start, 0.0) / scale)
    return np.where(values > start, tail, np.minimum(share, 1 - _TAIL))
