"""Labels of a reference for a query: label, probability, novelty, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial.distance import cdist

from vivace import SCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    VivaceWarning,
)
from vivace.transfer import labels, novelty
from vivace.transfer.cells import Labelled, LatentCells
from vivace.transfer.expression import claims, components, log_normalised, shares_of
from vivace.transfer.labels import _folds, _spread, predict_labels, sample_of
from vivace.transfer.neighbours import distance_to, near_each_other, neighbour_labels, strangeness
from vivace.transfer.novelty import share_below, untypical
from vivace.transfer.options import LabelOptions

SHORT = {"max_steps": 3, "progress": False}


def blobs(n, batch, seed, shift=0.0, labels=3):
    """Cells of well separated labels in two latent dimensions, without genes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, labels, n)
    centre = 6.0 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[label]
    mean = (centre + rng.normal(size=(n, 2)) + shift).astype(np.float32)
    cells = LatentCells(mean, np.full((n, 2), 0.01, np.float32))
    return cells, label, np.full(n, batch)


def transferred(reference, query):
    """Labels by neighbours alone."""
    return predict_labels(reference, reference, query, LabelOptions(), np.random.default_rng(0))


def two_batches(*sizes):
    """A reference of as many cells in each."""
    one, other = sizes * 2 if len(sizes) == 1 else sizes
    parts = [blobs(n, b, b) for b, n in enumerate((one, other))]
    mean = np.concatenate([p[0].mean for p in parts])
    label, batch = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    return Labelled(LatentCells(mean, np.full_like(mean, 0.01)), label, batch, 4)


@pytest.fixture(scope="module")
def reference():
    return two_batches(150)


def reference_and_query(tiny):
    """A trained reference, and cells of a batch that it does not know."""
    adata = tiny(200)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=16, n_latent=3, preset="mapping")
    model.train(max_epochs=4, seed=0, progress=False)
    query = tiny(80, seed=3)
    query.obs["batch"] = "x"
    return model, query


@pytest.fixture(scope="module")
def mapped(tiny):
    """A model of a query of batch "x", which knows its reference."""
    model, query = reference_and_query(tiny)
    found = SCVI.load_query_data(query, model)
    found.train(**SHORT)
    return found


# ---- the witnesses ------------------------------------------------------------------


def test_neighbours_weigh_by_a_gaussian_of_their_distance():
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    labels = rng.integers(0, 3, 40)
    found = neighbour_labels(known, labels, 3, [points], 7)
    for i, distance in enumerate(cdist(points, known)):
        near = np.argsort(distance)[:7]
        weight = np.exp(-(distance[near] ** 2) / (2 * (distance[near] ** 2).mean()))
        expected = [weight[labels[near] == c].sum() / weight.sum() for c in range(3)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-6)


def test_draws_are_averaged():
    rng = np.random.default_rng(0)
    known, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    draws = [rng.normal(size=(5, 3)) for _ in range(3)]
    one_by_one = [neighbour_labels(known, labels, 3, [d], 7) for d in draws]
    np.testing.assert_allclose(
        neighbour_labels(known, labels, 3, draws, 7), np.mean(one_by_one, axis=0)
    )


def test_strangeness_is_the_ratio_of_mean_distances_less_its_median():
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    to_known = np.sort(cdist(points, known))[:, :7].mean(1)
    to_others = np.sort(cdist(points, points))[:, 1:8].mean(1)
    ratio = np.log(to_known / to_others)
    np.testing.assert_allclose(
        strangeness(distance_to(known, points, 7), points, 7), ratio - np.median(ratio), atol=1e-6
    )


@pytest.mark.parametrize("n_known", [60, 600, 6_000])
def test_strangeness_finds_what_only_the_query_has(n_known):
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(n_known, 3)), rng.normal(size=(600, 3))
    new = np.arange(600) % 20 == 0
    points[new] = 0.1 * points[new] + 1  # among the known cells, but denser
    found = strangeness(distance_to(known, points, 5), points, 5)
    assert np.median(found[new]) > np.quantile(found[~new], 0.9)
    assert abs(np.median(found)) < 1e-12


def test_points_near_each_other_against_all_distances():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    expected = np.argsort(cdist(points, points))[:, :4]
    np.testing.assert_array_equal(near_each_other(points, 4), expected)
    assert near_each_other(points[:2], 4).shape == (2, 2)


