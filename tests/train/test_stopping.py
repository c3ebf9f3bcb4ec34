"""Evaluation of epochs, early stopping, which weights are kept, callbacks and loggers."""

from __future__ import annotations

import csv
import math
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData

import vivace
from vivace.errors import OptionError, TrainingError
from vivace.train import RECIPES, Callback
from vivace.train.flat import FlatWeights
from vivace.train.schedule import Schedule
from vivace.train.stopping import Judge, Patience


@pytest.fixture(scope="module")
def adata():
    cells = vivace.datasets.pbmc3k()[:600, :300].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    vivace.SCVI.setup_anndata(cells)
    return cells


@pytest.fixture
def model(adata):
    vivace.settings.seed = 0
    return vivace.SCVI(adata, n_hidden=16, n_latent=3)


# ---- the judge, by itself ------------------------------------------------------


def judged(elbos, patience=None, full_from=0, **more):
    """A judge after these epochs, and the epoch after which its patience ran out."""
    judge = Judge(patience, keep_best=True)
    for epoch, elbo in enumerate(elbos):
        row = {"elbo_validation": elbo, "kl_weight": float(epoch >= full_from)}
        row |= {k: v[epoch] for k, v in more.items()}
        judge.add(row)
        if judge.patience_is_over(row):
            return judge, epoch
    return judge, None


def test_the_best_epoch_is_known():
    assert judged([5.0, 3.0, 4.0])[0].best_epoch == 2


def test_epochs_of_the_warm_up_are_not_judged():
    judge, _ = judged([1.0, 5.0, 4.0, 4.5], full_from=1)
    assert judge.best_epoch == 3


def test_epochs_of_the_warm_up_are_judged_where_the_recipe_says_so():
    judge = Judge(None, keep_best=False, judge_warmup=True)
    assert judge.add({"elbo_validation": 5.0, "kl_weight": 0.0})
    assert judge.best_epoch == 1


def test_training_stops_when_patience_runs_out():
    elbos = [5.0, 4.0, 4.5, 4.2, 4.1, 3.0]
    assert judged(elbos, Patience(epochs=3))[1] == 4
    assert judged(elbos, Patience(epochs=4))[1] is None
    assert judged(elbos, Patience(epochs=3, warmup_epochs=3))[1] is None
    assert judged(elbos, Patience(epochs=3), full_from=2)[1] is None
    assert judged(elbos, Patience(epochs=2, min_delta=1.5))[1] == 2
    assert judged(elbos, Patience("score", 2, lower_is_better=False), score=range(6))[1] is None
    assert judged(elbos, Patience("score", 2, lower_is_better=True), score=range(6))[1] == 2


VERDICTS = {
    "stopped": ([9.0, 5.0, 5.1, 5.2], Patience(epochs=2), "Converged after 2 epochs; 2 more did"),
    "best long ago": (
        [9.0, 5.0, *[5.1] * 6],
        None,
        "Converged after 2 epochs; 6 more did not help",
    ),
    "worse from the first on": (
        [5.0, *[5.1] * 6],
        None,
        "Best at epoch 1, the first with the full KL weight; 6 more did not help, so train for fewer",
    ),
    "falling": ([9.0, 8.0, 7.0, 6.0], None, "Stopped after 4 epochs while still improving"),
    "level": (
        [9.0, 5.0, 4.5, 4.5, 4.49, 4.48],
        None,
        "Finished 6 epochs; the last one improved the ELBO by 0.0 nats per cell",
    ),
    "level, eight epochs": (
        [900.0, 800.0, 500.0, 497.0, 495.0, 494.2, 494.0, 493.8],
        None,
        "Finished 8 epochs; the last 2 improved the ELBO by 0.4 nats per cell",
    ),
    "one epoch": ([9.0], None, "Stopped after 1 epoch while still improving"),
    "no validation": ([math.nan] * 3, None, "Trained for 3 epochs without validation cells"),
}


@pytest.mark.parametrize(("elbos", "patience", "sentence"), VERDICTS.values(), ids=VERDICTS)
def test_convergence_is_described_in_a_sentence(elbos, patience, sentence):
    assert judged(elbos, patience)[0].convergence().describe().startswith(sentence)


