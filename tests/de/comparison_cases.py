"""What tests of comparisons share: options by name, columns of the table, and a small model."""

from __future__ import annotations

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
