"""Devices that are there, and memory whose contents nobody may read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")
if torch.backends.mps.is_available():
    DEVICES.append("mps")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    return torch.device(request.param)


@pytest.fixture(params=[d for d in DEVICES if d != "mps"])
def device_with_float64(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine but MPS, which has no float64."""
    return torch.device(request.param)


@pytest.fixture
def exact_dtype(device: torch.device) -> torch.dtype:
    """The most accurate float type of ``device``."""
    return torch.float32 if device.type == "mps" else torch.float64


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """``torch.empty`` gives NaN, or the largest integer."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
