"""Shares of labels among neighbours, and distances, compared with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from vivace.transfer.neighbours import (
    log_density_ratio,
    log_distance,
    nearest_points,
    neighbour_shares,
)


def test_neighbours_weigh_by_a_gaussian_of_their_distance():
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    labels = rng.integers(0, 3, 40)
    result = neighbour_shares(known, labels, 3, [points], 7)
    for i, distance in enumerate(cdist(points, known)):
        nearest = np.argsort(distance)[:7]
        weight = np.exp(-(distance[nearest] ** 2) / (2 * (distance[nearest] ** 2).mean()))
        expected = [weight[labels[nearest] == c].sum() / weight.sum() for c in range(3)]
        np.testing.assert_allclose(result[i], expected, rtol=1e-6)


def test_samples_are_averaged():
    rng = np.random.default_rng(0)
    known, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    samples = [rng.normal(size=(5, 3)) for _ in range(3)]
    one_by_one = [neighbour_shares(known, labels, 3, [s], 7) for s in samples]
    np.testing.assert_allclose(
        neighbour_shares(known, labels, 3, samples, 7), np.mean(one_by_one, axis=0)
    )


def test_density_is_the_ratio_of_mean_distances_less_its_median():
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    to_known = np.sort(cdist(points, known))[:, :7].mean(1)
    to_others = np.sort(cdist(points, points))[:, 1:8].mean(1)
    ratio = np.log(to_known / to_others)
    np.testing.assert_allclose(
        log_density_ratio(log_distance(known, points, 7), points, 7),
        ratio - np.median(ratio),
        atol=1e-6,
    )


@pytest.mark.parametrize("n_known", [60, 600, 6_000])
def test_density_shows_what_only_the_query_has(n_known):
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(n_known, 3)), rng.normal(size=(600, 3))
    new = np.arange(600) % 20 == 0
    points[new] = 0.1 * points[new] + 1  # among the known cells, but denser
    result = log_density_ratio(log_distance(known, points, 5), points, 5)
    assert np.median(result[new]) > np.quantile(result[~new], 0.9)
    assert abs(np.median(result)) < 1e-12


def test_points_nearest_points_against_all_distances():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    expected = np.argsort(cdist(points, points))[:, :4]
    np.testing.assert_array_equal(nearest_points(points, 4), expected)
    assert nearest_points(points[:2], 4).shape == (2, 2)
