"""What the neighbours of a cell in the latent space are, over draws from its posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.options import need_sklearn
from vivace.types import F64, I64


def neighbour_labels(
    reference_rk: NDArray[Any],
    labels_r: I64,
    n_labels: int,
    draws: list[NDArray[Any]],
    n_neighbors: int,
) -> F64:
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


def distance_to(reference_rk: NDArray[Any], point_qk: NDArray[Any], n_neighbors: int) -> F64:
    """Log of the mean distance to the nearest reference cells, shape (q,)."""
    distance, _ = _index(reference_rk, n_neighbors).kneighbors(point_qk)
    far: F64 = np.log(distance.mean(1) + 1e-12)
    return far


def strangeness(far_q: F64, point_qk: NDArray[Any], n_neighbors: int) -> F64:
    """Log of the mean distance to reference cells over that to other points, shape (q,).

    ``far_q`` is :func:`distance_to` the reference cells, of the same points.
    Where it is high there are many points and few reference cells.  The median is taken off:
    how large a query is, and how well it mixes with the reference as a whole, says nothing of
    a cell.
    """
    distance, found = _index(point_qk, n_neighbors + 1).kneighbors(point_qk)
    others = found != np.arange(len(found))[:, None]
    others[others.all(1), -1] = False  # among equal points the point itself may not be found
    own = (distance * others).sum(1) / np.maximum(others.sum(1), 1)
    ratio: F64 = far_q - np.log(own + 1e-12)
    return ratio - np.median(ratio)


def near_each_other(point_qk: NDArray[Any], n_nearest: int) -> I64:
    """The nearest of the points to each, itself among them, shape (q, n_nearest)."""
    found: I64 = _index(point_qk, n_nearest).kneighbors(point_qk, return_distance=False)
    return found


def _index(reference_rk: NDArray[Any], n_neighbors: int) -> Any:
    need_sklearn()
    from sklearn.neighbors import NearestNeighbors

    # in ten and more dimensions all distances by one product take less time than a tree
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference_rk)), algorithm="brute")
    return index.fit(reference_rk)
