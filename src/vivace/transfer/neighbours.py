"""The neighbours of cells in the latent space: their labels and their distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.errors import require_extra
from vivace.types import F64, I64


def need_sklearn() -> None:
    """Raise an error if scikit-learn is missing."""
    require_extra("sklearn", "transfer", "The transfer of labels needs")


def neighbour_shares(
    reference_rk: NDArray[Any],
    labels_r: I64,
    n_labels: int,
    samples: list[NDArray[Any]],
    n_neighbors: int,
) -> F64:
    """Share of each label among the nearest reference cells, shape (q, labels).

    A neighbour at distance d has weight exp(-d^2 / 2 s^2), where s^2 is the mean of d^2 over
    the neighbours of that point. The scale of the latent space then does not matter.

    Parameters
    ----------
    reference_rk
        Points of the reference cells.
    labels_r
        Codes of their labels.
    n_labels
        Number of labels.
    samples
        Random samples of the points of the query's cells, shape (q, k) each; the shares are
        means over them.
    n_neighbors
        Nearest reference cells of each point.
    """
    index = _index(reference_rk, n_neighbors)
    shares = np.zeros((len(samples[0]), n_labels))
    for point_qk in samples:
        distance, nearest = index.kneighbors(point_qk)
        square = np.square(distance)
        mean = square.mean(1, keepdims=True)
        weight = np.exp(-0.5 * square / np.where(mean > 0, mean, 1.0))
        weight /= weight.sum(1, keepdims=True)
        cells = np.repeat(np.arange(len(nearest)), nearest.shape[1])
        np.add.at(shares, (cells, labels_r[nearest].ravel()), weight.ravel())
    return shares / len(samples)


def log_distance(reference_rk: NDArray[Any], point_qk: NDArray[Any], n_neighbors: int) -> F64:
    """Log of the mean distance to the nearest reference cells, shape (q,)."""
    distance, _ = _index(reference_rk, n_neighbors).kneighbors(point_qk)
    log_distance_q: F64 = np.log(distance.mean(1) + 1e-12)
    return log_distance_q


def log_density_ratio(log_distance_q: F64, point_qk: NDArray[Any], n_neighbors: int) -> F64:
    """Log of the mean distance to reference cells over that to other points, shape (q,).

    It is high where there are many points and few reference cells. The median is subtracted:
    the size of a query, and how well it mixes with the reference as a whole, say nothing about
    a single cell.

    Parameters
    ----------
    log_distance_q
        :func:`log_distance` of the points to the reference cells.
    point_qk
        The points.
    n_neighbors
        Nearest other points of each.
    """
    distance, nearest = _index(point_qk, n_neighbors + 1).kneighbors(point_qk)
    is_other = nearest != np.arange(len(nearest))[:, None]
    is_other[is_other.all(1), -1] = (
        False  # a point with many duplicates may not be its own neighbour
    )
    mean_distance = (distance * is_other).sum(1) / np.maximum(is_other.sum(1), 1)
    ratio: F64 = log_distance_q - np.log(mean_distance + 1e-12)
    return ratio - np.median(ratio)


def nearest_points(point_qk: NDArray[Any], n_nearest: int) -> I64:
    """The points nearest to each point, the point itself among them, shape (q, n_nearest)."""
    nearest: I64 = _index(point_qk, n_nearest).kneighbors(point_qk, return_distance=False)
    return nearest


def _index(reference_rk: NDArray[Any], n_neighbors: int) -> Any:
    need_sklearn()
    from sklearn.neighbors import NearestNeighbors

    # in ten or more dimensions, all distances as one product take less time than a tree
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference_rk)), algorithm="brute")
    return index.fit(reference_rk)
