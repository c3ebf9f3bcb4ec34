"""Labels of a reference for a query: the table, its options, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    VivaceWarning,
)
from vivace.transfer.labels import choose_subset, read_labels

SHORT = {"max_steps": 3, "progress": False}


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
    result = SCVI.load_query_data(query, model)
    result.train(**SHORT)
    return result


def test_a_large_reference_is_sampled_as_it_is_and_small_labels_are_kept():
    labels = np.repeat([0, 1, 2, 3], [60_000, 30_000, 300, 7])
    chosen = choose_subset(labels, np.random.default_rng(0))
    counts = np.bincount(labels[chosen])
    assert len(chosen) == len(set(chosen)) == 20_000
    assert counts[3] == 7
    assert 100 <= counts[2] <= 200
    assert abs(counts[0] / counts[1] - 2) < 0.1
    many = np.arange(90_000) % 30_000  # labels; none can have its hundred
    assert len(choose_subset(many, np.random.default_rng(0))) == 20_000


def test_types_of_a_query_are_found(mapped):
    result = mapped.transfer_labels(None, "cell_type", seed=0)
    truth = mapped.adata.obs["cell_type"].astype(str)
    assert list(result.columns) == ["label", "probability", "novelty"]
    assert list(result.index) == list(mapped.adata.obs_names)
    assert (result["label"] == truth).mean() > 0.75
    assert result["probability"].between(1 / 3, 1).all()
    assert result.attrs["held_out_by_batch"]
    assert set(result.attrs["exponents"]) == {"neighbours", "genes"}


def test_a_seed_repeats_it_and_minibatches_do_not_matter(mapped):
    once = mapped.transfer_labels(None, "cell_type", seed=3)
    again = mapped.transfer_labels(mapped.adata, "cell_type", batch_size=7, seed=3)
    assert (once["label"] == again["label"]).all()
    np.testing.assert_allclose(once["probability"], again["probability"], atol=1e-4)


def test_probabilities_of_all_labels_add_up(mapped):
    result = mapped.transfer_labels(None, "cell_type", all_probabilities=True, seed=0)
    every = result.filter(like="probability_")
    assert list(every) == ["probability_B", "probability_NK", "probability_T"]
    np.testing.assert_allclose(every.sum(axis=1), 1.0)
    np.testing.assert_allclose(every.max(axis=1), result["probability"])


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
    result = mapped.transfer_labels(query, "cell_type", key_added="guess", seed=0)
    assert query.obs["guess"].dtype == "category"
    assert (query.obs["guess"].astype(str) == result["label"]).all()
    np.testing.assert_array_equal(query.obs["guess_probability"], result["probability"])
    np.testing.assert_array_equal(query.obs["guess_novelty"], result["novelty"])
    query.write_h5ad(tmp_path / "query.h5ad")


def test_cells_of_the_reference_without_a_label_are_left_out(mapped):
    reference = mapped._reference.copy()
    reference.obs["half"] = (
        reference.obs["cell_type"].astype(str).where(reference.obs["cell_type"] != "T")
    )
    result = mapped.transfer_labels(None, "half", reference, seed=0)
    assert set(result["label"]) == {"B", "NK"}


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
    result = mapped.transfer_labels(None, "cell_type", reference, seed=0)
    assert set(result["label"]) == {"B", "NK"}


def test_cells_that_the_reference_has_too_are_told(mapped):
    reference = mapped._reference
    with pytest.warns(VivaceWarning, match=r"^50 cells of the query are also in the reference"):
        mapped.transfer_labels(reference[:50].copy(), "cell_type", seed=0)


def test_one_label_is_told_from_what_is_new_by_distances(mapped):
    reference = mapped._reference
    only = reference[reference.obs["cell_type"] == "B"].copy()
    result = mapped.transfer_labels(None, "cell_type", only, seed=0)
    assert set(result["label"]) == {"B"}
    assert result["novelty"].nunique() > 40
    assert list(result.attrs["exponents"]) == ["neighbours"]
    is_b = mapped.adata.obs["cell_type"] == "B"
    assert result["novelty"][is_b].median() < result["novelty"][~is_b].median()


@pytest.mark.parametrize("n", [1, 2, 12])
def test_of_few_cells_with_labels_there_is_no_novelty(mapped, n):
    with pytest.warns(VivaceWarning, match="too few labelled cells to measure novelty"):
        result = mapped.transfer_labels(None, "cell_type", mapped._reference[:n].copy(), seed=0)
    assert result["novelty"].isna().all()
    assert result["probability"].between(0, 1).all()


def test_one_cell_is_labelled(mapped):
    result = mapped.transfer_labels(mapped.adata[:1].copy(), "cell_type", seed=0)
    assert result.shape == (1, 3)
    assert np.isfinite(result["novelty"].iloc[0])


def test_a_reference_without_counts_is_asked_by_its_neighbours(tiny, tmp_path):
    model, query = reference_and_query(tiny)
    whole = SCVI.load_query_data(query, model)
    whole.train(**SHORT, seed=1)
    expected = whole.transfer_labels(None, "cell_type", expression=False, seed=0)
    model.minify_adata()
    model.save(tmp_path / "reference")
    mapped = SCVI.load_query_data(query, tmp_path / "reference")
    mapped.train(**SHORT, seed=1)
    result = mapped.transfer_labels(None, "cell_type", seed=0)
    assert set(result.attrs["exponents"]) == {"neighbours"}
    assert (result["label"] == expected["label"]).all()
    mapped.save(tmp_path / "mapped")
    again = SCVI.load(tmp_path / "mapped").transfer_labels(query, "cell_type", model.adata, seed=0)
    assert (again["label"] == result["label"]).all()


def test_what_cannot_be_labelled_is_refused(mapped, tiny, refused, tmp_path):
    other = tiny(20)
    other.obs["batch"] = "y"
    with refused(DataError, "does not know", "'y'", "load_query_data"):
        mapped.transfer_labels(other, "cell_type")
    with refused(MissingColumnError, "'cell_typ'", "did you mean 'cell_type'"):
        mapped.transfer_labels(None, "cell_typ")
    mapped.save(tmp_path / "mapped")
    loaded = SCVI.load(tmp_path / "mapped", mapped.adata)
    with refused(DataError, "no reference", "reference="):
        loaded.transfer_labels(None, "cell_type")
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
    adata.obs["donor"] = np.repeat(["a", "b"], 40)
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


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.array([1.0, 0.0]), {"1.0", "0.0"}),
        (pd.array([1, 0], "Int64"), {"1", "0"}),
        (np.array([True, False]), {"True", "False"}),
        (pd.Categorical(["b", "a"], ["a", "c", "b"]), {"b", "a"}),
        (pd.interval_range(0, 2), {"(0, 1]", "(1, 2]"}),
        (np.array([None, "a"], object), {"a"}),
        (np.array(["Unknown", "a"], object), {"a"}),
    ],
    ids=str,
)
def test_labels_of_every_type_are_read_by_text(tiny, values, names):
    adata = tiny()
    adata.obs["q"] = pd.Series(values)[np.arange(60) % 2].set_axis(adata.obs_names)
    rows, known, codes = read_labels(adata, "q")
    assert set(known) == names
    assert known == sorted(known)
    texts = adata.obs["q"].astype(str).to_numpy()[rows]
    assert [known[code] for code in codes] == texts.tolist()
    assert len(rows) == 30 * len(names)


def test_labels_that_cannot_be_told_are_refused_or_named(mapped, tiny, refused):
    reference = tiny(100, seed=7)
    reference.obs["kind"] = np.resize(["nan", "a"], 100)
    with pytest.warns(
        VivaceWarning, match=r"\(labels_key, in the reference\) is 'nan' for 50"
    ) as w:
        mapped.transfer_labels(None, "kind", reference, seed=0, expression=False)
    assert len(w) == 1
    reference.obs["kind"] = [["a"], ["b"]] * 50
    with refused(DataError, "obs['kind'] (labels_key, in the reference)", "list"):
        mapped.transfer_labels(None, "kind", reference)
    reference.obs = pd.concat([reference.obs, reference.obs[["donor"]]], axis=1)
    with refused(DataError, "2 columns named 'donor' (labels_key, in the reference)"):
        mapped.transfer_labels(None, "donor", reference)
