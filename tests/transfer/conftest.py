"""References, a query, and the check that a refusal leaves the query as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from mapping_cases import ARCHITECTURES, COVARIATES, assert_unchanged, trained_on, with_lane

from vivace.errors import VivaceError


@pytest.fixture(scope="session")
def reference(tiny: Callable[..., AnnData]) -> Callable[[str], Any]:
    """A trained reference of an architecture, made once; no test may change it."""
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            a = ARCHITECTURES[name]
            made[name] = trained_on(with_lane(tiny()), a.cls, a.options, **COVARIATES)
        return made[name]

    return load


@pytest.fixture
def query(tiny: Callable[..., AnnData]) -> AnnData:
    """Known and new categories in many combinations, and something in every slot of an AnnData."""
    adata = with_lane(tiny(seed=5))
    i = np.arange(60)
    adata.obs["batch"] = np.array(["b0", "a9", "b1", "a8"])[i % 4]
    adata.obs["donor"] = np.array(["d1", "d00", "d0", "d2", "d00"])[i % 5]
    adata.obs["lane"] = np.array(["k", "l1", "l0"])[i % 3]
    adata.obs["cell_type"] = np.array(["Z", "T"])[i % 2]
    adata.var["symbol"] = [f"symbol{i}" for i in range(30)]
    adata.uns["colours"] = ["red", "blue"]
    adata.layers["more"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((60, 2))
    return adata


@pytest.fixture
def refused_whole(refused: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``refused``, and the data must be unchanged; returns the message in a list."""

    @contextmanager
    def check(adata: AnnData, kind: type[VivaceError], *parts: str) -> Iterator[list[str]]:
        before, said = adata.copy(), []
        with refused(kind, *parts):
            try:
                yield said
            except VivaceError as error:
                said.append(str(error))
                raise
        assert_unchanged(adata, before)

    return check
