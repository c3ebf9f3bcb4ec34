"""Shared by tests of comparisons: options, columns of the table, given samples, a small model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from vivace import SCVI
from vivace.de.options import Options

COUNTED = [
    f"{name}{side}"
    for name in ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    for side in (1, 2)
]
VANILLA = ["proba_m1", "proba_m2", "bayes_factor", "scale1", "scale2"]
CHANGE = [
    "proba_de", "proba_not_de", "bayes_factor", "scale1", "scale2", "pseudocounts", "delta",
    "lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max",
]  # fmt: skip


def options(**changed):
    arguments = {
        "mode": "change",
        "delta": 0.25,
        "test_mode": "three",
        "fdr_target": 0.05,
        "pseudocounts": None,
        "threshold_counts": 0.01,
        "n_samples_overall": None,
        "use_permutation": False,
        "m_permutation": 10_000,
        "change_fn": None,
        "m1_domain_fn": None,
        "cred_interval_lvls": (),
    }
    return Options(**arguments | changed)


def fitted(adata, **setup):
    adata = adata.copy()
    SCVI.setup_anndata(adata, **setup)
    model = SCVI(adata, n_latent=3, n_hidden=32)
    model.train(25, batch_size=64, seed=0, progress=False)
    return model


class GivenSamples:
    """Samples with given expression, (g, m), in blocks of genes."""

    def __init__(self, x, blocks=1, n_codes=1):
        self.x, self.n_genes = x, len(x)
        self.parts = [p for p in np.array_split(np.arange(len(x)), blocks) if len(p)]
        self.positions = [np.arange(0, 30), np.arange(30, 36), np.arange(36, 90)]
        self.groups = [SimpleNamespace(codes=tuple(range(n_codes)))] * 3

    def blocks(self):
        for part in self.parts:
            yield slice(part[0], part[-1] + 1), self.x[part]


def log2_in_float64(x, pseudocount=1e-5):
    return np.log2(x.astype(np.float64) + pseudocount)
