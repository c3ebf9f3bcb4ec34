"""Small simulated data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData


def simulate_cells(n_cells: int = 60, n_genes: int = 30, seed: int = 0) -> AnnData:
    """Integer counts of three cell types in two batches; no cell is empty."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(1).gamma(0.5, 1.0, (3, n_genes)) + 0.02
    kind = rng.integers(0, 3, n_cells)
    counts = rng.poisson(1.5 * rng.gamma(4.0, 0.25, (n_cells, 1)) * profiles[kind])
    counts[np.arange(n_cells), rng.integers(0, n_genes, n_cells)] += 1
    obs = pd.DataFrame(
        {
            "batch": np.array(["b0", "b1"])[np.arange(n_cells) % 2],
            "cell_type": np.array(["B", "NK", "T"])[kind],
            "donor": np.array(["d0", "d1", "d2"])[np.arange(n_cells) % 3],
            "age": rng.normal(50.0, 10.0, n_cells),
            "depth": counts.sum(1) / counts.sum(1).mean(),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