@pytest.mark.parametrize("shape", [(40, 30), (3, 30), (40, 1)])
def test_components_keep_the_distances_of_cells_that_few_genes_tell_apart(shape):
    rng = np.random.default_rng(0)
    genes = np.zeros(shape)
    genes[:, :5] = rng.normal(size=(shape[0], min(5, shape[1])))
    found = components(sp.csr_matrix(genes), rng)
    np.testing.assert_allclose(cdist(found, found), cdist(genes, genes), atol=1e-6)


def test_cells_that_are_all_the_same_have_components():
    found = components(sp.csr_matrix(np.ones((30, 20))), np.random.default_rng(0))
    np.testing.assert_allclose(found, found[:1].repeat(30, axis=0), atol=1e-9)


def test_cells_without_any_counts_have_components():
    found = components(sp.csr_matrix((30, 20)), np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.zeros_like(found))


def test_counts_are_scaled_to_ten_thousand_before_the_logarithm():
    counts = sp.csr_matrix(np.array([[1.0, 0, 3], [0, 0, 0]], np.float32))
    expected = [[np.log1p(2_500), 0, np.log1p(7_500)], [0, 0, 0]]
    np.testing.assert_allclose(log_normalised(counts).toarray(), expected)
    assert counts[0, 2] == 3


def test_a_label_claims_the_cells_that_have_its_gene():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    genes = rng.random((90, 6))
    genes[np.arange(90), labels] += 5
    odds = claims(sp.csr_matrix(genes), labels, 4, sp.csr_matrix(genes), 0)
    np.testing.assert_array_equal(odds.argmax(1), labels)
    assert np.isneginf(odds[:, 3]).all()
    np.testing.assert_allclose(shares_of(odds).sum(1), 1.0)
    nobody = sp.csr_matrix(rng.random((5, 6)))
    claimed = claims(sp.csr_matrix(genes), labels, 4, nobody, 0).max(1)
    assert claimed.max() < odds[np.arange(90), labels].min()


def test_classifiers_learn_the_same_on_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    genes, labels = sp.csr_matrix(rng.random((200, 9))), rng.integers(0, 7, 200)
    found = []
    for n in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        found.append(claims(genes, labels, 7, genes, 0))
    np.testing.assert_array_equal(*found)


# ---- both together ------------------------------------------------------------------


def test_separated_labels_are_found_and_certain(reference):
    query, truth, _ = blobs(60, 0, 7)
    found = transferred(reference, query)
    assert (found.probability.argmax(1) == truth).mean() > 0.98
    np.testing.assert_allclose(found.probability.sum(1), 1.0)
    assert found.by_batch
    assert found.held_out == 300


@pytest.mark.parametrize("sizes", [(900, 100), (1_900, 60)])
@pytest.mark.parametrize("n", [40, 500])
def test_batches_need_not_be_as_large(sizes, n):
    """Distances shrink with the number of cells that they are measured to."""
    reference = two_batches(*sizes)
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    found = np.concatenate([transferred(reference, query).novelty for query in queries])
    assert abs(np.median(found) - 0.5) < 0.2
    assert (found > 0.95).mean() < 0.12


def test_a_sample_of_a_large_reference_measures_the_same_novelty(monkeypatch):
    monkeypatch.setattr(labels, "_MOST_CELLS", 600)
    rng = np.random.default_rng(0)
    whole, (query, truth, _) = two_batches(3_000), blobs(2_000, 0, 9)
    kept = (whole.labels == 0) | (rng.random(6_000) < 0.03)  # 2 % are of other labels
    reference = whole.at(np.flatnonzero(kept))
    some = reference.at(sample_of(reference.labels, rng))
    asked = query.at(np.flatnonzero((truth == 0) | (rng.random(2_000) < 0.03)))
    found = predict_labels(reference, some, asked, LabelOptions(), rng).novelty
    assert (found > 0.95).mean() < 0.1
    assert (found > 0.9).mean() < 0.17


@pytest.mark.parametrize("n", [40, 600, 2_000, 6_000])
def test_cells_like_the_reference_have_evenly_spread_novelty(n):
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    reference = two_batches(1_500)
    found = np.concatenate([transferred(reference, query).novelty for query in queries])
    for level in (0.5, 0.9, 0.95):
        assert abs((found > level).mean() - (1 - level)) < 0.06


