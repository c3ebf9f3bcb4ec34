"""scvi-tools' side of the comparisons; run with a Python that has scvi-tools 1.4.2.

Usage: python peer.py prepare RAW.h5ad OUT.h5ad BATCH_KEY N_GENES
       python peer.py speed DATA.h5ad BATCH_KEY LIKELIHOOD EPOCHS [OPTIONS_AS_JSON]
       python peer.py default DATA.h5ad BATCH_KEY LIKELIHOOD SEED WEIGHTS.pt
       python peer.py judge MODEL DATA.h5ad DRAWS LATENT.npy [MODEL_TO_SAVE]

Prints one JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings

from common import COVARIATES

warnings.filterwarnings("ignore")


def prepare(raw: str, out: str, batch_key: str, n_genes: str) -> dict[str, object]:
    """Keep the most variable genes, and drop cells without counts over them."""
    import scanpy as sc

    adata = sc.read_h5ad(raw)
    sc.pp.highly_variable_genes(
        adata, n_top_genes=int(n_genes), flavor="seurat_v3", batch_key=batch_key, subset=True
    )
    sc.pp.filter_cells(adata, min_counts=1)
    adata.write_h5ad(out)
    return {"cells": adata.n_obs, "genes": adata.n_vars}


def _model(  # type: ignore[no-untyped-def]
    data: str,
    batch_key: str,
    likelihood: str,
    seed: int,
    covariates: bool = False,
    dispersion: str = "gene",
):
    import anndata
    import scvi

    scvi.settings.seed = seed
    scvi.settings.verbosity = 40
    adata = anndata.read_h5ad(data)
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key, **(COVARIATES if covariates else {}))
    return scvi.model.SCVI(adata, gene_likelihood=likelihood, dispersion=dispersion)


def speed(
    data: str, batch_key: str, likelihood: str, epochs: str, options: str = "{}"
) -> dict[str, object]:
    """Training cells a second at the defaults, after one epoch to warm up."""
    chosen = json.loads(options)
    batch_size = chosen.pop("batch_size", 128)
    model = _model(data, batch_key, likelihood, 0, **chosen)
    model.train(max_epochs=1, batch_size=batch_size, enable_progress_bar=False)
    begun = time.perf_counter()
    model.train(max_epochs=int(epochs), batch_size=batch_size, enable_progress_bar=False)
    seconds = time.perf_counter() - begun
    n_train = len(model.train_indices)
    return {"seconds": seconds, "cells_per_second": int(epochs) * n_train / seconds}


def default(data: str, batch_key: str, likelihood: str, seed: str, out: str) -> dict[str, object]:
    """Wall time of a default ``train()``; writes the weights."""
    import torch

    model = _model(data, batch_key, likelihood, int(seed))
    begun = time.perf_counter()
    model.train(enable_progress_bar=False)
    seconds = time.perf_counter() - begun
    torch.save(model.module.state_dict(), out)
    elbo = model.history["elbo_train"]
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    last = float(elbo.iloc[-1, 0])
    return {"seconds": seconds, "epochs": len(elbo), "elbo_train": last, "peak_mb": peak_mb}


def judge(path: str, data: str, draws: str, latent: str, out: str = "") -> dict[str, object]:
    """ELBO of a model folder; writes its latent means, and the model after two more epochs."""
    import anndata
    import numpy as np
    import scvi

    scvi.settings.seed = 0
    scvi.settings.verbosity = 40
    adata = anndata.read_h5ad(data)
    model = scvi.model.SCVI.load(path, adata, accelerator="cpu")
    elbos = [float(model.get_elbo()) for _ in range(int(draws))]
    np.save(latent, model.get_latent_representation())
    if out:
        model.train(max_epochs=2, enable_progress_bar=False)
        model.save(out)
    return {"scvi_tools_elbo": round(float(np.mean(elbos)), 3)}


if __name__ == "__main__":
    import importlib.metadata

    command = {"prepare": prepare, "speed": speed, "default": default, "judge": judge}[sys.argv[1]]
    result = command(*sys.argv[2:])
    versions = {p: importlib.metadata.version(p) for p in ("scvi-tools", "torch")}
    print(json.dumps({**result, "versions": versions}))
