"""The data sets and scores by which training recipes are evaluated, the same for both libraries.

10 % of the cells of each batch are held out for testing, once. Scores:

* ``elbo``: of the test cells; full log-likelihood, KL weight 1, evaluation mode, 25 samples per cell
* ``marginal_ll``: of 300 test cells, by importance weighting, so that a tighter bound is not
  mistaken for a better model
* ``knn``: accuracy of the cell type predicted from 15 neighbours in the latent space of all cells
* ``bio``, ``batch``: scib-metrics' aggregates on the latent space of all cells
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import vivace
from common import batch_column, run_json
from vivace.store.scvi_tools import weights_from_scvi_tools

N_SAMPLES = 25
N_GENES = 2_000
_MARGINAL_CELLS = 300
_MARGINAL_SAMPLES = 1_000


@dataclass(frozen=True)
class DataSet:
    """One of the data sets.

    Parameters
    ----------
    file : of raw counts
    batch_key, label_key : columns; "none" is no batch
    """

    file: str
    batch_key: str
    label_key: str = "cell_type"


SETS = {
    "kang, condition": DataSet("kang_ifnb_dev.h5ad", "condition"),
    "kang, donor": DataSet("kang_ifnb_dev.h5ad", "donor"),
    "pbmc, three studies": DataSet("pbmc_multistudy_dev.h5ad", "batch", "cell_type_coarse"),
    "cortex": DataSet("cortex_zeisel.h5ad", "none"),
    "cell mixology": DataSet("cell_mixology.h5ad", "batch"),
    "pbmc, sorted": DataSet("pbmc_facs_zheng.h5ad", "none"),
}
HELD_OUT = "pbmc, sorted"  # not used to choose the recipe


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Build the command-line parser of scripts that run over the data sets."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--raw", required=True, type=Path, help="folder of the h5ad files")
    parser.add_argument("--folder", required=True, type=Path, help="where models are kept")
    parser.add_argument("--peer-python", required=True, help="Python that has scvi-tools 1.4.2")
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    return parser


def slug(name: str) -> str:
    """The name of a data set's folder."""
    return name.replace(", ", "_").replace(" ", "_")


def prepare(name: str, raw: Path, folder: Path, peer_python: str) -> Path:
    """Create the folder of a data set, with ``data.h5ad``, ``fit.h5ad`` and ``test.h5ad``."""
    chosen, target = SETS[name], folder / slug(name)
    if (target / "test.h5ad").exists():  # the file written last
        return target
    target.mkdir(parents=True, exist_ok=True)
    data = target / "data.h5ad"
    run_json(peer_python, "peer.py", "prepare", raw / chosen.file, data, chosen.batch_key, N_GENES)
    split(data, chosen.batch_key, target / "fit.h5ad", target / "test.h5ad")
    return target


def split(data: Path, batch_key: str, fit: Path, test: Path) -> None:
    """Hold out 10 % of the cells of each batch."""
    adata = anndata.read_h5ad(data)
    generator = np.random.default_rng(0)
    held_out = np.zeros(adata.n_obs, bool)
    batches = np.zeros(adata.n_obs) if batch_key == "none" else adata.obs[batch_key].to_numpy()
    for batch in np.unique(batches):
        rows = np.flatnonzero(batches == batch)
        held_out[generator.permutation(rows)[: len(rows) // 10]] = True
    adata[~held_out].copy().write_h5ad(fit)
    adata[held_out].copy().write_h5ad(test)


def setup(adata: anndata.AnnData, batch_key: str) -> None:
    """Call ``setup_anndata``; "none" means no batch."""
    vivace.SCVI.setup_anndata(adata, batch_key=batch_column(batch_key))


def load_peer(model: vivace.SCVI, weights: Path) -> None:
    """Load weights saved by scvi-tools into a model."""
    state = torch.load(weights, weights_only=True)
    model.module.load_state_dict(weights_from_scvi_tools(state, model.config))


def elbo(model: vivace.SCVI, test: anndata.AnnData) -> float:
    """Mean ELBO per test cell."""
    return round(float(model.get_elbo(test, n_samples=N_SAMPLES, seed=0)), 3)


def knn(latent: np.ndarray, labels: pd.Series) -> float:
    """Cross-validated accuracy of the cell type predicted from neighbours."""
    labels = labels.astype(str)
    order = np.random.default_rng(0).permutation(len(labels))
    scores = cross_val_score(KNeighborsClassifier(15), latent[order], labels.iloc[order], cv=5)
    return round(float(scores.mean()), 4)


def marginal_ll(model: vivace.SCVI, test: anndata.AnnData) -> float:
    """Importance-weighted log-likelihood of a test cell, mean over at most 300 test cells."""
    rows = np.sort(np.random.default_rng(0).permutation(test.n_obs)[:_MARGINAL_CELLS])
    result = model.get_marginal_ll(test, rows, n_mc_samples=_MARGINAL_SAMPLES, seed=0)
    return round(float(result), 3)


def scib(
    folder: Path, name: str, latents: dict[str, np.ndarray], peer_python: str
) -> dict[str, dict[str, float]]:
    """Scores of scib-metrics of each latent space of all cells."""
    file = folder / "latents.npz"
    np.savez(file, **latents)
    chosen = SETS[name]
    done: dict[str, Any] = run_json(
        peer_python,
        "peer.py",
        "scib",
        folder / "data.h5ad",
        chosen.batch_key,
        chosen.label_key,
        file,
    )
    scores: dict[str, dict[str, float]] = done["scores"]
    return scores
