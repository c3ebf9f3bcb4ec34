"""save() and load(): a loaded model answers and trains like the original."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from model_answers import assert_same_bits, get_answers
from vivace import SCVI
from vivace.errors import ArgumentTypeError, DataError


@pytest.mark.parametrize("with_data", [True, False])
def test_a_loaded_model_answers_identically(trained, tiny, tmp_path, with_data):
    trained.save(tmp_path / "model", save_anndata=with_data)
    loaded = SCVI.load(tmp_path / "model", None if with_data else tiny())
    assert_same_bits(get_answers(trained), get_answers(loaded))
    pd.testing.assert_frame_equal(loaded.history, trained.history, check_exact=True)
    for rows in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(loaded, rows), getattr(trained, rows))
    assert loaded.schema == trained.schema
    assert repr(loaded) == repr(trained)
    assert loaded.get_elbo() == SCVI.load(tmp_path / "model", tiny()).get_elbo()


def test_a_model_loaded_without_data_says_so(saved, refused):
    model = SCVI.load(saved)
    assert model.is_trained
    assert "no data attached" in repr(model)
    for question in (model.get_latent_representation, model.get_elbo, model.train):
        with refused(DataError, "without data", "adata="):
            question()


def test_a_loaded_model_trains_on_as_the_original_would(saved, tiny):
    loaded = SCVI.load(saved, tiny())
    loaded.save(saved.parent / "copy")
    other = SCVI.load(saved.parent / "copy", tiny())
    split = loaded.train_indices.tolist()
    for model in (loaded, other):
        model.train(1, progress=False)
    assert_same_bits(get_answers(loaded), get_answers(other))
    assert loaded.train_indices.tolist() == split
    assert loaded.history.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_cells", [20, 90])
def test_other_data_get_a_split_of_their_own(saved, tiny, n_cells):
    model = SCVI.load(saved, tiny(n_cells, seed=5))
    model.train(1, progress=False)
    rows = [*model.train_indices.tolist(), *model.validation_indices.tolist()]
    assert sorted(rows) == list(range(n_cells))
    assert len(model.history) == 3


def test_an_untrained_model_can_be_saved_and_trained_later(ready, tiny, tmp_path):
    model = ready()
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert not loaded.is_trained
    for each in (model, loaded):
        each.train(1, progress=False)
    assert_same_bits(get_answers(model), get_answers(loaded))


def test_paths_may_be_text(trained, tmp_path):
    trained.save(str(tmp_path / "deep" / "model"))
    assert SCVI.load(str(tmp_path / "deep" / "model")).is_trained


@pytest.mark.parametrize("call", [SCVI.load, lambda path: SCVI.save(None, path)])
def test_a_path_of_a_wrong_type_is_refused(refused, call):
    with refused(ArgumentTypeError, "dir_path", "5"):
        call(5)
