"""train(): history, splits, recipes, training further."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from model_answers import assert_same_bits, get_answers
from vivace import SCVI
from vivace.errors import NotTrainedError, TrainingError, VivaceError
from vivace.train import fit

SMALL = {"n_hidden": 16, "n_latent": 3}


def test_history_has_scvi_tools_columns_and_one_row_an_epoch(trained):
    history = trained.history
    assert list(history) == [
        "train_loss",
        "elbo_train",
        "reconstruction_loss_train",
        "kl_local_train",
        "validation_loss",
        "elbo_validation",
        "reconstruction_loss_validation",
        "kl_local_validation",
        "lr",
        "kl_weight",
        "seconds",
        "compile_seconds",
    ]
    assert history.index.name == "epoch"
    assert history.index.tolist() == [0, 1]
    assert np.isfinite(history.to_numpy()).all()
    for part in ("train", "validation"):
        total = history[f"reconstruction_loss_{part}"] + history[f"kl_local_{part}"]
        np.testing.assert_allclose(history[f"elbo_{part}"], total)
    # the weight of the KL at the end of the epoch is the one that validation sees
    weighted = history["kl_weight"] * history["kl_local_validation"]
    np.testing.assert_allclose(
        history["validation_loss"], history["reconstruction_loss_validation"] + weighted, rtol=1e-6
    )


def test_the_history_is_a_copy(trained):
    history = trained.history
    history.loc[0, "lr"] = 99.0
    assert trained.history.loc[0, "lr"] != 99.0


def test_training_lowers_the_loss(tiny):
    adata = tiny(100)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    model.train(6, batch_size=30, progress=False)
    losses = model.history["reconstruction_loss_train"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_new_model_has_no_history(ready, refused):
    model = ready()
    assert not model.is_trained
    assert model.history.empty
    assert "elbo_validation" in model.history
    for question in (
        model.get_latent_representation,
        model.get_elbo,
        model.get_reconstruction_error,
    ):
        with refused(NotTrainedError, "train()"):
            question()


def test_training_again_keeps_the_split_and_appends(ready):
    model = ready()
    model.train(2, train_size=0.7, validation_size=0.2, progress=False)
    split = [
        rows.tolist()
        for rows in (model.train_indices, model.validation_indices, model.test_indices)
    ]
    first = model.history
    weights = model.module.decoder.scale.weight.detach().clone()
    model.train(1, progress=False)
    again = [model.train_indices, model.validation_indices, model.test_indices]
    assert [rows.tolist() for rows in again] == split
    assert [len(rows) for rows in split] == [42, 12, 6]
    assert model.history.index.tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(model.history[:2], first)
    assert not torch.equal(model.module.decoder.scale.weight, weights)


def test_a_second_call_of_the_fast_recipe_does_not_warm_up_again(ready):
    model = ready()
    model.train(4, progress=False)
    assert model.history["kl_weight"].iloc[0] < 1
    model.train(4, progress=False)
    assert (model.history["kl_weight"].iloc[4:] == 1).all()


def test_an_interrupted_model_can_be_shown_asked_and_saved(ready, tiny, tmp_path, monkeypatch):
    def interrupted(*arguments):
        fit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("vivace.train.run.fit", interrupted)
    model = ready()
    with pytest.raises(KeyboardInterrupt):
        model.train(2, progress=False)
    assert "2 epochs on 54 cells" in repr(model)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert_same_bits(get_answers(model), get_answers(loaded))


def test_an_interruption_that_numba_made_an_error_is_one_again(ready, monkeypatch):
    def interrupted_while_a_kernel_is_loaded(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("vivace.train.loop._Training.run", interrupted_while_a_kernel_is_loaded)
    model = ready()
    with pytest.raises(KeyboardInterrupt):
        model.train(2, progress=False)
    assert not model.is_trained


def test_training_on_every_cell(ready):
    model = ready()
    model.train(1, train_size=1.0, progress=False)
    assert model.train_indices.tolist() == list(range(60))
    assert len(model.validation_indices) == len(model.test_indices) == 0
    assert model.history["elbo_validation"].isna().all()
    assert model.history["elbo_train"].notna().all()
    assert "nan" not in repr(model)


@pytest.mark.parametrize("n_cells", [1, 2, 3, 21, 41])
def test_any_number_of_cells_trains(tiny, n_cells):
    adata = tiny(n_cells)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    model.train(1, batch_size=20, train_size=1.0, progress=False)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_elbo())


def test_the_scvi_tools_recipe_keeps_its_learning_rate_and_warms_up_over_400_epochs(ready):
    model = ready()
    model.train(3, recipe="scvi-tools", progress=False)
    assert model.history["lr"].tolist() == [1e-3] * 3
    np.testing.assert_allclose(model.history["kl_weight"], [0, 1 / 400, 2 / 400])


def test_plan_kwargs_replace_numbers_of_the_recipe(ready):
    model = ready()
    plan = {"lr": 2e-4, "n_epochs_kl_warmup": 2, "max_kl_weight": 0.5}
    model.train(3, recipe="scvi-tools", plan_kwargs=plan, progress=False)
    assert model.history["lr"].tolist() == [2e-4] * 3
    assert model.history["kl_weight"].tolist() == [0.0, 0.25, 0.5]


# ---- threads -----------------------------------------------------------------------------------


def in_threads(function, n=4):
    """Run a function in threads that take turns often; their exceptions."""
    errors = []

    def run():
        try:
            function()
        except VivaceError as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return errors


def test_models_made_in_threads_have_the_weights_of_their_seed(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata)
    expected = SCVI(adata, n_layers=2)._fingerprint()
    state = torch.get_rng_state()
    made = []
    for _ in range(10):
        in_threads(lambda: made.append(SCVI(adata, n_layers=2)._fingerprint()))
    assert made == [expected] * 40
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"use_layer_norm": "both"}], ids=["kernels", "autograd"])
def test_a_model_is_trained_by_one_thread_at_a_time(tiny, options):
    adata = tiny(300)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=16, n_latent=3, **options)
    errors = in_threads(lambda: model.train(20, progress=False), n=2)
    assert len(model.history) == 20 * (2 - len(errors))  # none if one ended before the other began
    for error in errors:
        assert isinstance(error, TrainingError)
        assert "is being trained already" in str(error)


def test_a_callback_cannot_train_the_model_that_is_being_trained(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=8, n_latent=2)

    class Again:
        def on_epoch_end(self, model, row):
            model.train(1, progress=False)

    with pytest.raises(TrainingError, match="is being trained already"):
        model.train(2, callbacks=[Again()], progress=False)
    model.train(1, progress=False)  # afterwards it can be trained
