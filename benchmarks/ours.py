"""vivace's side of the comparisons, in a process of its own; mirrors peer.py.

Usage: python ours.py speed DATA.h5ad BATCH_KEY LIKELIHOOD EPOCHS
       python ours.py default DATA.h5ad BATCH_KEY LIKELIHOOD SEED MODEL_FOLDER

Prints one JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import anndata

import vivace


def _model(data: str, batch_key: str, likelihood: str, seed: int) -> vivace.SCVI:
    vivace.settings.seed = seed
    adata = anndata.read_h5ad(data)
    vivace.SCVI.setup_anndata(adata, batch_key=batch_key)
    return vivace.SCVI(adata, gene_likelihood=likelihood)  # type: ignore[arg-type]


def speed(data: str, batch_key: str, likelihood: str, epochs: str) -> dict[str, object]:
    """Training cells a second at scvi-tools' settings, after one epoch to warm up."""
    model = _model(data, batch_key, likelihood, 0)
    model.train(1, recipe="scvi-tools", progress=False)
    begun = time.perf_counter()
    model.train(int(epochs), recipe="scvi-tools", progress=False)
    seconds = time.perf_counter() - begun
    n_train = len(model.train_indices)
    return {"seconds": seconds, "cells_per_second": int(epochs) * n_train / seconds}


def peak_mb() -> int:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def default(data: str, batch_key: str, likelihood: str, seed: str, out: str) -> dict[str, object]:
    """Wall time of a default ``train()``, first call in the process; saves the model."""
    model = _model(data, batch_key, likelihood, int(seed))
    begun = time.perf_counter()
    model.train(progress=False)
    seconds = time.perf_counter() - begun
    model.save(out, overwrite=True)
    return {"seconds": seconds, "epochs": len(model.history), "peak_mb": peak_mb()}


if __name__ == "__main__":
    command = {"speed": speed, "default": default}[sys.argv[1]]
    print(json.dumps(command(*sys.argv[2:])))
