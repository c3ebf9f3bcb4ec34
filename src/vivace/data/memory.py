"""Counts and covariates held in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from vivace.data.batch import CountBatch, StoredPosterior
from vivace.data.checks import Door, check_counts, describe_location
from vivace.data.fingerprint import CsrFingerprint, DataFingerprint
from vivace.data.minified import read_minified
from vivace.data.schema import Schema
from vivace.data.structure import check_structure
from vivace.errors import DataError, MissingColumnError, brief, near, warn
from vivace.ops.csr import SparseCounts
from vivace.types import F32, I32, I64, Rows
from vivace.validate import check_anndata

Csr = tuple[I64, I32, F32]  # indptr, genes, values


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
        StoredPosterior of all cells, used in place of encoding them, or None.
    has_counts
        Whether there are counts; if not, ``counts`` is empty.
    smallest
        The smallest value, at most 0.
    origin
        Fingerprint of the AnnData that the cells were read from; None if there is none.
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
    smallest: float = 0.0
    origin: DataFingerprint | None = field(default=None, repr=False)
    _arrays: CsrFingerprint = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_arrays", CsrFingerprint.from_matrix(self.counts))

    @property
    def n_cells(self) -> int:
        return int(self.counts.shape[0])

    @property
    def n_genes(self) -> int:
        return int(self.counts.shape[1])

    def check_unchanged(self, adata: AnnData | None = None) -> None:
        """Refuse to go on if the data changed after they were read.

        CSR float32 counts are shared with the AnnData, not copied, and ``sc.pp.log1p(adata)``
        would reach them. Questions also read names and columns of the AnnData by row, and its
        cells must stay the same in number and order. The check costs the same for ten cells and
        ten million: it compares sizes, and values at up to 2,048 places of each array of the
        counts, 1,024 entries of X or the layer, and the names and declared columns of 256 cells.

        Parameters
        ----------
        adata
            The AnnData that the cells were read from, as it is now; None checks the counts
            alone.

        Raises
        ------
        DataError
            If something changed; the message says what, and the fix.

        Notes
        -----
        A change of a block of cells, 1 % of them or more, is always found, and so is a random
        change of 5 % of the entries or cells but for one time in 100,000. Not noticed are
        changes of a few entries, names or columns' values between the places that are compared;
        a new X where ``adata`` is a view or on disk, because reading it costs a copy; and new
        names of genes.
        """
        origin = self.origin
        fix = _keep_counts(None if origin is None else origin.layer)
        if adata is not None and origin is not None:
            change = origin.find_changed_cells(adata)
            if change is not None:
                fix = (
                    "pass data with all genes as adata=, or create the model again"
                    if adata.n_vars < origin.n_genes
                    else "create the model again, or pass adata= to read them again"
                )
                raise DataError(f"{change} when the model read them; {fix}.")
            if not origin.has_counts(adata, self.counts):
                raise DataError(
                    f"{describe_location(origin.layer)} no longer holds the counts that the model read; "
                    f"{fix} and create the model again."
                )
            key = origin.find_changed_column(adata)
            if key is not None:
                raise DataError(
                    f"obs[{brief(key)}] was changed after the model read it; restore it, create the "
                    "model again, or pass adata= to read it again."
                )
        if not self._arrays.matches(self.counts):
            raise DataError(
                f"The counts were changed in place after the model was made; {fix} and create "
                "the model again."
            )

    def without_posterior(self) -> Self:
        """The same cells, to be encoded from their counts."""
        return replace(self, posterior=None)

    def gather(self, rows: Rows, *, counts: bool = True) -> CountBatch:
        """The cells at ``rows``, in that order; without ``counts`` as if each had none."""
        if counts:
            indptr, genes, values = self._slice_rows(rows) or self._pick_rows(rows)
        else:
            indptr, genes = np.zeros(len(rows) + 1, np.int64), np.empty(0, np.int32)
            values = np.empty(0, np.float32)
        sparse = SparseCounts(
            torch.from_numpy(indptr),
            torch.from_numpy(genes),
            torch.from_numpy(values),
            self.n_genes,
            checked=True,
        )
        size_factor = None if self.size_factor is None else torch.from_numpy(self.size_factor[rows])
        places = torch.from_numpy(rows)
        posterior = None if self.posterior is None else self.posterior.map(lambda t: t[places])
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

    def _pick_rows(self, rows: Rows) -> Csr:
        """Rows in any order."""
        # lazy: importing Numba takes a second
        from vivace.data.gather import gather_rows

        return gather_rows(self.counts.indptr, self.counts.indices, self.counts.data, rows)

    def _slice_rows(self, rows: Rows) -> Csr | None:
        """Consecutive rows, copied as one piece; None if they are not consecutive."""
        x, n = self.counts, len(rows)
        if n == 0 or rows[-1] - rows[0] != n - 1 or not (np.diff(rows) == 1).all():
            return None
        starts = x.indptr[rows[0] : rows[0] + n + 1].astype(np.int64)
        part = slice(starts[0], starts[-1])
        return starts - starts[0], x.indices[part].astype(np.int32), x.data[part].copy()


def _keep_counts(layer: str | None) -> str:
    """The fix for counts that were changed, as a clause."""
    if layer is not None:
        return f"restore layers[{brief(layer)}]"
    return "restore them, keep them in a layer (adata.layers['counts'] = adata.X.copy(), layer='counts')"


def read_cells(
    adata: AnnData,
    schema: Schema,
    *,
    allow_negative: bool = False,
    door: Door = Door.SETUP,
    models: Collection[str] = (),
) -> MemorySource:
    """The cells of ``adata``, as the model with this ``schema`` reads them.

    Parameters
    ----------
    adata
        The data. Genes are aligned by name, categories by the schema's codes.
    schema
        Genes, columns and categories of the model.
    allow_negative
        Whether values may be negative, because they are not counts.
    door
        What ``adata`` was given to, for the fix in a message.
    models
        Fingerprints of models. If one of them minified the data, its posterior is read.

    Raises
    ------
    DataError
        If the counts or columns cannot be used; the message names the cell, gene or column,
        and the fix.
    """
    check_anndata("adata must be", adata)
    positions = schema.gene_positions(adata)
    columns = schema.columns(adata)
    for sentence in schema.distant_columns(columns):
        warn(sentence)
    posterior, library = read_minified(adata, models)
    has_counts, smallest = library is None, 0.0
    if library is None:
        counts = count_matrix(adata, schema.declarations.layer)
        if positions is not None:
            counts = counts[:, positions]
            counts.sort_indices()
        totals = check_counts(
            adata,
            counts,
            schema,
            allow_negative=allow_negative,
            door=door,
        )
        library, smallest = totals.library, totals.smallest
    else:
        counts = sp.csr_matrix((adata.n_obs, len(schema.genes)), dtype=np.float32)
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
        smallest=smallest,
        origin=DataFingerprint.from_anndata(
            adata, schema, columns, counts if has_counts else None, positions
        ),
    )


def count_matrix(adata: AnnData, layer: str | None) -> sp.csr_matrix:
    """X or a layer as float32 CSR with sorted, unique entries; the values are not checked.

    CSR float32 is used as it is; CSC, dense matrices and other number types are converted.
    Data on disk are refused; the message says how to read them into memory.
    """
    if adata.isbacked and layer is None:
        raise DataError(
            "X is on disk (backed); read it into memory with adata = adata.to_memory() first."
        )
    if layer is not None and layer not in adata.layers:
        raise MissingColumnError(
            f"adata.layers has no {brief(layer)} (layer); {near(layer, adata.layers.keys())}"
        )
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    where = describe_location(layer)
    if matrix is None:
        raise DataError(
            f"The AnnData has no {where}; set adata.X to the counts, or declare their layer with "
            "setup_anndata(adata, layer=...)."
        )
    if not sp.issparse(matrix) and not isinstance(matrix, np.ndarray):
        raise DataError(
            f"{where} is a {type(matrix).__name__}, which is not held in memory; read it with "
            "adata = adata.to_memory() first."
        )
    if matrix.dtype.kind not in "iufb":
        raise DataError(f"{where} holds values of type {matrix.dtype}; give it raw counts.")
    if isinstance(matrix, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(matrix)).any():
        raise DataError(
            f"{where} is a masked array with {int(masked.sum()):,} masked values; fill them in "
            "(.filled(0)), or drop those cells or genes."
        )
    check_structure(matrix, where)
    csr = sp.csr_matrix(matrix, dtype=np.float32)
    if not csr.has_canonical_format:
        csr = csr.copy()  # SciPy shares arrays between them, and sums and sorts in place
        csr.sum_duplicates()
    return csr
