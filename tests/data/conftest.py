"""The two ways in which a model receives data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anndata import AnnData

from vivace import SCVI


@pytest.fixture(params=["setup_anndata", "new data"])
def use(request: pytest.FixtureRequest, trained: SCVI) -> Callable[[AnnData], Any]:
    """Data reach a model through ``setup_anndata`` and through a question to a trained model."""
    if request.param == "setup_anndata":
        return lambda adata: SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    return trained.get_latent_representation
