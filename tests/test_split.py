"""The cells that a model was trained on, in the data that it was loaded with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vivace import SCVI
from vivace.errors import DataError
from vivace.split import hash_each_name


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
    loaded.train(1, progress=False)
    assert len(loaded.train_indices) == 54


def test_hashes_of_names_are_the_same_in_every_version():
    # pandas 2.3; another algorithm would take the cells of saved models for new ones
    adata = AnnData(obs=pd.DataFrame(index=["AAACATACAACCAC-1", "cell0", "é"]))
    assert hash_each_name(adata).tolist() == HASHES


HASHES = [14535326059163626444, 8011795984055242691, 16908809132758853863]
