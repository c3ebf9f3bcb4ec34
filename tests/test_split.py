"""The cells that a model was trained on, in the data that it was loaded with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vivace import SCVI
from vivace.errors import DataError, VivaceWarning
from vivace.split import hash_cells


@pytest.fixture(scope="module")
def before(tiny, tmp_path_factory):
    """Data, a model that left out some cells, and its folder."""
    adata = tiny(100)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(2, train_size=0.6, validation_size=0.2, progress=False)
    folder = tmp_path_factory.mktemp("models") / "m"
    model.save(folder)
    return adata, model, folder


def names(model, part):
    return set(model.adata.obs_names[getattr(model, f"{part}_indices")])


PARTS = ("train", "validation", "test")


@pytest.mark.parametrize(
    "change",
    [lambda a: a, lambda a: a[::-1], lambda a: a[10:40], lambda a: a[[5, 3, 99]], lambda a: a[:1]],
    ids=["the same", "reversed", "some", "three", "one"],
)
def test_cells_are_followed_by_their_names(before, change):
    adata, model, folder = before
    loaded = SCVI.load(folder, change(adata).copy())
    kept = set(loaded.adata.obs_names)
    for part in PARTS:
        assert names(loaded, part) == names(model, part) & kept
        assert getattr(loaded, f"{part}_indices").dtype == np.int64


def test_new_cells_were_never_seen_and_training_splits_only_them(before, tiny, tmp_path):
    adata, model, folder = before
    other = tiny(40, seed=3)
    other.obs_names = [*adata.obs_names[:20], *(f"new{i}" for i in range(20))]
    SCVI.setup_anndata(other, batch_key="batch")
    loaded = SCVI.load(folder, other)
    new = set(other.obs_names[20:])
    assert names(loaded, "test") - new == names(model, "test") & set(other.obs_names)
    assert new < names(loaded, "test")
    seen = {part: names(loaded, part) for part in PARTS}
    loaded.train(1, train_size=0.5, progress=False)
    assert len(names(loaded, "train") & new) == 10
    assert len(names(loaded, "validation") & new) == 10
    for part in PARTS:
        assert names(loaded, part) - new == seen[part] - new
    loaded.save(tmp_path / "again")
    again = SCVI.load(tmp_path / "again", other[::-1].copy())
    for part in PARTS:
        assert names(again, part) == names(loaded, part)


def test_a_model_that_is_saved_again_with_other_data_keeps_the_cells_of_its_training(
    before, tmp_path
):
    adata, model, folder = before
    SCVI.load(folder, adata[:30].copy()).save(tmp_path / "m")
    loaded = SCVI.load(tmp_path / "m", adata)
    for part in PARTS:
        assert names(loaded, part) == names(model, part)


def test_training_that_ends_before_an_epoch_leaves_the_split(before):
    adata, _, folder = before
    loaded = SCVI.load(folder, adata[::-1].copy())
    seen = {part: names(loaded, part) for part in PARTS}

    class StopError(Exception): ...

    class Stopper:
        def on_train_start(self, model):
            raise StopError

    with pytest.raises(StopError):
        loaded.train(1, callbacks=[Stopper()], progress=False)
    assert {part: names(loaded, part) for part in PARTS} == seen
    loaded.train(1, progress=False)
    assert {part: names(loaded, part) for part in PARTS} == seen


def test_cells_of_an_earlier_training_are_not_forgotten(before, tiny, tmp_path):
    adata, model, folder = before
    seen = {part: names(model, part) for part in PARTS}
    other = tiny(40, seed=3)
    other.obs_names = [f"new{i}" for i in range(40)]
    SCVI.setup_anndata(other, batch_key="batch")
    for data in (other, adata[:30].copy()):  # other cells, and then some of the first
        loaded = SCVI.load(folder, data)
        loaded.train(1, progress=False)
        folder = tmp_path / f"m{data.n_obs}"
        loaded.save(folder)
    again = SCVI.load(folder, adata)
    assert seen["train"] <= names(again, "train")
    assert seen["validation"] <= names(again, "validation")
    assert names(again, "test") == seen["test"] - set(adata.obs_names[:30])  # new to the last call
    assert len(SCVI.load(folder, other).train_indices) == 36


def test_a_model_that_gets_only_its_validation_cells_trains_on_some_of_them(before):
    adata, model, folder = before
    loaded = SCVI.load(folder, adata[model.validation_indices].copy())
    assert len(loaded.train_indices) == 0
    loaded.train(1, progress=False)
    assert len(loaded.train_indices) == 18
    assert len(loaded.validation_indices) == 2


def test_names_that_are_numbers_are_not_taken_for_other_cells(tiny, tmp_path, refused):
    adata, other = tiny(80), tiny(80, seed=5)
    for data in (adata, other):
        data.obs_names = [str(i) for i in range(80)]
        SCVI.setup_anndata(data)
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    model.save(tmp_path / "m")
    part = SCVI.load(tmp_path / "m", adata[10:60].copy())
    assert names(part, "train") == names(model, "train") & set(part.adata.obs_names)
    loaded = SCVI.load(tmp_path / "m", other)
    with refused(DataError, "It is not known which of these cells"):
        loaded.test_indices  # noqa: B018
    with pytest.warns(VivaceWarning, match="all of them are split anew"):
        loaded.train(1, progress=False)
    loaded.save(tmp_path / "n")
    assert len(SCVI.load(tmp_path / "n", other).train_indices) == 72


def test_cells_that_were_changed_in_place_are_noticed(before, refused):
    adata, _, folder = before
    data = adata.copy()
    loaded = SCVI.load(folder, data)
    data._inplace_subset_obs(np.arange(100)[::-1])
    for part in PARTS:
        with refused(DataError, "The cells were reordered"):
            getattr(loaded, f"{part}_indices")


@pytest.mark.parametrize("of", ["the new data", "the training data"])
def test_cells_whose_names_repeat_are_unknown(tiny, refused, tmp_path, of):
    adata = tiny()
    other = adata[::-1].copy()
    repeating = other if of == "the new data" else adata
    repeating.obs_names = ["cell"] * 60
    SCVI.setup_anndata(adata)
    SCVI.setup_anndata(other)
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    assert len(model.train_indices) == 54
    model.save(tmp_path / "m")
    loaded = SCVI.load(tmp_path / "m", other)
    for part in PARTS:
        with refused(DataError, "not known", "load the model with the data"):
            getattr(loaded, f"{part}_indices")
    assert len(SCVI.load(tmp_path / "m", adata).train_indices) == 54  # both fixes work
    assert len(SCVI.load(tmp_path / "m").train_indices) == 54
    with pytest.warns(VivaceWarning, match="all of them are split anew"):
        loaded.train(1, progress=False)
    assert len(loaded.train_indices) == 54


def test_hashes_of_names_are_the_same_in_every_version():
    # pandas 2.3; another algorithm would take the cells of saved models for new ones
    adata = AnnData(obs=pd.DataFrame(index=["AAACATACAACCAC-1", "cell0", "é"]))
    assert hash_cells(adata, np.ones(3, np.float32)).tolist() == HASHES


HASHES = [14535326059163626444, 8011795984055242691, 16908809132758853863]
