"""Small models shared by the tests of differential expression."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vivace import SCVI, datasets

mpl.use("Agg")


@pytest.fixture(scope="package")
def covered(tiny):
    """A small trained model with batch, and donor as another categorical covariate."""
    adata = tiny(n_cells=150)
    adata.obs["sample"] = np.array([f"s{i}" for i in range(4)])[np.arange(150) // 2 % 4]
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    model = SCVI(adata, n_hidden=16, n_latent=3)
    # with the full KL weight so few cells all end at the prior
    model.train(5, batch_size=20, seed=1, plan_kwargs={"n_epochs_kl_warmup": 3}, progress=False)
    return model


@pytest.fixture(scope="package")
def cells(covered):
    """All cells of that model, as its questions go through them."""
    return covered._cells(None, None, None, True)


@pytest.fixture(scope="package")
def pbmc():
    """A model of 700 real cells of eight types, in two random batches."""
    adata = datasets.pbmc3k()
    rng = np.random.default_rng(0)
    adata = adata[np.sort(rng.choice(adata.n_obs, 700, replace=False))].copy()
    adata.obs["batch"] = np.array(["b0", "b1"])[rng.integers(0, 2, adata.n_obs)]
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=32, n_latent=5)
    model.train(20, seed=0, progress=False)
    return model


@pytest.fixture(scope="package")
def conditions():
    """Two conditions of four donors; the first ten of sixty genes are up in the second."""
    rng = np.random.default_rng(0)
    n = 400
    condition, donor = rng.integers(2, size=n), rng.integers(4, size=n)
    rate = np.tile(rng.gamma(2.0, 1.0, 60) + 0.2, (n, 1))
    rate[condition == 1, :10] *= 4.0
    counts = rng.poisson(rate).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": condition.astype(str),
            "donor": donor.astype(str),
            "size": counts.sum(1) / counts.sum(1).mean(),
            "batch": rng.integers(2, size=n).astype(str),
            "lane": rng.integers(3, size=n).astype(str),
        },
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(60)])
    return AnnData(counts, obs=obs, var=var)
