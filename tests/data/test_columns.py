"""Columns of obs: missing, unknown, unseen or constant values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI
from vivace.errors import (
    DataError,
    MissingColumnError,
    VivaceWarning,
)

SMALL = {"n_hidden": 16, "n_latent": 3}


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA], ids=str)
@pytest.mark.parametrize("categorical", [True, False])
def test_a_missing_category_is_counted_and_named(tiny, use, refused, missing, categorical):
    adata = tiny()
    batch = adata.obs["batch"].astype(object)
    batch.iloc[[4, 9, 11]] = missing
    adata.obs["batch"] = batch.astype("category") if categorical else batch
    with refused(
        DataError, "obs['batch']", "batch_key", "3 of 60 cells", "'cell4'", ".notna()].copy()"
    ):
        use(adata)


def test_the_remedy_for_missing_categories_works(tiny):
    adata = tiny()
    adata.obs.loc[["cell4", "cell9"], "batch"] = None
    adata = adata[adata.obs["batch"].notna()].copy()
    SCVI.setup_anndata(adata, batch_key="batch")
    assert SCVI(adata).schema.batches == ("b0", "b1")


@pytest.mark.parametrize(
    "argument",
    [
        "batch_key",
        "labels_key",
        "size_factor_key",
        "categorical_covariate_keys",
        "continuous_covariate_keys",
    ],
)
def test_an_unknown_column_is_named_with_a_near_match(tiny, refused, argument):
    name = ["batches"] if argument.endswith("keys") else "batches"
    with refused(MissingColumnError, "'batches'", argument, "did you mean 'batch'?"):
        SCVI.setup_anndata(tiny(), **{argument: name})


def test_without_a_near_match_the_columns_are_listed(tiny, refused):
    with refused(MissingColumnError, "obs", "'x'", "'age', 'batch', 'cell_type', 'depth', 'donor'"):
        SCVI.setup_anndata(tiny(), batch_key="x")


def test_a_column_that_new_data_lack_is_named(tiny, trained, refused):
    adata = tiny()
    del adata.obs["batch"]
    with refused(MissingColumnError, "obs", "'batch'", "batch_key"):
        trained.get_latent_representation(adata)


def test_a_layer_that_new_data_lack_is_named(tiny, refused):
    adata = tiny()
    adata.layers["counts"] = adata.X
    SCVI.setup_anndata(adata, layer="counts")
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    with refused(MissingColumnError, "layers", "'counts'"):
        model.get_latent_representation(tiny())


def test_unseen_categories_are_counted_and_named(tiny, trained, refused):
    adata = tiny()
    adata.obs["batch"] = adata.obs["batch"].replace({"b1": "b11"})
    with refused(
        DataError, "obs['batch']", "batch_key", "'b11'", "30 cells", "rename", "did you mean 'b1'?"
    ):
        trained.get_latent_representation(adata)


@pytest.mark.parametrize(
    ("argument", "column"),
    [
        ({"batch_key": "one"}, "one"),
        ({"categorical_covariate_keys": ["donor", "one"]}, "one"),
        ({"continuous_covariate_keys": ["age", "flat"]}, "flat"),
    ],
)
def test_a_covariate_with_one_value_gives_a_warning(tiny, argument, column):
    adata = tiny()
    adata.obs["one"], adata.obs["flat"] = "same", 3.5
    with pytest.warns(VivaceWarning, match=column) as caught:
        SCVI.setup_anndata(adata, **argument)
    assert len(caught) == 1
    assert next(iter(argument)) in str(caught[0].message)
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    assert np.isfinite(model.get_elbo())


@pytest.mark.parametrize("argument", ["batch_key", "labels_key", "categorical_covariate_keys"])
def test_a_column_that_names_the_cells_is_refused(tiny, argument, refused):
    adata = tiny(n_cells=300)
    adata.obs["barcode"] = adata.obs_names
    value = ["barcode"] if argument.endswith("keys") else "barcode"
    with refused(DataError, "barcode", argument, "300 categories"):
        SCVI.setup_anndata(adata, **{argument: value})


def test_many_donors_are_not_refused(tiny):
    adata = tiny(n_cells=300)
    adata.obs["sample"] = [f"s{i % 140}" for i in range(300)]
    SCVI.setup_anndata(adata, batch_key="sample")
