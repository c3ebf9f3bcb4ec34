"""Fixtures that run the command line in this process."""

from __future__ import annotations

import sys

import pytest

from vivace.cli import main

QUICK = ("--max-epochs", "2", "--n-hidden", "16", "--n-latent", "3", "--quiet")


@pytest.fixture
def vivace_says(capsys, monkeypatch):
    """Run the command line; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vivace", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def vivace_refuses(vivace_says):
    """The command must exit with code 2 and one line on standard error that contains the parts."""

    def run(arguments, *parts: str) -> None:
        code, out, err = vivace_says(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("vivace: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        for part in parts:
            assert part in err

    return run


@pytest.fixture
def cells(tiny, tmp_path):
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def fitted(vivace_says, cells, tmp_path):
    """The folder of a model of the cells, with batch and donor."""
    options = ("--batch-key", "batch", "--categorical-covariate-key", "donor")
    assert vivace_says("train", cells, "-o", tmp_path / "fitted", *options, *QUICK)[0] == 0
    return tmp_path / "fitted"
