"""What the neighbours of a cell in the latent space are, over draws from its posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.options import need_sklearn

Floats = NDArray[np.float64]


def neighbour_labels(
    reference_rk: NDArray[Any],
    labels_r: NDArray[np.int64],
    n_labels: int,
    draws: list[NDArray[Any]],
    n_neighbors: int,
) -> Floats:
    """Share of each label among the nearest reference cells, shape (q, labels).

    ``draws`` are points of the query's cells, shape (q, k) each.  A neighbour weighs
    exp(-d^2 / 2 s^2), where s^2 is the mean of d^2 over the neighbours of that point, so
    that the scale of the latent space does not matter.
    """
    index = _index(reference_rk, n_neighbors)
    shares = np.zeros((len(draws[0]), n_labels))
    for point_qk in draws:
        distance, found = index.kneighbors(point_qk)
        square = np.square(distance)
        mean = square.mean(1, keepdims=True)
        weight = np.exp(-0.5 * square / np.where(mean > 0, mean, 1.0))
        weight /= weight.sum(1, keepdims=True)
        cells = np.repeat(np.arange(len(found)), found.shape[1])
        np.add.at(shares, (cells, labels_r[found].ravel()), weight.ravel())
    return shares / len(draws)


@dataclass(frozen=True)
class Near:
    """Nearest reference cells of n points.

    Parameters
    ----------
    distance, found : distances to them and which they are, shape (n, k)
    in_degree : among the nearest of how many other reference cells each is, shape (r,)
    """

    distance: Floats
    found: NDArray[np.int64]
    in_degree: NDArray[np.int64]

    def at(self, rows: NDArray[Any]) -> Near:
        """Of some of the points."""
        return replace(self, distance=self.distance[rows], found=self.found[rows])


def nearest(reference_rk: NDArray[Any], point_qk: NDArray[Any], n_neighbors: int) -> Near:
    """The nearest reference cells of each point."""
    index = _index(reference_rk, n_neighbors)
    distance, found = index.kneighbors(point_qk)
    n_others = min(n_neighbors, len(reference_rk) - 1)
    in_degree = np.zeros(len(reference_rk), np.int64)
    if n_others:
        others = index.kneighbors(n_neighbors=n_others, return_distance=False)
        in_degree = np.bincount(others.ravel(), minlength=len(reference_rk))
    return Near(distance, found, in_degree)


def crowding(near: Near) -> Floats:
    """How many points share the reference cells that are nearest to each, shape (n,).

    Log of the share of points that have them among their nearest, over the share of
    reference cells that do; less the median, in units of the median deviation from it: how
    large a query is, and how well it mixes with the reference, says nothing of a cell.
    """
    chosen = np.bincount(near.found.ravel(), minlength=len(near.in_degree))
    points = chosen[near.found].sum(1) / len(near.found)
    cells = (near.in_degree[near.found].sum(1) + 1) / len(near.in_degree)
    ratio: Floats = np.log(points / cells)
    ratio -= np.median(ratio)
    ratio /= np.median(np.abs(ratio)) + 1e-3
    return ratio


def near_each_other(point_qk: NDArray[Any], n_nearest: int) -> NDArray[np.int64]:
    """The nearest of the points to each, itself among them, shape (q, n_nearest)."""
    found: NDArray[np.int64] = _index(point_qk, n_nearest).kneighbors(
        point_qk, return_distance=False
    )
    return found


def _index(reference_rk: NDArray[Any], n_neighbors: int) -> Any:
    need_sklearn()
    from sklearn.neighbors import NearestNeighbors

    # in ten and more dimensions all distances by one product take less time than a tree
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference_rk)), algorithm="brute")
    return index.fit(reference_rk)
