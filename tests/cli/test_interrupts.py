"""A signal loses no epoch that is done, and leaves nothing half written."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vivace import SCVI, cli
from vivace.train import run
from vivace.train.recipe import RECIPES

QUICK = ("--max-epochs", "9", "--n-hidden", "16", "--n-latent", "3", "--quiet")


@pytest.fixture
def interrupt(monkeypatch):
    """Make training receive signals at the end of an epoch, as if the user sent them."""

    def after(epoch: int, *numbers: int) -> None:
        store = run._Recorder.epoch

        def epoch_and_signal(self, result):
            stops = store(self, result)
            if len(result.history) == epoch:
                for number in numbers:
                    signal.raise_signal(number)
            return stops

        monkeypatch.setattr(run._Recorder, "epoch", epoch_and_signal)

    return after


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_epochs_that_are_done_are_saved(
    vivace_says, cells, tmp_path, interrupt, monkeypatch, number, code
):
    handler = signal.getsignal(number)
    interrupt(3, number)
    options = ("--batch-key", "batch", "--n-hidden", "16", "--max-epochs", "9", "--seed", "5")
    options += ("--batch-size", "20", "--quiet")
    said = vivace_says("train", cells, "-o", tmp_path / "model", *options)
    assert signal.getsignal(number) is handler
    line = (
        f"vivace train {cells} -o {tmp_path / 'model'} --resume --max-epochs 6 --batch-size 20 "
        "--quiet"
    )
    assert said[:2] == (code, "")
    assert said[2] == (
        "vivace: Interrupted after 3 epochs; the weights are those of the best epoch\n"
        f"Wrote {tmp_path / 'model'}; to go on (the schedule of training starts anew):\n"
        f"{line}\n"
    )
    model = SCVI.load(tmp_path / "model")
    assert len(model.history) == 3
    split = model.train_indices
    monkeypatch.undo()

    code, out, err = vivace_says(*shlex.split(line)[1:])
    assert (code, err) == (0, "")
    assert "trained: 9 epochs" in out
    finished = SCVI.load(tmp_path / "model")
    assert len(finished.history) == 9
    np.testing.assert_array_equal(finished.train_indices, split)
    assert finished.history["elbo_train"].iloc[:3].equals(model.history["elbo_train"])


def test_the_usual_number_of_epochs_and_steps_is_kept(vivace_says, cells, tmp_path, interrupt):
    interrupt(2, signal.SIGINT)
    _, _, err = vivace_says("train", cells, "-o", tmp_path / "a", "--quiet")
    epochs = int(err.split("--max-epochs ")[1].split()[0])
    assert epochs == RECIPES["fast"].choose_epochs(60, 54) - 2
    options = ("--max-steps", "27", "--batch-size", "18", "--quiet")
    _, _, err = vivace_says("train", cells, "-o", tmp_path / "b", *options)
    assert "--max-epochs 7 " in err  # 3 steps per epoch, and 2 of 9 epochs are done


def test_options_of_training_are_in_the_line(vivace_says, cells, tmp_path, interrupt):
    interrupt(1, signal.SIGINT)
    output = tmp_path / "a model"
    options = ("--recipe", "scvi-tools", "--early-stopping", "--early-stopping-patience", "30")
    options += ("--train-size", "0.8", "--threads", "1", "--max-epochs", "3")
    _, _, err = vivace_says("train", cells, "-o", output, *options)
    line = err.splitlines()[-1]
    assert line == (
        f"vivace train {cells} -o '{output}' --resume --max-epochs 2 --recipe scvi-tools "
        "--early-stopping --early-stopping-patience 30 --threads 1"
    )


def test_before_the_first_epoch_nothing_is_saved(vivace_says, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "fit", lambda *_: signal.raise_signal(signal.SIGINT))
    code, out, err = vivace_says("train", cells, "-o", tmp_path / "model", *QUICK)
    assert (code, out) == (130, "")
    assert err == "vivace: Interrupted before an epoch was complete; nothing was saved.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_an_interrupted_continuation_keeps_the_model(vivace_says, cells, tmp_path, monkeypatch):
    model = tmp_path / "model"
    assert vivace_says("train", cells, "-o", model, *QUICK)[0] == 0
    before = (model / "weights.safetensors").read_bytes()
    monkeypatch.setattr(run, "fit", lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, err = vivace_says("train", cells, "-o", model, "--resume", "--quiet")
    assert (code, "nothing was saved" in err) == (130, True)
    assert (model / "weights.safetensors").read_bytes() == before


def test_a_second_signal_stops_without_saving(vivace_says, cells, tmp_path, monkeypatch):
    def twice(*_):
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                stop = error
        raise stop

    monkeypatch.setattr(run, "fit", twice)
    code, out, err = vivace_says("train", cells, "-o", tmp_path / "model", *QUICK)
    assert (code, out) == (130, "")
    assert err == "vivace: Interrupted; nothing is left half written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_failed_save_is_said(vivace_says, cells, tmp_path, interrupt, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vivace.store.folder.save_file", fail)
    interrupt(2, signal.SIGINT)
    code, _, err = vivace_says("train", cells, "-o", tmp_path / "model", *QUICK)
    assert (code, "(No space left on device)" in err) == (2, True)


def test_an_error_made_of_an_interruption_is_one_too(vivace_says, cells, tmp_path, interrupt):
    """Numba turns a KeyboardInterrupt into a SystemError while it loads a kernel."""
    interrupt(2, signal.SIGINT)
    fit = run.fit

    def fit_with_numba(*arguments):
        try:
            return fit(*arguments)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    run.fit = fit_with_numba
    try:
        code, _, err = vivace_says("train", cells, "-o", tmp_path / "model", *QUICK)
    finally:
        run.fit = fit
    assert code == 130
    assert "Interrupted after 2 epochs" in err
    assert len(SCVI.load(tmp_path / "model").history) == 2


@pytest.mark.parametrize("command", ["embed", "express", "sample", "de", "map"])
def test_other_commands_end_in_one_line(vivace_says, cells, fitted, tmp_path, monkeypatch, command):
    names = {
        "embed": "get_latent_representation",
        "express": "get_normalized_expression",
        "sample": "posterior_predictive_sample",
        "de": "differential_expression",
        "map": "load_query_data",
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(SCVI, names[command], lambda *_, **__: signal.raise_signal(signal.SIGINT))
    out = tmp_path / ("out.csv" if command == "de" else "out.h5ad")
    code, _, err = vivace_says(command, fitted, cells, "-o", out)
    assert (code, err) == (130, "vivace: Interrupted; nothing is left half written.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_ctrl_c_in_a_process_of_its_own(tiny, tmp_path):
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    code = (
        "import os, signal\n"
        "from vivace.cli import main\n"
        "from vivace.train import run\n"
        "store = run._Recorder.epoch\n"
        "def epoch(self, result):\n"
        "    if len(result.history) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return store(self, result)\n"
        "run._Recorder.epoch = epoch\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "train", "cells.h5ad", "-o", "model", *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130
    assert "Interrupted after 4 epochs" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "model"]
    assert len(SCVI.load(tmp_path / "model").history) == 4


# ---- going on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--batch-key", "batch", "--categorical-covariate-key", "donor", "--n-hidden", "16"),
        ("--n-latent", "3", "--gene-likelihood", "zinb"),
        ("--gene-likelihood", "zero_inflated_negative_binomial", "--train-size", "0.9"),
    ],
    ids=" ".join,
)
def test_options_that_agree_with_the_model_may_be_repeated(vivace_says, cells, fitted, options):
    code, out, _ = vivace_says(
        "train", cells, "-o", fitted, "--resume", "--max-epochs", "1", "--quiet", *options
    )
    assert code == 0
    assert "trained: 3 epochs" in out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--batch-key", "donor"), "--batch-key 'donor'"),
        (("--layer", "raw"), "--layer 'raw'"),
        (("--n-latent", "7"), "--n-latent 7"),
        (("--categorical-covariate-key", "batch"), "--categorical-covariate-key ('batch',)"),
        (("--preset", "mapping"), "--preset 'mapping'"),
        (("--encode-covariates",), "--encode-covariates"),
        (("--n-latent", "10"), "--n-latent 10"),  # the default
        (("--n-hidden", "128"), "--n-hidden 128"),
        (("--train-size", "0.5"), "--train-size 0.5"),
    ],
)
def test_options_that_differ_from_the_model_are_refused(
    vivace_refuses, cells, fitted, options, part
):
    before = {path.name: path.read_bytes() for path in Path(fitted).iterdir()}
    vivace_refuses(("train", cells, "-o", fitted, "--resume", *options), part, "without --resume")
    assert {path.name: path.read_bytes() for path in Path(fitted).iterdir()} == before


def test_going_on_needs_a_model(vivace_refuses, cells, tmp_path):
    vivace_refuses(
        ("train", cells, "-o", tmp_path / "none", "--resume"), "no model folder", "check the path"
    )


def test_a_train_size_that_is_the_default_is_compared(vivace_says, vivace_refuses, cells, tmp_path):
    line = ("train", cells, "-o", tmp_path / "model", "--train-size")
    assert vivace_says(*line, "0.5", *QUICK)[0] == 0
    vivace_refuses((*line, "0.9", "--resume"), "does not have --train-size 0.9")


@pytest.mark.parametrize("stops", [False, True])
def test_data_that_were_saved_with_the_model_stay(
    vivace_says, cells, fitted, interrupt, stops, tiny
):
    SCVI.load(fitted, tiny()).save(fitted, overwrite=True, save_anndata=True)
    if stops:
        interrupt(1, signal.SIGINT)
    line = ("train", cells, "-o", fitted, "--resume", "--max-epochs", "2", "--quiet")
    assert vivace_says(*line)[0] == (130 if stops else 0)
    model = SCVI.load(fitted)
    assert len(model.history) == (3 if stops else 4)
    assert model.adata.shape == tiny().shape


def test_a_folder_of_scvi_tools_is_converted_first_as_the_message_says(
    vivace_says, vivace_refuses, cells, fitted, tmp_path
):
    folder = tmp_path / "of scvi-tools"
    SCVI.load(fitted).save(folder, format="scvi-tools")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fix = f"vivace convert '{folder}' -o NEW"
    vivace_refuses(("train", cells, "-o", folder, "--resume"), "folder of scvi-tools", fix)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    new = tmp_path / "new"
    assert vivace_says(*shlex.split(fix.replace("NEW", str(new)))[1:])[0] == 0
    line = ("train", cells, "-o", new, "--resume", "--max-epochs", "1", "--quiet")
    assert vivace_says(*line)[0] == 0


def test_ctrl_c_while_python_shuts_down_leaves_no_traceback():
    code = (
        "import atexit, os, signal\n"
        "from vivace.cli import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_before_the_command_leaves_no_traceback(vivace_says, monkeypatch):
    def stop(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stop)
    assert vivace_says("info") == (130, "", "")
