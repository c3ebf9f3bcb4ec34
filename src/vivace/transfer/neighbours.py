"""What the neighbours of a cell in the latent space are, over draws from its posterior."""

from __future__ import annotations

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


def distance_to(reference_rk: NDArray[Any], point_qk: NDArray[Any], n_neighbors: int) -> Floats:
    """Log of the mean distance to the nearest reference cells, shape (q,)."""
    distance, _ = _index(reference_rk, n_neighbors).kneighbors(point_qk)
    far: Floats = np.log(distance.mean(1) + 1e-12)
    return far


def _index(reference_rk: NDArray[Any], n_neighbors: int) -> Any:
    need_sklearn()
    from sklearn.neighbors import NearestNeighbors

    # in ten and more dimensions all distances by one product take less time than a tree
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference_rk)), algorithm="brute")
    return index.fit(reference_rk)
