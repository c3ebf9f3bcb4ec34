"""A script written for scvi-tools' SCVI runs with a changed import."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import vivace
import vivace as scvi


def test_a_script_for_scvi_tools_runs(tiny, tmp_path):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data)
    scvi.settings.seed = 7
    scvi.model.SCVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = scvi.model.SCVI(adata, n_layers=2, n_latent=5, gene_likelihood="nb")
    model.view_anndata_setup()
    model.train(max_epochs=2, train_size=0.8, batch_size=16, accelerator="cpu", progress=False)
    adata.obsm["X_scVI"] = model.get_latent_representation()
    assert adata.obsm["X_scVI"].shape == (60, 5)
    assert {"train_loss", "elbo_train", "elbo_validation"} <= set(model.history)
    assert isinstance(model.get_elbo(), float)
    model.save(tmp_path / "model", overwrite=True)
    again = scvi.model.SCVI.load(tmp_path / "model", adata=adata)
    assert np.array_equal(again.get_latent_representation(), adata.obsm["X_scVI"])


def test_a_script_for_linear_scvi_runs(tiny):
    adata = tiny()
    scvi.model.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.LinearSCVI(adata, n_latent=4)
    model.train(max_epochs=2, progress=False)
    loadings = model.get_loadings()
    assert isinstance(loadings, pd.DataFrame)
    assert list(loadings.index) == list(adata.var_names)
    assert list(loadings.columns) == ["Z_0", "Z_1", "Z_2", "Z_3"]


def test_the_seed_of_the_package_starts_the_model(tiny):
    def latent(seed):
        vivace.settings.seed = seed
        adata = tiny()
        vivace.SCVI.setup_anndata(adata)
        model = vivace.SCVI(adata, n_hidden=8, n_latent=2)
        model.train(1, progress=False)
        return model.get_latent_representation()

    assert np.array_equal(latent(1), latent(1))
    assert not np.array_equal(latent(1), latent(2))


def test_the_classes_are_the_same():
    assert vivace.model.SCVI is vivace.SCVI
    assert vivace.model.LinearSCVI is vivace.LinearSCVI


@pytest.mark.parametrize("name", ["distributions", "nn", "model"])
def test_rooms_that_users_name(name):
    assert getattr(vivace, name).__all__
