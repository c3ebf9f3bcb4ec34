"""Counterfactuals on data whose batch effect is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import SCVI

GENES, CELLS, TYPES = 200, 1_500, 3


@pytest.fixture(scope="module")
def known():
    """A model of two batches, and what each cell is expected to have in each of them."""
    rng = np.random.default_rng(0)
    profile = np.exp(rng.normal(0.0, 1.0, GENES) + rng.normal(0.0, 0.6, (TYPES, GENES)))
    effect = np.exp(np.stack([np.zeros(GENES), rng.normal(0.0, 0.6, GENES)]))
    kind, batch = rng.integers(TYPES, size=CELLS), rng.integers(2, size=CELLS)
    expected = np.stack([profile[kind] * e for e in effect])
    expected /= expected.sum(-1, keepdims=True)
    observed = expected[batch, np.arange(CELLS)]
    counts = rng.poisson(observed * rng.lognormal(6.5, 0.3, (CELLS, 1)))
    obs = pd.DataFrame({"batch": np.array(["a", "b"])[batch]}, index=np.arange(CELLS).astype(str))
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, gene_likelihood="nb", n_latent=5)
    model.train(seed=0, progress=False)
    return model, batch, expected


@pytest.mark.parametrize(("observed", "switched"), [(0, 1), (1, 0)])
def test_cells_decoded_as_of_the_other_batch_have_its_expression(known, observed, switched):
    model, batch, expected = known
    cells = np.flatnonzero(batch == observed)
    truth = np.log(expected[switched, cells])

    def error(transform_batch):
        result = model.get_normalized_expression(
            indices=cells, transform_batch=transform_batch, return_numpy=True, silent=True
        )
        return np.abs(np.log(result) - truth).mean()

    corrected, uncorrected = error("ab"[switched]), error(None)
    assert uncorrected > 0.3  # the effect of the batch
    assert corrected < uncorrected / 3


def test_samples_for_the_other_batch_have_its_mean(known):
    model, batch, expected = known
    cells = np.flatnonzero(batch == 0)
    library = np.asarray(model.adata.X[cells].sum(1))
    sample = model.posterior_predictive_sample(
        indices=cells, transform_batch="b", seed=0, silent=True
    )
    result = np.asarray(sample.mean(0)).ravel()
    truth, uncorrected = ((expected[b, cells] * library).mean(0) for b in (1, 0))
    assert np.corrcoef(np.log(result + 0.1), np.log(truth + 0.1))[0, 1] > 0.99
    assert np.corrcoef(np.log(result + 0.1), np.log(uncorrected + 0.1))[0, 1] < 0.95