def test_a_query_is_judged_in_groups_as_held_out_cells_are(monkeypatch):
    """Of 150 held-out cells fifteen are a tenth, of a query of 6,000 they would be few."""
    sizes = []

    def noted(points, n_nearest):
        sizes.append(len(points))
        return near_each_other(points, n_nearest)

    monkeypatch.setattr(novelty, "near_each_other", noted)
    transferred(two_batches(150), blobs(3_000, 0, 1)[0])
    assert sizes == [150] * 22
    sizes.clear()
    transferred(two_batches(150), blobs(60, 0, 1)[0])
    assert sizes == [60, 75, 75, 75, 75]
    sizes.clear()
    transferred(two_batches(150), blobs(90, 0, 1)[0])
    assert sizes == [90, 75, 75, 75, 75]
    sizes.clear()
    transferred(two_batches(150), blobs(49, 0, 1)[0])
    assert sizes == []


def test_one_new_cell_is_novel_by_itself_and_many_are_together():
    """A new cell among known ones must not be drowned, nor known ones be called new."""
    rng = np.random.default_rng(0)
    known = [rng.normal(size=500) for _ in range(3)]
    values = [rng.normal(size=200) for _ in range(3)]
    values[0][0] = 6.0  # by itself, while those like it are as usual
    values[1][1:20] += 3.0
    values[2][1:20] += 3.0  # with its kind
    found = novelty.novelty(known, values)
    assert found[0] > 0.95
    assert np.median(found[1:20]) > 0.99
    assert (found[20:] > 0.9).mean() < 0.16
    larger = np.maximum(share_below(known[0], values[0]), 0)
    np.testing.assert_array_equal(novelty.novelty(known[:1], values[:1]), larger)


def test_cells_of_a_kind_are_novel_together():
    rng = np.random.default_rng(0)
    n = 200
    genes = np.abs(rng.normal(size=(n, 12)))
    genes[:20, :3] += 8
    places = rng.normal(size=(n, 2))
    cells = LatentCells(places, np.ones((n, 2)), sp.csr_matrix(genes))
    odds = rng.normal(size=n) - 1.0 * (np.arange(n) < 20)
    np.testing.assert_array_equal(untypical(cells, places, odds, 15, 49, rng), [-odds])
    alone, together, strange = untypical(cells, places, odds, 15, n, rng)
    np.testing.assert_array_equal(alone, -odds)
    assert together[:20].min() > np.quantile(together[20:], 0.95)
    assert (-odds)[:20].min() < np.median(-odds[20:])
    assert strange.shape == (n,)


def test_cells_of_a_label_that_the_reference_has_not_are_novel(reference):
    query, truth, _ = blobs(300, 0, 9, labels=4)
    novelty = transferred(reference, query).novelty
    assert novelty[truth == 3].min() > np.median(novelty[truth < 3])
    assert (novelty[truth == 3] > 0.95).mean() > 0.95
    assert ((novelty >= 0) & (novelty <= 1)).all()


def test_further_cells_are_more_novel_beyond_all_that_was_held_out(reference):
    far = LatentCells(np.float32([[30, 30], [60, 60]]), np.full((2, 2), 1e-6, np.float32))
    one, other = transferred(reference, far).novelty
    assert 0.99 < one <= other


def test_shares_below_against_a_count():
    known = np.random.default_rng(0).normal(size=500)
    values = np.linspace(-3, 1, 20)
    expected = [(known <= v).sum() / 501 for v in values]
    np.testing.assert_allclose(share_below(known, values), np.minimum(expected, 0.95))
    assert np.isnan(share_below(known[:5], values)).all()


def test_a_large_reference_is_sampled_as_it_is_and_small_labels_are_kept():
    labels = np.repeat([0, 1, 2, 3], [60_000, 30_000, 300, 7])
    chosen = sample_of(labels, np.random.default_rng(0))
    counts = np.bincount(labels[chosen])
    assert len(chosen) == len(set(chosen)) == 20_000
    assert counts[3] == 7
    assert 100 <= counts[2] <= 200
    assert abs(counts[0] / counts[1] - 2) < 0.1
    many = np.arange(90_000) % 30_000  # labels; none can have its hundred
    assert len(sample_of(many, np.random.default_rng(0))) == 20_000


def test_folds_keep_batches_whole_unless_labels_are_batches(reference):
    folds, by_batch = _folds(reference, np.random.default_rng(0))
    assert by_batch
    assert all(len(set(folds[reference.batches == b])) == 1 for b in (0, 1))
    alone = Labelled(reference.cells, reference.labels, reference.labels, 4)
    folds, by_batch = _folds(alone, np.random.default_rng(0))
    assert not by_batch
    assert np.ptp(np.bincount(folds)) <= 1