def test_improving_after_the_plateau_is_said():
    judge = Judge(Patience(epochs=1), keep_best=True)
    for elbo in (5.0, 5.1):
        row = {"elbo_validation": elbo, "kl_weight": 1.0}
        judge.add(row)
        judge.patience_is_over(row)
    judge.add({"elbo_validation": 4.0, "kl_weight": 1.0})
    assert judge.convergence().describe() == (
        "Converged: the ELBO levelled off at epoch 2, and 1 epoch with a falling learning rate "
        "followed"
    )


def test_a_callback_that_stopped_it_is_said():
    judge, _ = judged([9.0, 8.0])
    convergence = judge.convergence(stopped_by_callback=True)
    assert convergence.describe() == "Stopped by a callback after 2 epochs"


@pytest.mark.parametrize(("least", "most"), [(0.1, 0.9), (0.3, 0.7), (0.0, 1e-3)])
def test_the_full_kl_weight_is_reached_whatever_its_rounding(model, least, most):
    plan = {"min_kl_weight": least, "max_kl_weight": most}
    model.train(6, plan_kwargs=plan, progress=False)
    assert model._state.summary["convergence"]["status"] != "warming up"
    assert "with the KL weight at" not in model.summary


def test_a_warm_up_that_was_not_finished_is_said():
    judge = Judge(None, keep_best=True)
    for elbo in (9.0, 8.0):
        judge.add({"elbo_validation": elbo, "kl_weight": 0.02})
    assert "KL weight at 0.02 of 1; train longer" in judge.convergence().describe()


def test_a_second_run_that_does_not_help_is_said():
    judge = Judge(None, keep_best=True)
    judge.start_from(4.0)
    assert not judge.add({"elbo_validation": 5.0, "kl_weight": 1.0})
    convergence = judge.convergence()
    assert convergence.describe() == "1 more epoch did not help; the weights stay as they were"
    assert convergence.best_epoch == 0


# ---- the schedule --------------------------------------------------------------


def test_after_an_early_stop_the_learning_rate_falls_to_zero():
    schedule = Schedule(RECIPES["fast"], 1000)
    assert schedule.learning_rate(300) == 1e-2
    assert not schedule.is_decaying(300)
    schedule.decay_from(300, 100)
    assert schedule.n_steps == 400
    rates = [schedule.learning_rate(step) for step in range(300, 401)]
    assert rates[0] == 1e-2
    assert rates[100] == 0.0
    assert all(a > b for a, b in pairwise(rates))
    assert schedule.is_decaying(300)


def test_a_decay_does_not_outlast_the_budget():
    schedule = Schedule(RECIPES["fast"], 350)
    schedule.decay_from(300, 100)
    assert schedule.n_steps == 350


def test_reducing_the_learning_rate_stops_at_the_least():
    plan = {"reduce_lr_on_plateau": True, "lr_factor": 0.5, "lr_min": 3e-4}
    schedule = Schedule(RECIPES["scvi-tools"].with_plan(plan), 10)
    rates = []
    for _ in range(3):
        schedule.reduce()
        rates.append(schedule.learning_rate(0))
    assert rates == pytest.approx([5e-4, 3e-4, 3e-4])


# ---- train -----------------------------------------------------------------------


def test_the_weights_that_stay_are_those_of_the_best_epoch(model):
    class Spoil(Callback):
        """Destroys the weights after the second to last epoch, and again after the last."""

        def on_epoch_end(self, model, row):
            if len(model.history) >= 11:
                with torch.no_grad():
                    model.module.decoder.scale.bias.mul_(0.5)

    model.train(12, callbacks=Spoil(), progress=False)
    h = model.history["elbo_validation"]
    assert h.iloc[-1] > h.iloc[-2]
    best = h[model.history["kl_weight"] == 1].min()
    result = -model.get_elbo(indices=model.validation_indices, n_samples=50, seed=0)
    assert result == pytest.approx(best, rel=0.01)
    assert abs(result - h.iloc[-1]) > 3 * abs(result - best)


