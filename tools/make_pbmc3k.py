"""Make ``src/vivace/datasets/pbmc3k.h5ad`` from the full 10x PBMC 3k counts.

Usage: python tools/make_pbmc3k.py FULL.h5ad OUT.h5ad     (needs scanpy, scikit-misc)

Keeps the 2,638 cells that pass the usual filter and carry a cell-type label, and the 2,000 genes
that vary most (seurat_v3) plus the usual marker genes of the cell types.
"""

from __future__ import annotations

import sys

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

MARKERS = [
    "IL7R",
    "CD3D",
    "CD3E",
    "CD8A",
    "CD8B",
    "CD14",
    "LYZ",
    "S100A8",
    "S100A9",
    "MS4A1",
    "CD79A",
    "CD79B",
    "GNLY",
    "NKG7",
    "GZMB",
    "KLRB1",
    "FCGR3A",
    "MS4A7",
    "FCER1A",
    "CST3",
    "PPBP",
    "PF4",
    "CCR7",
]

full, out = sys.argv[1:]
adata = sc.read_h5ad(full)
adata = adata[adata.obs["cell_type"].astype(str) != "Unknown"].copy()
variable = sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat_v3", inplace=False)
keep = variable["highly_variable"].to_numpy() | adata.var_names.isin(MARKERS)
adata = adata[:, keep]
counts = sp.csr_matrix(adata.X, dtype=np.float32)
obs = pd.DataFrame(
    {"cell_type": pd.Categorical(adata.obs["cell_type"].astype(str))}, index=adata.obs_names
)
small = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names))
small.uns["source"] = (
    "10x Genomics public data: 3k PBMCs from a healthy donor; labels: louvain annotation"
)
small.write_h5ad(out, compression="gzip", compression_opts=9)
print(small, counts.nnz)