def test_folds_are_about_as_large():
    sizes = np.array([50, 40, 30, 20, 10, 10])
    fold = _spread(sizes, 2)
    assert {int(sizes[fold == f].sum()) for f in (0, 1)} == {80}


# ---- the method -----------------------------------------------------------------------


def test_types_of_a_query_are_found(mapped):
    found = mapped.transfer_labels(None, "cell_type", seed=0)
    truth = mapped.adata.obs["cell_type"].astype(str)
    assert list(found.columns) == ["label", "probability", "novelty"]
    assert list(found.index) == list(mapped.adata.obs_names)
    assert (found["label"] == truth).mean() > 0.75
    assert found["probability"].between(1 / 3, 1).all()
    assert found.attrs["held_out_by_batch"]
    assert set(found.attrs["exponents"]) == {"neighbours", "genes"}


def test_a_seed_repeats_it_and_minibatches_do_not_matter(mapped):
    once = mapped.transfer_labels(None, "cell_type", seed=3)
    again = mapped.transfer_labels(mapped.adata, "cell_type", batch_size=7, seed=3)
    assert (once["label"] == again["label"]).all()
    np.testing.assert_allclose(once["probability"], again["probability"], atol=1e-4)


def test_probabilities_of_all_labels_add_up(mapped):
    found = mapped.transfer_labels(None, "cell_type", all_probabilities=True, seed=0)
    every = found.filter(like="probability_")
    assert list(every) == ["probability_B", "probability_NK", "probability_T"]
    np.testing.assert_allclose(every.sum(axis=1), 1.0)
    np.testing.assert_allclose(every.max(axis=1), found["probability"])


def test_unknown_where_doubt_is_too_large(mapped):
    plain = mapped.transfer_labels(None, "cell_type", seed=0)
    doubtful = mapped.transfer_labels(
        None, "cell_type", min_probability=0.9, max_novelty=0.8, seed=0
    )
    unknown = (plain["probability"] < 0.9) | (plain["novelty"] > 0.8)
    assert 0 < unknown.sum() < len(unknown)
    assert (doubtful["label"] == plain["label"].mask(unknown, "Unknown")).all()
    assert doubtful.attrs["n_unknown"] == unknown.sum()


def test_columns_of_obs_can_be_written(mapped, tmp_path):
    query = mapped.adata.copy()
    found = mapped.transfer_labels(query, "cell_type", key_added="guess", seed=0)
    assert query.obs["guess"].dtype == "category"
    assert (query.obs["guess"].astype(str) == found["label"]).all()
    np.testing.assert_array_equal(query.obs["guess_probability"], found["probability"])
    np.testing.assert_array_equal(query.obs["guess_novelty"], found["novelty"])
    query.write_h5ad(tmp_path / "query.h5ad")


def test_cells_of_the_reference_without_a_label_are_left_out(mapped):
    reference = mapped._reference.copy()
    reference.obs["half"] = (
        reference.obs["cell_type"].astype(str).where(reference.obs["cell_type"] != "T")
    )
    found = mapped.transfer_labels(None, "half", reference, seed=0)
    assert set(found["label"]) == {"B", "NK"}


def test_labels_of_a_second_query_are_those_of_the_reference(mapped):
    """Not those that an earlier query came with, remapped or followed by another."""
    for batch in ("x", "y"):
        query = mapped.adata.copy()
        query.obs["batch"] = batch
        query.obs["cell_type"] = "of the query"
        again = SCVI.load_query_data(query, mapped)
        if batch == "y":
            again.train(**SHORT)
        assert set(again.transfer_labels(None, "cell_type", seed=0)["label"]) <= {"B", "NK", "T"}


def test_cells_labelled_unknown_are_cells_without_a_label(mapped):
    reference = mapped._reference.copy()
    reference.obs["cell_type"] = reference.obs["cell_type"].astype(str).replace({"T": "Unknown"})
    found = mapped.transfer_labels(None, "cell_type", reference, seed=0)
    assert set(found["label"]) == {"B", "NK"}


def test_cells_that_the_reference_has_too_are_told(mapped):
    reference = mapped._reference
    with pytest.warns(VivaceWarning, match=r"^50 cells of the query are cells of the reference"):
        mapped.transfer_labels(reference[:50].copy(), "cell_type", seed=0)


