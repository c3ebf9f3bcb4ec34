"""Counts and covariates held in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from vivace.data.batch import CountBatch, StoredPosterior
from vivace.data.checks import check_counts, location_of
from vivace.data.minified import read_minified
from vivace.data.schema import Schema
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, near
from vivace.ops.csr import SparseCounts
from vivace.types import F32, I32, I64, Rows

Csr = tuple[I64, I32, F32]


@dataclass(frozen=True)
class MemorySource:
    """Counts and covariates held in memory.

    Parameters
    ----------
    counts
        CSR matrix, float32, n cells x g genes, the model's genes in its order.
    library
        Array, float32, shape (n,), molecules of each cell.
    batch, labels
        Arrays, int64, shape (n,), codes.
    categorical
        Array, int64, shape (n, c), codes.
    continuous
        Array, float32, shape (n, d).
    size_factor
        Array, float32, shape (n,), or None.
    posterior
        StoredPosterior of all cells, which stands for encoding them, or None.
    has_counts
        Whether the counts are there; if not, ``counts`` is empty.
    total
        Molecules in all, by which a change in place is noticed.
    """

    counts: sp.csr_matrix
    library: F32
    batch: I64
    labels: I64
    categorical: I64
    continuous: F32
    size_factor: F32 | None = None
    posterior: StoredPosterior | None = None
    has_counts: bool = True
    total: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self._sum())

    @property
    def n_cells(self) -> int:
        return int(self.counts.shape[0])

    def check_unchanged(self) -> None:
        """Refuse counts that were changed in place after they had been checked.

        CSR float32 counts are shared with the AnnData, not copied, so that
        ``sc.pp.log1p(adata)`` would reach them.
        """
        if self._sum() != self.total:
            raise DataError(
                "The counts were changed in place after the model was made; keep them in a layer "
                "(adata.layers['counts'] = adata.X.copy(), layer='counts') and make the model again."
            )

    def _sum(self) -> float:
        return float(self.counts.data.sum(dtype=np.float64))

    def gather(self, rows: Rows, *, counts: bool = True) -> CountBatch:
        """The cells at ``rows``, in that order; without ``counts`` as if each had none."""
        if counts:
            indptr, genes, values = self._stretch(rows) or self._picked(rows)
        else:
            indptr, genes = np.zeros(len(rows) + 1, np.int64), np.empty(0, np.int32)
            values = np.empty(0, np.float32)
        sparse = SparseCounts(
            torch.from_numpy(indptr),
            torch.from_numpy(genes),
            torch.from_numpy(values),
            int(self.counts.shape[1]),
        )
        size_factor = None if self.size_factor is None else torch.from_numpy(self.size_factor[rows])
        places = torch.from_numpy(rows)
        posterior = None if self.posterior is None else self.posterior.each(lambda t: t[places])
        return CountBatch(
            counts=sparse,
            library=torch.from_numpy(self.library[rows]),
            batch=torch.from_numpy(self.batch[rows]),
            labels=torch.from_numpy(self.labels[rows]),
            categorical=torch.from_numpy(self.categorical[rows]),
            continuous=torch.from_numpy(self.continuous[rows]),
            size_factor=size_factor,
            posterior=posterior,
        )

    def _picked(self, rows: Rows) -> Csr:
        from vivace.data.gather import gather_rows  # compiles: only when it is needed

        return gather_rows(self.counts.indptr, self.counts.indices, self.counts.data, rows)

    def _stretch(self, rows: Rows) -> Csr | None:
        """Rows that follow each other, copied as one piece; None where they do not."""
        x, n = self.counts, len(rows)
        if n == 0 or rows[-1] - rows[0] != n - 1 or not (np.diff(rows) == 1).all():
            return None
        starts = x.indptr[rows[0] : rows[0] + n + 1].astype(np.int64)
        here = slice(starts[0], starts[-1])
        return starts - starts[0], x.indices[here].astype(np.int32), x.data[here].copy()


def read_cells(
    adata: AnnData, schema: Schema, *, allow_negative: bool = False, models: Collection[str] = ()
) -> MemorySource:
    """The cells of ``adata`` as the model with this ``schema`` reads them.

    Genes are aligned by name, categories by the schema's codes, and the counts
    are checked; ``allow_negative`` is for values that are not counts.  Of data that
    one of ``models`` minified (their digests) the posterior is read.

    Raises
    ------
    DataError
        Where counts or columns cannot be used; the message says which cell,
        gene or column, and the fix.
    """
    if not isinstance(adata, AnnData):
        raise ArgumentTypeError(
            f"adata must be an AnnData, not {type(adata).__name__}; read one with "
            "anndata.read_h5ad."
        )
    positions = schema.gene_positions(adata)
    columns = schema.columns(adata)
    posterior, library = read_minified(adata, models)
    if library is None:
        counts = count_matrix(adata, schema.declarations.layer)
        if positions is not None:
            counts = counts[:, positions]
            counts.sort_indices()
        check_counts(adata, counts, schema, allow_negative=allow_negative)
        library = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel().astype(np.float32)
        has_counts = True
    else:
        counts = sp.csr_matrix((adata.n_obs, len(schema.genes)), dtype=np.float32)
        has_counts = False
    return MemorySource(
        counts=counts,
        library=library,
        batch=columns.batch,
        labels=columns.labels,
        categorical=columns.categorical,
        continuous=columns.continuous,
        size_factor=columns.size_factor,
        posterior=posterior,
        has_counts=has_counts,
    )


def count_matrix(adata: AnnData, layer: str | None) -> sp.csr_matrix:
    """X or a layer as float32 CSR with sorted, unique entries; not checked yet.

    CSR float32 is used as it is; CSC, dense and other number types are
    converted.  Data on disk are refused, with the way to read them.
    """
    if adata.isbacked and layer is None:
        raise DataError(
            "X is on disk (backed); read it into memory with adata = adata.to_memory() first."
        )
    if layer is not None and layer not in adata.layers:
        raise MissingColumnError(
            f"adata.layers has no {layer!r} (layer); {near(layer, adata.layers.keys())}"
        )
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    where = location_of(layer)
    if matrix is None:
        raise DataError(f"The AnnData has no {where}; name the layer with the counts in layer=.")
    if not sp.issparse(matrix) and not isinstance(matrix, np.ndarray):
        raise DataError(
            f"{where} is a {type(matrix).__name__}, which is not held in memory; read it with "
            "adata = adata.to_memory() first."
        )
    if matrix.dtype.kind not in "iufb":
        raise DataError(f"{where} holds values of type {matrix.dtype}; give it raw counts.")
    csr = sp.csr_matrix(matrix, dtype=np.float32)
    if not csr.has_canonical_format:
        csr = csr.copy()  # SciPy shares arrays between them, and sums and sorts in place
        csr.sum_duplicates()
    return csr
