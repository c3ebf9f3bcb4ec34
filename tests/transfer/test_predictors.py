"""Both predictors of labels together, and novelty, on cells of known labels in two dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.transfer import labels, novelty
from vivace.transfer.labels import choose_subset
from vivace.transfer.latent_cells import LabelledCells, LatentCells
from vivace.transfer.neighbours import nearest_points
from vivace.transfer.predictors import assign_folds, balance_folds, predict_labels


def blobs(n, batch, seed, shift=0.0, labels=3):
    """Cells of well separated labels in two latent dimensions, without genes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, labels, n)
    centre = 6.0 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[label]
    mean = (centre + rng.normal(size=(n, 2)) + shift).astype(np.float32)
    cells = LatentCells(mean, np.full((n, 2), 0.01, np.float32))
    return cells, label, np.full(n, batch)


def predict(reference, query):
    """Labels by neighbours alone."""
    return predict_labels(reference, reference, query, np.random.default_rng(0))


def two_batches(*sizes):
    """A reference of as many cells in each."""
    one, other = sizes * 2 if len(sizes) == 1 else sizes
    parts = [blobs(n, b, b) for b, n in enumerate((one, other))]
    mean = np.concatenate([p[0].mean for p in parts])
    label, batch = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    return LabelledCells(LatentCells(mean, np.full_like(mean, 0.01)), label, batch, 4)


@pytest.fixture(scope="module")
def reference():
    return two_batches(150)


def test_separated_labels_are_found_and_certain(reference):
    query, truth, _ = blobs(60, 0, 7)
    result = predict(reference, query)
    assert (result.probability.argmax(1) == truth).mean() > 0.98
    np.testing.assert_allclose(result.probability.sum(1), 1.0)
    assert result.by_batch
    assert result.held_out == 300


@pytest.mark.parametrize("sizes", [(900, 100), (1_900, 60)])
@pytest.mark.parametrize("n", [40, 500])
def test_batches_need_not_be_as_large(sizes, n):
    """Distances to the nearest cells decrease with the number of cells."""
    reference = two_batches(*sizes)
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    result = np.concatenate([predict(reference, query).novelty for query in queries])
    assert abs(np.median(result) - 0.5) < 0.2
    assert (result > 0.95).mean() < 0.12


def test_a_sample_of_a_large_reference_measures_the_same_novelty(monkeypatch):
    monkeypatch.setattr(labels, "_MAX_CELLS", 600)
    rng = np.random.default_rng(0)
    whole, (query, truth, _) = two_batches(3_000), blobs(2_000, 0, 9)
    kept = (whole.labels == 0) | (rng.random(6_000) < 0.03)  # 2 % are of other labels
    reference = whole.take(np.flatnonzero(kept))
    some = reference.take(choose_subset(reference.labels, rng))
    chosen = query.take(np.flatnonzero((truth == 0) | (rng.random(2_000) < 0.03)))
    result = predict_labels(reference, some, chosen, rng).novelty
    assert (result > 0.95).mean() < 0.1
    assert (result > 0.9).mean() < 0.17


@pytest.mark.parametrize("n", [40, 600, 2_000, 6_000])
def test_cells_like_the_reference_have_evenly_spread_novelty(n):
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    reference = two_batches(1_500)
    result = np.concatenate([predict(reference, query).novelty for query in queries])
    for level in (0.5, 0.9, 0.95):
        assert abs((result > level).mean() - (1 - level)) < 0.06


def test_a_query_is_judged_in_groups_as_held_out_cells_are(monkeypatch):
    """Of 150 held-out cells fifteen are a tenth, of a query of 6,000 they would be few."""
    sizes = []

    def noted(points, n_nearest):
        sizes.append(len(points))
        return nearest_points(points, n_nearest)

    monkeypatch.setattr(novelty, "nearest_points", noted)
    predict(two_batches(150), blobs(3_000, 0, 1)[0])
    assert sizes == [150] * 22
    sizes.clear()
    predict(two_batches(150), blobs(60, 0, 1)[0])
    assert sizes == [60, 75, 75, 75, 75]
    sizes.clear()
    predict(two_batches(150), blobs(90, 0, 1)[0])
    assert sizes == [90, 75, 75, 75, 75]
    sizes.clear()
    predict(two_batches(150), blobs(49, 0, 1)[0])
    assert sizes == []


def test_cells_of_a_label_that_the_reference_has_not_are_novel(reference):
    query, truth, _ = blobs(300, 0, 9, labels=4)
    novelty = predict(reference, query).novelty
    assert novelty[truth == 3].min() > np.median(novelty[truth < 3])
    assert (novelty[truth == 3] > 0.95).mean() > 0.95
    assert ((novelty >= 0) & (novelty <= 1)).all()


def test_further_cells_are_more_novel_beyond_all_that_was_held_out(reference):
    far = LatentCells(np.float32([[30, 30], [60, 60]]), np.full((2, 2), 1e-6, np.float32))
    one, other = predict(reference, far).novelty
    assert 0.99 < one <= other


def test_folds_keep_batches_whole_unless_labels_are_batches(reference):
    folds, keeps_batches = assign_folds(reference, np.random.default_rng(0))
    assert keeps_batches
    assert all(len(set(folds[reference.batches == b])) == 1 for b in (0, 1))
    single_batch = LabelledCells(reference.cells, reference.labels, reference.labels, 4)
    folds, keeps_batches = assign_folds(single_batch, np.random.default_rng(0))
    assert not keeps_batches
    assert np.ptp(np.bincount(folds)) <= 1


def test_folds_are_about_as_large():
    sizes = np.array([50, 40, 30, 20, 10, 10])
    fold = balance_folds(sizes, 2)
    assert {int(sizes[fold == f].sum()) for f in (0, 1)} == {80}
