"""Simulate counts of any size and density for speed measurements, and write them as h5ad.

Usage: python simulate.py OUT.h5ad N_CELLS N_GENES DENSITY

Cells of eight types in two batches; a gamma-Poisson with dispersion 2 around log-normal profiles,
scaled so that the given share of entries is non-zero. Not a model of biology: for that, sample from
a trained one (``million.py``).
"""

from __future__ import annotations

import json
import sys

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

_THETA = 2.0
_TYPES = 8
_CELLS_AT_A_TIME = 2_000


def depth_for(profiles: np.ndarray, density: float) -> float:
    """Molecules per cell for which a given share of entries is expected to be non-zero."""
    low, high = 1.0, 1e7
    for _ in range(60):
        middle = np.sqrt(low * high)
        zero = (1.0 + middle * profiles / _THETA) ** -_THETA
        low, high = (middle, high) if 1.0 - zero.mean() < density else (low, middle)
    return float(low)


def simulate(n_cells: int, n_genes: int, density: float, seed: int = 0) -> anndata.AnnData:
    """An AnnData with ``obs`` columns batch, donor and score."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0.0, 1.5, n_genes)
    profiles = np.exp(base + rng.normal(0.0, 0.5, (_TYPES, n_genes)))
    profiles /= profiles.sum(1, keepdims=True)
    depth = depth_for(profiles, density)
    kind = rng.integers(_TYPES, size=n_cells)
    blocks = []
    for start in range(0, n_cells, _CELLS_AT_A_TIME):
        kinds = kind[start : start + _CELLS_AT_A_TIME]
        mean = depth * profiles[kinds] * rng.lognormal(0.0, 0.2, (len(kinds), 1))
        x = rng.poisson(mean * rng.gamma(_THETA, 1.0 / _THETA, mean.shape))
        x[:, 0] += 1
        blocks.append(sp.csr_matrix(x.astype(np.float32)))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.integers(2, size=n_cells).astype(str)),
            "donor": pd.Categorical(rng.integers(4, size=n_cells).astype(str)),
            "score": rng.normal(size=n_cells),
        },
        index=[f"cell {i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
    return anndata.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var)


if __name__ == "__main__":
    out, n_cells, n_genes, density = sys.argv[1:]
    adata = simulate(int(n_cells), int(n_genes), float(density))
    adata.write_h5ad(out)
    reached = adata.X.nnz / (adata.n_obs * adata.n_vars)
    print(json.dumps({"cells": adata.n_obs, "genes": adata.n_vars, "density": round(reached, 4)}))
