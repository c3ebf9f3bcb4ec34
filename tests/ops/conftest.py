"""Uninitialised memory that must not be read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vivace.ops.runtime.workspace import Pair, Workspace


@pytest.fixture
def fresh_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``torch.empty`` gives NaN, or the largest integer, and a workspace is always fresh."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    monkeypatch.setattr(Workspace, "pair", lambda self, name, *shape: Pair.new(*shape))
    assert torch.empty(1).isnan()
    assert Workspace().take("a", 1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
