from __future__ import annotations

import numpy as np

from vivace import SCVI

SMALL = {"n_hidden": 16, "n_latent": 3}


def test_covariates_of_every_kind_reach_the_decoder(tiny):
    adata = tiny()
    SCVI.setup_anndata(
        adata,
        batch_key="batch",
        size_factor_key="depth",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    before = model.get_elbo(return_mean=False, seed=0)
    for column, values in (
        ("batch", "b1"),
        ("donor", "d2"),
        ("age", 20.0),
        ("depth", 3.0),
    ):
        other = adata.copy()
        other.obs[column] = values
        after = model.get_elbo(other, return_mean=False, seed=0)
        changed = adata.obs[column].to_numpy() != values
        # a cell or two may come out the same by chance
        assert (np.abs(after - before)[changed] > 1e-4).mean() > 0.9, column
        np.testing.assert_allclose(after[~changed], before[~changed], rtol=1e-5)