def test_early_stopping_holds_the_learning_rate_and_then_lets_it_fall(model):
    model.train(
        60,
        early_stopping=True,
        early_stopping_patience=3,
        early_stopping_min_delta=1e9,
        progress=False,
    )
    h = model.history
    full = int((h["kl_weight"] < 1).sum())  # the first epoch at full weight is an improvement
    plateau = full + 4
    fall = math.ceil(0.25 * plateau)  # the last of these epochs is cut short
    assert len(h) == plateau + fall
    assert (h["lr"].iloc[full:plateau] == 1e-2).all()
    assert h["lr"].iloc[plateau:].is_monotonic_decreasing
    assert h["lr"].iloc[-1] < 0.2e-2
    assert f"levelled off at epoch {plateau}, and {fall} epochs" in model.summary or (
        "more did not help" in model.summary
    )


def test_without_a_plateau_the_learning_rate_falls_at_the_end_of_the_budget(model):
    model.train(20, early_stopping=True, early_stopping_patience=20, progress=False)
    lr = model.history["lr"]
    assert len(lr) == 20
    assert (lr.iloc[5:15] == 1e-2).all()
    assert lr.iloc[-1] < 1e-3


def test_early_stopping_of_the_scvi_tools_recipe_stops_at_once(model):
    model.train(
        50,
        recipe="scvi-tools",
        early_stopping=True,
        early_stopping_patience=3,
        early_stopping_min_delta=1e9,
        progress=False,
    )
    assert len(model.history) == 4  # the first epoch is an improvement on nothing
    assert (model.history["lr"] == 1e-3).all()


def test_no_early_stopping_without_validation_cells(model):
    with pytest.raises(OptionError, match="early_stopping needs validation cells"):
        model.train(2, train_size=1.0, early_stopping=True, progress=False)
    plan = {"reduce_lr_on_plateau": True}
    with pytest.raises(OptionError, match="reduce_lr_on_plateau needs validation cells"):
        model.train(2, train_size=1.0, plan_kwargs=plan, progress=False)
    options = {"early_stopping": True, "early_stopping_monitor": "elbo_train"}
    model.train(2, train_size=1.0, **options, progress=False)
    assert "without validation cells" in model.summary


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(None, 7, 2), (1, 100, 1), (9, 3, 1)])
def test_training_stops_at_max_steps(model, epochs, steps, expected):
    # five minibatches per epoch
    model.train(epochs, max_steps=steps, batch_size=128, progress=False)
    assert len(model.history) == expected
    moved = model.module.encoder.activations[0].batch_norm.num_batches_tracked.item()
    assert moved == min(steps, 5 * (epochs or 2))


def test_max_steps_of_minus_one_is_no_limit(model):
    model.train(2, max_steps=-1, progress=False)
    assert len(model.history) == 2


