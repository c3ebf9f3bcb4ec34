"""Real counts that ship with the package; README.md in this folder describes their origin."""

from __future__ import annotations

from importlib.resources import as_file, files

from anndata import AnnData, read_h5ad


def pbmc3k() -> AnnData:
    """10x Genomics PBMC 3k: 2,638 cells x 2,005 genes of raw counts.

    ``obs["cell_type"]`` has eight cell types. The cells are those that pass the usual filter. The
    genes are the 2,000 most variable ones and common markers.

    Returns
    -------
    AnnData with sparse counts in X.

    Examples
    --------
    >>> pbmc3k().shape
    (2638, 2005)
    """
    with as_file(files(__name__) / "pbmc3k.h5ad") as path:
        return read_h5ad(path)
