"""vivace's part of the comparisons, in its own process; mirrors peer.py.

Usage: python ours.py speed DATA.h5ad BATCH_KEY LIKELIHOOD EPOCHS [OPTIONS_AS_JSON]
       python ours.py floor LIKELIHOOD N_GENES BATCH_SIZE
       python ours.py answers DATA.h5ad BATCH_KEY LIKELIHOOD
       python ours.py to_zarr DATA.h5ad OUT.zarr
       python ours.py de_speed DATA.h5ad BATCH_KEY GROUPBY GROUP
       python ours.py de_memory N_CELLS N_GENES
       python ours.py default DATA.h5ad BATCH_KEY LIKELIHOOD SEED MODEL_FOLDER
       python ours.py busy DATA.h5ad

Prints one JSON line.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from statistics import median

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import vivace
from common import (
    COVARIATES,
    MARGINAL_CELLS,
    MARGINAL_SAMPLES,
    batch_column,
    memory_mb,
    time_once,
    time_questions,
)
from vivace.ops.runtime.products import product


def _model(
    data: str,
    batch_key: str,
    likelihood: str,
    seed: int,
    covariates: bool = False,
    dispersion: str = "gene",
) -> vivace.SCVI:
    vivace.settings.seed = seed
    adata = anndata.read_h5ad(data)
    vivace.SCVI.setup_anndata(
        adata, batch_key=batch_column(batch_key), **(COVARIATES if covariates else {})
    )
    return vivace.SCVI(adata, gene_likelihood=likelihood, dispersion=dispersion)  # type: ignore[arg-type]


def speed(
    data: str, batch_key: str, likelihood: str, epochs: str, options: str = "{}"
) -> dict[str, object]:
    """Training cells per second at scvi-tools' settings, after one epoch of warm-up."""
    chosen = json.loads(options)
    batch_size = chosen.pop("batch_size", 128)
    model = _model(data, batch_key, likelihood, 0, **chosen)
    model.train(1, recipe="scvi-tools", batch_size=batch_size, progress=False)
    begun = time.perf_counter()
    model.train(int(epochs), recipe="scvi-tools", batch_size=batch_size, progress=False)
    seconds = time.perf_counter() - begun
    n_train = len(model.train_indices)
    return {"seconds": seconds, "cells_per_second": int(epochs) * n_train / seconds}


def floor(likelihood: str, n_genes: str, batch_size: str) -> dict[str, object]:
    """Cells per second if a step consisted of its large matrix products only."""
    genes, heads = int(n_genes), 2 if likelihood == "zinb" else 1
    cells = int(batch_size)
    hidden, weight, bias = torch.randn(cells, 128), torch.randn(128, genes), torch.randn(genes)
    logits = torch.randn(cells, genes)
    seconds = []
    for _ in range(60):
        begun = time.perf_counter()
        product(hidden, weight, bias)
        product(hidden.T, logits)
        product(logits, weight.T)
        seconds.append(time.perf_counter() - begun)
    return {"cells_per_second": cells / (heads * median(seconds[10:]))}


def answers(data: str, batch_key: str, likelihood: str) -> dict[str, object]:
    """Seconds of questions about the cells of a file, to a model trained for one epoch."""
    model = _model(data, batch_key, likelihood, 0)
    model.train(1, progress=False)
    ask = {
        "latent": model.get_latent_representation,
        "expression": lambda: model.get_normalized_expression(return_numpy=True, silent=True),
        "samples": lambda: model.posterior_predictive_sample(silent=True),
        "elbo": model.get_elbo,
    }
    seconds = time_questions(ask)
    first_cells = np.arange(MARGINAL_CELLS)
    seconds["marginal_ll"] = time_once(
        lambda: model.get_marginal_ll(
            indices=first_cells, n_mc_samples=MARGINAL_SAMPLES, silent=True
        )
    )
    return {"seconds": seconds}


