"""How unlike the reference a cell is, beside cells of the reference that were held out.

Three measures (:meth:`Sight.untypical`), of which one number is made by weights that
``rehearsal.py`` learns, and of that number a rank among held-out cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.cells import Codes, Labelled, LatentCells
from vivace.transfer.expression import claims_without, components
from vivace.transfer.neighbours import Near, crowding, near_each_other, nearest

Floats = NDArray[np.float64]
FEWEST = 30  # held-out cells, below which nothing can be measured on them
FEWEST_COMPANY = 50  # cells, below which none is judged by the others
_LIKE = 15  # cells, with itself, that a cell's novelty is averaged over
_TAIL = 0.05  # of the held-out cells; beyond it their distribution is continued exponentially


@dataclass(frozen=True)
class Company:
    """Cells that are judged together.

    Parameters
    ----------
    rows : which of the cells, shape (m,)
    own : where they lie by what they have in common with each other alone, shape (m, k)
    """

    rows: Codes
    own: NDArray[Any]

    @cached_property
    def like(self) -> Codes:
        """For each the most like it, itself among them: positions in ``rows``, shape (m, 15)."""
        return near_each_other(self.own, _LIKE)

    def only(self, kept: Codes) -> Company:
        """Those of the cells that are kept, whose row numbers are the positions in ``kept``."""
        stays = np.isin(self.rows, kept)
        return Company(np.searchsorted(kept, self.rows[stays]), self.own[stays])


def companies(cells: LatentCells, size: int, rng: np.random.Generator) -> list[Company]:
    """Groups of about ``size``, so that held-out cells and a query are judged alike; none below 50."""
    if size < FEWEST_COMPANY:
        return []
    n_groups = max(1, round(len(cells) / size))
    found = []
    for rows in np.array_split(rng.permutation(len(cells)), n_groups):
        some = cells.at(rows)
        own = some.places() if some.expression is None else components(some.expression, rng)
        found.append(Company(rows, own))
    return found


@dataclass(frozen=True)
class Sight:
    """What is seen of the novelty of n cells.

    Parameters
    ----------
    cells : the n
    odds : with which each label claims each of them, shape (n, labels); None without genes
    reference : cells that the odds were learnt from
    anchors : cells of the reference that neighbours are looked for among
    near : the nearest anchors of each cell
    companies : in which the cells are judged together
    """

    cells: LatentCells
    odds: Floats | None
    reference: Labelled
    anchors: Labelled
    near: Near
    companies: list[Company]

    def untypical(self) -> Floats:
        """Three measures, shape (n, 3), higher for less typical cells.

        How little the label that claims a cell most claims it, or without genes how far its
        neighbours are; that, averaged over the cells most like it; and the crowding at its
        neighbours, averaged like it.  Without company the first alone, shape (n, 1).
        """
        far = np.log(self.near.distance.mean(1) + 1e-12)
        alone: Floats = far if self.odds is None else -self.odds.max(1)
        if not self.companies:
            return alone[:, None]
        found = np.stack([alone, np.zeros(len(alone)), np.zeros(len(alone))], axis=1)
        for company in self.companies:
            rows, like = company.rows, company.like
            crowded = crowding(self.near.at(rows))
            found[rows, 1] = alone[rows][like].mean(1)
            found[rows, 2] = crowded[like].mean(1)
        return found

    def without(self, label: int, its_own: Codes, seed: int) -> Sight:
        """The same cells, as they would look if the reference did not have that label.

        ``its_own`` are the cells that have it.
        """
        odds = self.odds
        if odds is not None:
            odds = claims_without(
                label,
                odds,
                its_own,
                self.reference.cells.expression,
                self.reference.labels,
                self.cells.expression,
                seed,
            )
        others = self.anchors.at(np.flatnonzero(self.anchors.labels != label))
        near = nearest(others.cells.places(), self.cells.places(), self.near.found.shape[1])
        return replace(self, odds=odds, anchors=others, near=near)

    def only(self, kept: Codes) -> Sight:
        """Of some of the cells; ``kept`` are sorted rows."""
        odds = None if self.odds is None else self.odds[kept]
        groups = [company.only(kept) for company in self.companies]
        cells, near = self.cells.at(kept), self.near.at(kept)
        return replace(self, cells=cells, odds=odds, near=near, companies=groups)


def novelty(known: Floats, values: Floats, weights: Floats) -> Floats:
    """Share of held-out cells that are more typical, shape (q,).

    ``known`` are the measures of held-out cells, shape (m, measures), ``values`` of those that
    are asked about; their ranks are added with ``weights``, and ranked once more.
    """
    one, other = (np.sum(ranks(known, x) * weights, axis=1) for x in (known, values))
    return share_below(one, other)


def ranks(known: Floats, values: Floats) -> Floats:
    """:func:`share_below` of each measure, the shape of ``values``."""
    measures = zip(known.T, values.T, strict=True)
    return np.stack([share_below(one, other) for one, other in measures], axis=1)


def share_below(known: Floats, values: Floats) -> Floats:
    """Share of ``known`` below each value; beyond their last 5 % an exponential tail."""
    ordered = np.sort(known)
    share = np.searchsorted(ordered, values, side="right") / (len(ordered) + 1)
    start = np.quantile(ordered, 1 - _TAIL)
    beyond = ordered[ordered > start] - start
    scale = beyond.mean() if len(beyond) else 1.0
    tail = 1 - _TAIL * np.exp(-np.maximum(values - start, 0.0) / scale)
    return np.where(values > start, tail, np.minimum(share, 1 - _TAIL))