def test_the_learning_rate_falls_where_the_metric_does_not(model):
    plan = {
        "reduce_lr_on_plateau": True,
        "lr_patience": 1,
        "lr_threshold": 1e9,
        "lr_factor": 0.5,
        "n_epochs_kl_warmup": None,
    }
    model.train(7, recipe="scvi-tools", plan_kwargs=plan, progress=False)
    assert model.history["lr"].tolist() == pytest.approx(
        [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    )


def test_a_refused_call_leaves_the_split_to_the_next(model):
    with pytest.raises(OptionError):
        model.train(2, train_size=1.0, early_stopping=True, progress=False)
    model.train(1, train_size=0.5, progress=False)
    assert len(model.train_indices) == len(model.validation_indices) == model.adata.n_obs // 2


class Interrupt(Callback):
    """Ctrl-C in the epoch after so many."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_start(self, model):
        if self.epochs == 0:
            raise KeyboardInterrupt

    def on_epoch_end(self, model, row):
        self.epochs -= 1
        if self.epochs == 0:
            with torch.no_grad():
                model.module.decoder.scale.weight.fill_(7.0)  # as if in the middle of an epoch
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("epochs", "verdict"),
    [  # the KL weight is not full before the third
        (1, "Interrupted after 1 epoch; the weights are those of the last complete epoch"),
        (3, "Interrupted after 3 epochs; the weights are those of the best epoch"),
    ],
)
def test_an_interrupted_run_says_so_and_keeps_whole_epochs(model, tmp_path, epochs, verdict):
    with pytest.raises(KeyboardInterrupt):
        model.train(10, callbacks=Interrupt(epochs), progress=False)
    assert verdict in model.summary
    assert not (model.module.decoder.scale.weight == 7.0).any()
    assert not model.module.training
    model.save(tmp_path / "model")
    assert len(vivace.SCVI.load(tmp_path / "model").history) == epochs


def test_an_interrupted_second_run_keeps_the_best_weights(model):
    model.train(10, progress=False)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        model.train(5, plan_kwargs={"lr": 0.5}, callbacks=Interrupt(1), progress=False)
    assert "Interrupted after 1 epoch; the weights are those of the best epoch" in model.summary
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_a_model_interrupted_before_its_first_epoch_can_be_saved_and_trained(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        model.train(5, train_size=0.5, callbacks=Interrupt(0), progress=False)
    assert not model.is_trained
    model.save(tmp_path / "model")
    loaded = vivace.SCVI.load(tmp_path / "model", model.adata)
    for again in (model, loaded):
        again.train(1, train_size=0.75, progress=False)
        assert len(again.train_indices) == 0.75 * model.adata.n_obs


def test_loggers_write_what_they_hold_when_training_fails(model, tmp_path):
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="run", version="")
    with pytest.raises(KeyboardInterrupt):
        model.train(5, logger=logger, callbacks=Interrupt(2), progress=False)
    (file,) = tmp_path.rglob("metrics.csv")
    assert len(file.read_text().splitlines()) == 3


def test_an_epoch_whose_weights_are_not_finite_is_repeated(model, monkeypatch):
    real, calls = FlatWeights.all_finite, []

    def fail_once(weights):
        calls.append(weights)
        return len(calls) > 1 and real(weights)

    monkeypatch.setattr(FlatWeights, "all_finite", fail_once)
    with pytest.warns(RuntimeWarning, match="repeated with half the learning rate"):
        model.train(1, train_size=1.0, max_steps=1, progress=False)
    assert len(calls) == 2
    assert model.history["lr"].iloc[0] == pytest.approx(RECIPES["fast"].lr / 2)


@pytest.mark.parametrize("train_size", [1.0, 0.9])
@pytest.mark.parametrize(("lr", "recovers"), [(1e5, True), (1e20, False)])
def test_a_last_step_after_which_the_loss_is_infinite_is_noticed(model, lr, recovers, train_size):
    options = {"train_size": train_size, "plan_kwargs": {"lr": lr}, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if the epoch is repeated
        if recovers:
            model.train(1, max_steps=1, **options)
            assert np.isfinite(model.get_elbo())
        else:
            with pytest.raises(TrainingError, match="train a new model with a lower learning rate"):
                model.train(1, max_steps=1, **options)
    assert all(v.isfinite().all() for v in model.module.state_dict().values())


def test_frozen_parameters_stay(model):
    model.module.decoder.requires_grad_(False)
    before = {k: v.clone() for k, v in model.module.decoder.named_parameters()}
    model.train(2, progress=False)
    after = dict(model.module.decoder.named_parameters())
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.grad is None for p in model.module.parameters())


def test_a_second_run_of_the_scvi_tools_recipe_keeps_its_last_weights(model):
    plan = {"n_epochs_kl_warmup": 1}
    model.train(8, recipe="scvi-tools", plan_kwargs=plan, progress=False)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.train(2, recipe="scvi-tools", plan_kwargs=plan | {"lr": 0.5}, progress=False)
    assert "2 more epochs did not help; the weights are those of the last epoch" in model.summary
    assert any(not torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_training_again_does_not_make_the_model_worse(model):
    model.train(10, progress=False)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.train(1, plan_kwargs={"lr": 0.3}, progress=False)
    assert "the weights stay as they were" in model.summary
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_the_same_cells_are_watched_in_every_call(adata):
    model = vivace.SCVI(adata, n_hidden=8, n_latent=2)
    model.train(2, train_size=0.05, progress=False)
    frozen = {"lr": 0.0}
    seen = []
    for seed in (1, 2):
        model.train(1, plan_kwargs=frozen, seed=seed, progress=False)
        seen.append(model.history["reconstruction_loss_validation"].iloc[-1])
    assert seen[0] == pytest.approx(seen[1], rel=2e-3)  # noise alone, not other cells


# ---- callbacks and loggers -----------------------------------------------------


def test_callbacks_are_called_in_order(model):
    calls = []

    class Record(Callback):
        def on_train_start(self, model):
            calls.append(("start", len(model.history)))

        def on_epoch_end(self, model, row):
            calls.append(("epoch", len(model.history)))
            assert row == model.history.iloc[-1].to_dict()

        def on_train_end(self, model):
            calls.append(("end", len(model.history)))

    only_one_method = SimpleNamespace(on_epoch_end=lambda model, row: calls.append(("own", 0)))
    model.train(2, callbacks=[Record(), only_one_method], progress=False)
    assert calls == [("start", 0), ("epoch", 1), ("own", 0), ("epoch", 2), ("own", 0), ("end", 2)]


def test_a_callback_may_ask_the_model_and_stop_it(model):
    shapes = []

    class Enough(Callback):
        def on_epoch_end(self, model, row):
            shapes.append(model.get_latent_representation().shape)
            return len(shapes) == 3

    model.train(20, callbacks=Enough(), progress=False)
    assert len(model.history) == 3
    assert model.summary.endswith("verdict: Stopped by a callback after 3 epochs")
    assert shapes == [(model.adata.n_obs, 3)] * 3


def test_a_callback_may_save_the_model(model, tmp_path):
    class Save(Callback):
        def on_epoch_end(self, model, row):
            model.save(tmp_path / f"epoch {len(model.history)}")
            assert "verdict: Not finished; " in repr(model)

    model.train(2, callbacks=Save(), progress=False)
    for epoch in (1, 2):
        assert len(vivace.SCVI.load(tmp_path / f"epoch {epoch}").history) == epoch


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_that_returns_true_stops_training(model, answer):
    stop = SimpleNamespace(on_epoch_end=lambda model, row: answer)
    model.train(5, callbacks=stop, progress=False)
    assert len(model.history) == 1


@pytest.mark.parametrize("answer", [None, False, np.False_, 1, "stop"])
def test_a_callback_that_returns_anything_else_does_not_stop_training(model, answer):
    go_on = SimpleNamespace(on_epoch_end=lambda model, row: answer)
    model.train(2, callbacks=go_on, progress=False)
    assert len(model.history) == 2


def test_lightnings_callbacks_are_refused(model):
    kind = type("EarlyStopping", (), {"__module__": "lightning.pytorch.callbacks"})
    with pytest.raises(OptionError, match="EarlyStopping is a callback of Lightning's Trainer"):
        model.train(1, callbacks=[kind()], progress=False)


def test_fabrics_csv_logger_gets_the_history(model, tmp_path):
    from lightning_fabric.loggers import CSVLogger

    model.train(3, logger=CSVLogger(tmp_path, name="run", version=""), progress=False)
    (file,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    for name in ("elbo_train", "elbo_validation", "lr"):
        result = [float(row[name]) for row in rows]
        assert result == pytest.approx(model.history[name].tolist())


# ---- never NaN -----------------------------------------------------------------


def hostile(kind, rng):
    """Valid but extreme counts."""
    n, g = 90, 40
    x = rng.poisson(1.0, (n, g)).astype(float)
    if kind == "counts of a million":
        x[rng.random((n, g)) < 0.05] = 1e6
    if kind == "one gene":
        x = x[:, :1]
    if kind == "all cells alike":
        x[:] = x[0]
    if kind == "empty genes":
        x[:, : g // 2] = 0
    if kind == "depths of a thousandth and a thousand":
        x *= np.repeat([1.0, 1e3, 1e6], n // 3)[:, None]
    if kind == "single molecules":
        x = np.eye(g)[rng.integers(0, g, n)]
    x[x.sum(1) == 0, 0] = 1
    return AnnData(x.astype(np.float32))


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize(
    "kind",
    [
        "counts of a million",
        "one gene",
        "all cells alike",
        "empty genes",
        "depths of a thousandth and a thousand",
        "single molecules",
    ],
)
def test_every_valid_matrix_of_counts_has_a_finite_loss(kind, likelihood):
    adata = hostile(kind, np.random.default_rng(0))
    adata.obs["batch"] = np.repeat(["a", "b", "c"], len(adata) // 3)
    vivace.SCVI.setup_anndata(adata, batch_key="batch")
    model = vivace.SCVI(adata, gene_likelihood=likelihood, n_hidden=8, n_latent=2)
    model.train(8, progress=False)  # a warning that an epoch is repeated would be an error
    assert np.isfinite(model.history.to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_elbo())
