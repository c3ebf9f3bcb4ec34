"""The progress bar appears only on the error stream, and only if a question takes long."""

from __future__ import annotations

import builtins
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from vivace.progress import CompilingNotice, PassingBar, TrainingBar

NEVER, AT_ONCE = 1e9, -1.0


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Makes the error stream look like a terminal; returns what was written so far, out and err."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return capsys.readouterr


@pytest.fixture
def long(monkeypatch):
    """Sets after how many seconds a question shows a bar."""
    return lambda seconds: monkeypatch.setattr("vivace.progress._LONG", seconds)


def passed(show, parts=(3, 3, 4)):
    with PassingBar("Encoding", sum(parts), "cells", show) as bar:
        for part in parts:
            bar.done(part)


def test_a_long_pass_shows_what_is_done_and_of_how_many(long, terminal):
    long(AT_ONCE)
    passed(show=True)
    out, err = terminal()
    assert not out
    assert "Encoding" in err
    assert "3/10" in err
    assert "cells" in err


def test_the_line_fits_80_columns(long, terminal):
    long(AT_ONCE)
    with PassingBar("Marginal likelihood", 1_300_000, "cells", True) as bar:
        bar.done(123_456)
        first = terminal().err.split("left")[0]
    plain = "".join(part.partition("m")[2] for part in ("m" + first).split("\x1b["))
    assert "123456/1300000" in plain
    assert len((plain + "left").strip()) <= 80


def test_a_short_pass_shows_nothing(long, terminal):
    long(NEVER)
    passed(show=True)
    assert terminal() == ("", "")


def test_long_is_more_than_two_seconds(monkeypatch, terminal):
    now = iter([100.0, 101.9, 102.1])
    monkeypatch.setattr("vivace.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    with PassingBar("Encoding", 10, "cells", True) as bar:
        bar.done(3)
        assert terminal() == ("", "")
        bar.done(3)
        assert "6/10" in terminal().err


def test_a_silent_pass_shows_nothing(long, terminal):
    long(AT_ONCE)
    passed(show=False)
    assert terminal() == ("", "")


def test_a_pass_that_is_done_in_one_part_shows_nothing(long, terminal):
    long(AT_ONCE)
    passed(show=True, parts=[10])
    assert terminal() == ("", "")


def test_a_file_in_place_of_a_terminal_gets_nothing(long, monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    long(AT_ONCE)
    passed(show=True)
    assert not "".join(capsys.readouterr()).strip()


@pytest.mark.parametrize("fails", [False, True])
def test_the_bar_ends_with_the_pass(long, terminal, fails):
    """The thread of the bar ends too, whether the pass finished or failed."""
    long(AT_ONCE)
    before, during = set(threading.enumerate()), set()

    def pass_over():
        with PassingBar("Encoding", 10, "cells", True) as bar:
            bar.done(3)
            during.update(set(threading.enumerate()) - before)
            if fails:
                raise ZeroDivisionError
            bar.done(7)

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        pass_over()
    (thread,) = during
    thread.join(10.0)
    assert not thread.is_alive()
    assert terminal().err.endswith("\x1b[2K")  # and leaves no line behind


QUESTIONS = {
    "get_latent_representation": {},
    "get_latent_library_size": {},
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_importance_weights": {"n_mc_samples": 2},
    "get_aggregated_posterior": {},
    "differential_abundance": {"sample_key": "donor"},
    "get_normalized_expression": {},
    "posterior_predictive_sample": {},
    "get_likelihood_parameters": {},
    "get_feature_correlation_matrix": {"n_samples": 2},
    "posterior_predictive_check": {"n_samples": 2},
    "get_gene_programs": {},
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_show_a_bar_unless_they_are_silent(trained, long, terminal, question):
    long(AT_ONCE)
    arguments = QUESTIONS[question] | {"batch_size": 25}
    getattr(trained, question)(**arguments, silent=True)
    assert terminal() == ("", "")
    getattr(trained, question)(**arguments)
    out, err = terminal()
    assert not out
    assert ("25/120" if question == "get_marginal_ll" else "25/60") in err  # two samples per cell


# ---- where a bar cannot move ---------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch, capsys):
    """A notebook without ipywidgets; returns what was written so far."""
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell(), raising=False)
    monkeypatch.setattr("vivace.progress.find_spec", lambda name: None)
    monkeypatch.setattr("vivace.progress._PAUSE", 0.0)
    return capsys.readouterr


def test_a_notebook_without_widgets_gets_lines_of_the_training(notebook, ready):
    ready().train(3, batch_size=20)  # rich's warning would be an error
    err = notebook().err
    for epoch in (1, 2, 3):
        assert f"Training epoch {epoch}/3 -ELBO " in err
    assert err.strip().splitlines()[-1].startswith("Finished 3 epochs")


def test_a_notebook_without_widgets_gets_lines_of_a_pass(long, notebook):
    long(AT_ONCE)
    passed(show=True)
    assert notebook().err.splitlines() == ["Encoding 3/10 cells", "Encoding 6/10 cells",
                                           "Encoding 10/10 cells"]  # fmt: skip


def test_lines_come_every_ten_seconds(monkeypatch, notebook):
    monkeypatch.setattr("vivace.progress._PAUSE", 10.0)
    now = iter([0, 3, 3, 3, 9, 9, 13, 13, 20, 20, 24, 24])
    monkeypatch.setattr("vivace.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    passed(show=True, parts=[1, 1, 1, 1, 6])
    assert notebook().err.splitlines() == ["Encoding 3/10 cells", "Encoding 10/10 cells"]


@pytest.mark.parametrize("show", ["training", "pass"])
def test_compilation_is_announced_once_in_a_notebook(notebook, show):
    made = TrainingBar(1, 1, True) if show == "training" else CompilingNotice(True)
    with made:
        compilation = made.compilation if show == "training" else made._compilation
        for _ in range(3):
            compilation.on_start(None)
            compilation.on_end(None)
    line = "Compiling kernels for this processor, once ..."
    assert notebook().err.splitlines().count(line) == 1


def test_a_file_gets_the_last_epoch_and_the_verdict(monkeypatch, capsys, ready):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    ready().train(2, batch_size=20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("Training epoch 2/2 -ELBO ")
    assert lines[-1].startswith("Finished 2 epochs")
