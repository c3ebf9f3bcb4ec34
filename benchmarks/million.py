"""A million cells: simulate them from a trained model, then train on increasing numbers of them.

Usage: python benchmarks/million.py --folder /tmp/million --save

The model is trained on the 10x PBMC 3k that ships with the package (negative binomial); cells are
sampled from it at 1.5 times the depth, which makes about a tenth of the entries non-zero. The cell
type of the original cell is kept, so that the latent space can be evaluated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.neighbors import KNeighborsClassifier

import vivace
from common import memory_mb, provenance, report, run_json

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TEST_CELLS = 10_000
DEPTH = 1.5
_AT_A_TIME = 20_000


def simulate(out: Path, n_cells: int, seed: int = 0) -> None:
    """Cells sampled from a model of PBMC 3k, each with the type of its original cell."""
    reference = vivace.datasets.pbmc3k()
    vivace.settings.seed = seed
    vivace.SCVI.setup_anndata(reference)
    model = vivace.SCVI(reference, gene_likelihood="nb")
    model.train(progress=False)
    mean, variance = model.get_latent_representation(return_dist=True)
    library = np.asarray(reference.X.sum(1)).ravel()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    source = rng.integers(reference.n_obs, size=n_cells)
    blocks = []
    for start in range(0, n_cells, _AT_A_TIME):
        rows = source[start : start + _AT_A_TIME]
        z = mean[rows] + np.sqrt(variance[rows]) * rng.standard_normal(mean[rows].shape)
        sample = model.decode(z, indices=rows, library_size=DEPTH * library[rows]).sample()
        x = sample.numpy().astype(np.float32)
        x[np.arange(len(x)), x.argmax(1)] += x.sum(1) == 0  # every cell has at least one molecule
        blocks.append(sp.csr_matrix(x))
        print(f"{start + len(rows):,} cells", file=sys.stderr, flush=True)
    obs = pd.DataFrame(
        {"cell_type": reference.obs["cell_type"].to_numpy()[source]},
        index=np.arange(n_cells).astype(str),
    )
    counts = sp.vstack(blocks, format="csr")
    anndata.AnnData(counts, obs=obs, var=reference.var[[]].copy()).write_h5ad(out)


def _files(folder: Path, n_cells: int) -> tuple[Path, Path]:
    """The training and test cells, simulated if the files do not exist yet."""
    cells, test = folder / f"cells_{n_cells}.h5ad", folder / "test.h5ad"
    if not test.exists():
        simulate(test, TEST_CELLS, seed=1)
    if not cells.exists():
        larger = sorted(folder.glob("cells_*.h5ad"), key=lambda f: f.stat().st_size)
        if larger:
            backed = anndata.read_h5ad(larger[-1], backed="r")
            backed[:n_cells].to_memory().write_h5ad(cells)
            backed.file.close()
        else:
            simulate(cells, n_cells)
    return cells, test


def train(data: str, test_data: str) -> dict[str, Any]:
    """Default training on all cells of a file; quality on held-out cells."""
    adata = anndata.read_h5ad(data)
    matrix = adata.X
    counts_mb = (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / 2**20
    begun = time.perf_counter()
    vivace.SCVI.setup_anndata(adata)
    model = vivace.SCVI(adata, gene_likelihood="nb")
    ready = time.perf_counter()
    before_mb = memory_mb("VmRSS")
    model.train(progress=False)
    seconds = time.perf_counter() - ready
    peak_mb = memory_mb("VmHWM")
    test = anndata.read_h5ad(test_data)
    latent = model.get_latent_representation(test)
    half = len(test) // 2
    knn = KNeighborsClassifier(15).fit(latent[:half], test.obs["cell_type"][:half])
    return {
        "cells": adata.n_obs,
        "density": round(matrix.nnz / (matrix.shape[0] * matrix.shape[1]), 3),
        "epochs": len(model.history),
        "setup_seconds": round(ready - begun, 1),
        "train_seconds": round(seconds, 1),
        "cells_visited_per_second": round(len(model.history) * len(model.train_indices) / seconds),
        "counts_mb": round(counts_mb),
        "resident_before_training_mb": before_mb,
        "peak_mb": peak_mb,
        "test_elbo": round(float(model.get_elbo(test, n_samples=5, seed=0)), 2),
        "cell_type_knn_accuracy": round(
            float(knn.score(latent[half:], test.obs["cell_type"][half:])), 3
        ),
        "verdict": model.summary.splitlines()[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the cells")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    files = {n: _files(args.folder, n) for n in sorted(args.sizes, reverse=True)}
    result = {
        "benchmark": "million",
        **provenance(),
        "runs": [run_json(sys.executable, "million.py", "train", *files[n]) for n in args.sizes],
    }
    report("million", result, args.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(*sys.argv[2:])))
    else:
        main()