def test_one_label_is_told_from_what_is_new_by_distances(mapped):
    reference = mapped._reference
    only = reference[reference.obs["cell_type"] == "B"].copy()
    found = mapped.transfer_labels(None, "cell_type", only, seed=0)
    assert set(found["label"]) == {"B"}
    assert found["novelty"].nunique() > 40
    assert list(found.attrs["exponents"]) == ["neighbours"]
    is_b = mapped.adata.obs["cell_type"] == "B"
    assert found["novelty"][is_b].median() < found["novelty"][~is_b].median()


@pytest.mark.parametrize("n", [1, 2, 12])
def test_of_few_cells_with_labels_there_is_no_novelty(mapped, n):
    with pytest.warns(VivaceWarning, match="too few labelled cells to measure novelty"):
        found = mapped.transfer_labels(None, "cell_type", mapped._reference[:n].copy(), seed=0)
    assert found["novelty"].isna().all()
    assert found["probability"].between(0, 1).all()


def test_one_cell_is_labelled(mapped):
    found = mapped.transfer_labels(mapped.adata[:1].copy(), "cell_type", seed=0)
    assert found.shape == (1, 3)
    assert np.isfinite(found["novelty"].iloc[0])


def test_a_reference_without_counts_is_asked_by_its_neighbours(tiny, tmp_path):
    model, query = reference_and_query(tiny)
    whole = SCVI.load_query_data(query, model)
    whole.train(**SHORT, seed=1)
    expected = whole.transfer_labels(None, "cell_type", expression=False, seed=0)
    model.minify_adata()
    model.save(tmp_path / "reference")
    mapped = SCVI.load_query_data(query, tmp_path / "reference")
    mapped.train(**SHORT, seed=1)
    found = mapped.transfer_labels(None, "cell_type", seed=0)
    assert set(found.attrs["exponents"]) == {"neighbours"}
    assert (found["label"] == expected["label"]).all()
    mapped.save(tmp_path / "mapped")
    again = SCVI.load(tmp_path / "mapped").transfer_labels(query, "cell_type", model.adata, seed=0)
    assert (again["label"] == found["label"]).all()


def test_what_cannot_be_labelled_is_refused(mapped, tiny, refused, tmp_path):
    other = tiny(20)
    other.obs["batch"] = "y"
    with refused(DataError, "does not know", "'y'", "load_query_data"):
        mapped.transfer_labels(other, "cell_type")
    with refused(MissingColumnError, "'cell_typ'", "did you mean 'cell_type'"):
        mapped.transfer_labels(None, "cell_typ")
    mapped.save(tmp_path / "mapped")
    alone = SCVI.load(tmp_path / "mapped", mapped.adata)
    with refused(DataError, "no reference", "reference="):
        alone.transfer_labels(None, "cell_type")
    empty = mapped._reference.copy()
    empty.obs["none"] = np.nan
    with refused(DataError, "has no labels"):
        mapped.transfer_labels(None, "none", empty)
    with refused(ArgumentTypeError, "reference must be an AnnData"):
        mapped.transfer_labels(None, "cell_type", "reference.h5ad")


def test_names_of_cells_are_no_labels(mapped, refused):
    reference = mapped._reference.copy()
    reference.obs["cell"] = reference.obs_names
    with refused(DataError, "'cell'", "200 different values in 200 cells"):
        mapped.transfer_labels(None, "cell", reference)


@pytest.mark.parametrize("key", ["batch", "donor"])
def test_columns_that_the_model_reads_are_not_overwritten(tiny, refused, key):
    adata = tiny(80)
    adata.obs["donor"] = ["a", "b"] * 40
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    model = SCVI(adata, n_hidden=8)
    model.train(**SHORT)
    before = adata.obs.copy()
    with refused(OptionError, f"key_added={key!r}", "choose another name"):
        model.transfer_labels(adata, "cell_type", key_added=key)
    assert adata.obs.equals(before)


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ({"n_neighbors": 0}, OptionError),
        ({"n_samples": 1.5}, ArgumentTypeError),
        ({"expression": "yes"}, ArgumentTypeError),
        ({"all_probabilities": 1}, ArgumentTypeError),
        ({"max_novelty": 2}, OptionError),
        ({"min_probability": "high"}, ArgumentTypeError),
        ({"key_added": ""}, ArgumentTypeError),
    ],
)
def test_arguments_are_checked(mapped, refused, argument, kind):
    with refused(kind, next(iter(argument))):
        mapped.transfer_labels(None, "cell_type", **argument)
