"""Fixtures that run the command line in this process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vivace import SCVI
from vivace.cli import main


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


@pytest.fixture(scope="session")
def fitted_once(tiny, tmp_path_factory):
    """The folder of a model of the cells, with batch and donor."""
    adata, folder = tiny(), tmp_path_factory.mktemp("fitted") / "model"
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    model = SCVI(adata, n_hidden=16, n_latent=3)
    model.train(2, progress=False)
    model.save(folder)
    return folder


@pytest.fixture
def fitted(fitted_once, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(fitted_once, tmp_path / "fitted"))