def de_speed(data: str, batch_key: str, groupby: str, group: str) -> dict[str, object]:
    """Seconds of one test of a group against the other cells, and of a test of every group."""
    model = _model(data, batch_key, "zinb", 0)
    model.train(1, progress=False)
    ask = {
        "one": lambda: model.differential_expression(groupby=groupby, group1=group),
        "all": lambda: model.differential_expression(groupby=groupby),
    }
    groups = model.adata.obs[groupby].nunique()
    return {"seconds": time_questions(ask, times=7), "groups": groups}


def de_memory(n_cells: str, n_genes: str) -> dict[str, object]:
    """Peak memory of one test, minus the counts, on simulated cells repeated many times."""
    from simulate import simulate

    few = simulate(10_000, int(n_genes), 0.05)
    times = int(n_cells) // few.n_obs
    x = few.X
    counts = sp.csr_matrix(
        (
            np.tile(x.data, times),
            np.tile(x.indices, times),
            np.concatenate([[0], np.tile(np.diff(x.indptr), times).cumsum(dtype=np.int64)]),
        ),
        shape=(times * few.n_obs, few.n_vars),
    )
    obs = pd.DataFrame({"half": np.arange(counts.shape[0]) % 2}).astype(str)
    adata = anndata.AnnData(counts, obs=obs, var=few.var)
    del few, x
    vivace.SCVI.setup_anndata(adata)
    model = vivace.SCVI(adata)
    model.train(max_steps=50, progress=False)
    stored = adata.X
    counts_mb = (stored.data.nbytes + stored.indices.nbytes + stored.indptr.nbytes) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before_mb = memory_mb()
    seconds = time_once(lambda: model.differential_expression(groupby="half", group1="0"))
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "seconds": round(seconds, 1),
        "counts_mb": round(counts_mb),
        "before_mb": before_mb,
        "peak_mb": memory_mb(),
        "peak_beyond_counts_mb": round(memory_mb() - counts_mb),
    }


def to_zarr(data: str, out: str) -> dict[str, object]:
    """Write the expression of all cells of a file to disk; peak memory minus the counts."""
    model = _model(data, "none", "nb", 0)
    x = model.adata.X
    model.train(max_steps=200, progress=False)
    counts_mb = round((x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 2**20)
    before_mb = memory_mb()
    seconds = time_once(lambda: model.get_normalized_expression(out=out, silent=True))
    return {
        "cells": model.adata.n_obs,
        "genes": model.adata.n_vars,
        "seconds": round(seconds, 1),
        "counts_mb": counts_mb,
        "peak_before_mb": before_mb,
        "peak_mb": memory_mb(),
        "peak_beyond_counts_mb": memory_mb() - counts_mb,
    }


def default(data: str, batch_key: str, likelihood: str, seed: str, out: str) -> dict[str, object]:
    """Wall time of a default ``train()``, the first call in the process; the model is saved."""
    model = _model(data, batch_key, likelihood, int(seed))
    begun = time.perf_counter()
    model.train(progress=False)
    seconds = time.perf_counter() - begun
    model.save(out, overwrite=True)
    return {"seconds": seconds, "epochs": len(model.history), "peak_mb": memory_mb()}


def busy(data: str) -> dict[str, object]:
    """Seconds of default training, of many cells' latent space and of differential expression."""
    model = _model(data, "condition", "zinb", 0)
    many = np.tile(np.arange(model.adata.n_obs), 30)
    seconds = {
        "train": time_once(lambda: model.train(progress=False)),
        "latent": time_once(lambda: model.get_latent_representation(indices=many)),
        "de": time_once(lambda: model.differential_expression(groupby="cell_type")),
    }
    weights = b"".join(v.numpy().tobytes() for v in model.module.state_dict().values())
    return seconds | {"weights": hashlib.sha256(weights).hexdigest()[:16]}


if __name__ == "__main__":
    commands = (speed, floor, answers, to_zarr, de_speed, de_memory, default, busy)
    command = {c.__name__: c for c in commands}[sys.argv[1]]
    print(json.dumps(command(*sys.argv[2:])))
