"""Shared fixtures: small simulated data, a small trained model, a check for refusals, devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from anndata import AnnData

import vivace
from simulated import simulate_cells
from vivace import SCVI
from vivace.errors import VivaceError

DEVICES = [pytest.param("cpu")]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))
if torch.backends.mps.is_available():
    DEVICES.append(pytest.param("mps", marks=pytest.mark.gpu))
_SECOND_SENTENCE = re.compile(r"[.?!] [A-Z]")


@contextmanager
def _refusal(kind: type[VivaceError], *parts: str) -> Iterator[pytest.ExceptionInfo[VivaceError]]:
    """The block must raise ``kind`` with a one-sentence message that contains all the parts."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert not _SECOND_SENTENCE.search(message), message
    assert message.endswith((".", "?")), message
    for part in parts:
        assert part in message


@pytest.fixture(scope="session")
def tiny() -> Callable[..., AnnData]:
    """Simulates 60 cells x 30 genes by default."""
    return simulate_cells


@pytest.fixture(scope="session")
def refused() -> Callable[..., object]:
    """``with refused(ErrorClass, "part", ...):`` around code that must raise the error."""
    return _refusal


@pytest.fixture(scope="session")
def trained(tiny: Callable[..., AnnData]) -> SCVI:
    """A small trained model; a test that changes it must load its own copy from ``saved``."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    model = SCVI(adata, n_hidden=16, n_latent=3)
    model.train(max_epochs=2, batch_size=20, seed=1, progress=False)
    return model


@pytest.fixture
def saved(trained: SCVI, tmp_path: Path) -> Path:
    """The folder of the trained model, without data."""
    trained.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def ready(tiny: Callable[..., AnnData]) -> Callable[..., SCVI]:
    """Creates small untrained models of one AnnData that has been set up."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    return lambda **options: SCVI(adata, **{"n_hidden": 16, "n_latent": 3} | options)


@pytest.fixture(autouse=True)
def _settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores package-wide settings after each test."""
    monkeypatch.setattr(vivace.settings, "seed", 0)
    monkeypatch.setattr(vivace.settings, "batch_size", None)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    return torch.device(request.param)


@pytest.fixture(params=[d for d in DEVICES if d.values != ("mps",)])
def device_with_float64(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine except MPS, which has no float64."""
    return torch.device(request.param)


@pytest.fixture
def exact_dtype(device: torch.device) -> torch.dtype:
    """The most accurate float type of ``device``."""
    return torch.float32 if device.type == "mps" else torch.float64
