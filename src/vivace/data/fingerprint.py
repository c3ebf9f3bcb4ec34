"""Fingerprints: whether data changed since they were read, at a cost that does not grow with them.

A fingerprint keeps values at a fixed number of places, half of them evenly spread and half
random, and compares them later. It finds every change that touches more than a few in a
thousand entries; it cannot find a change of a few entries between those places. Only a sparse
matrix with unsorted entries costs more: a whole row (CSR) or column (CSC) per compared entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from vivace.data.columns import CategoryLookup, Columns
from vivace.data.schema import Schema
from vivace.types import F32, I64, Category
from vivace.validate import native_order, refuse_repeated_name

_PLACES = 2048  # of each array of a CSR matrix
_ENTRIES = 512  # stored entries of the AnnData's matrix, and as many places anywhere in it
_CELLS = 256  # cells whose names and columns are compared
_CATEGORIES = 1000  # a longer list of categories is not compared


def spread_places(n: int, limit: int) -> I64:
    """At most ``limit`` places among ``n``: all, or half evenly spread and half random.

    Even places find changes of a block, random ones those with a period.

    Examples
    --------
    >>> spread_places(3, 4).tolist()
    [0, 1, 2]
    >>> places = spread_places(10**9, 4)
    >>> places[:2].tolist(), len(places)
    ([0, 999999999], 4)
    """
    if n <= limit:
        return np.arange(n)
    even = np.linspace(0, n - 1, limit // 2).astype(np.int64)
    random = np.random.default_rng(0).integers(0, n, limit - len(even))
    return np.concatenate([even, random])


@dataclass(frozen=True)
class ArrayFingerprint:
    """Length of an array, and its values at some places."""

    length: int
    places: I64
    values: NDArray[Any]

    @classmethod
    def from_array(cls, array: NDArray[Any]) -> Self:
        """Record an array of one dimension."""
        places = spread_places(len(array), _PLACES)
        return cls(len(array), places, array[places])

    def matches(self, array: NDArray[Any]) -> bool:
        """Whether ``array`` still has this length and these values."""
        return len(array) == self.length and bool(np.all(array[self.places] == self.values))


@dataclass(frozen=True)
class CsrFingerprint:
    """The three arrays of a CSR matrix whose memory may be shared with the user."""

    data: ArrayFingerprint
    indices: ArrayFingerprint
    indptr: ArrayFingerprint

    @classmethod
    def from_matrix(cls, matrix: sp.csr_matrix) -> Self:
        """Record a matrix."""
        arrays = (matrix.data, matrix.indices, matrix.indptr)
        return cls(*(ArrayFingerprint.from_array(a) for a in arrays))

    def matches(self, matrix: sp.csr_matrix) -> bool:
        """Whether ``matrix`` still has these lengths and values."""
        return (
            self.data.matches(matrix.data)
            and self.indices.matches(matrix.indices)
            and self.indptr.matches(matrix.indptr)
        )


@dataclass(frozen=True)
class EntryFingerprint:
    """Some entries of a matrix, by cell and gene, so that its format and type do not matter."""

    cells: I64
    genes: I64
    values: F32

    @classmethod
    def from_counts(cls, counts: sp.csr_matrix, positions: I64 | None) -> Self:
        """Record entries of the counts that were read.

        Parameters
        ----------
        counts
            The counts, n cells x the model's genes, with sorted entries.
        positions
            Where the model's genes are in the AnnData; None where they agree.
        """
        n_cells, n_genes = counts.shape
        stored = spread_places(counts.nnz, _ENTRIES)
        # places of another type would make NumPy convert the whole array
        ends = stored.astype(counts.indptr.dtype)
        cells = np.searchsorted(counts.indptr, ends, side="right") - 1
        genes, values = counts.indices[stored].astype(np.int64), counts.data[stored]
        any_cells, any_genes = np.divmod(spread_places(n_cells * n_genes, _ENTRIES), n_genes)
        values = np.concatenate([values, read_entries(counts, any_cells, any_genes)])
        cells, genes = np.concatenate([cells, any_cells]), np.concatenate([genes, any_genes])
        return cls(cells, genes if positions is None else positions[genes], values)

    def matches(self, matrix: Any) -> bool:
        """Whether ``matrix`` (dense, CSR or CSC) has these values at these places."""
        if isinstance(matrix, np.ndarray):
            dense: NDArray[Any] = matrix[self.cells, self.genes]
            return bool(np.all(dense.astype(np.float32) == self.values))
        if not sp.issparse(matrix) or matrix.format not in ("csr", "csc"):
            return False
        differs = np.flatnonzero(read_entries(matrix, self.cells, self.genes) != self.values)
        # entries that are not sorted, or are stored in parts, need a look at the whole row
        return all(
            _sum_entry(matrix, self.cells[i], self.genes[i]) == self.values[i] for i in differs
        )


def read_entries(matrix: Any, cells: I64, genes: I64) -> F32:
    """Entries of a CSR or CSC matrix with sorted indices, by a binary search of each at once.

    SciPy's indexing may scan whole columns, or check first that the matrix is sorted.
    """
    major, minor = (cells, genes) if matrix.format == "csr" else (genes, cells)
    last = len(matrix.indices) - 1
    if last < 0:
        return np.zeros(len(cells), np.float32)
    low = matrix.indptr[major].astype(np.int64)
    stop = high = matrix.indptr[major + 1].astype(np.int64)
    while (searching := low < high).any():
        middle = (low + high) // 2
        smaller = searching & (matrix.indices[np.minimum(middle, last)] < minor)
        low = np.where(smaller, middle + 1, low)
        high = np.where(searching & ~smaller, middle, high)
    place = np.minimum(low, last)
    stored = (low < stop) & (matrix.indices[place] == minor)
    return np.where(stored, matrix.data[place].astype(np.float32), np.float32(0))


def _sum_entry(matrix: Any, cell: int, gene: int) -> np.float32:
    """One entry of a CSR or CSC matrix in any order, its parts summed."""
    major, minor = (cell, gene) if matrix.format == "csr" else (gene, cell)
    part = slice(matrix.indptr[major], matrix.indptr[major + 1])
    parts = matrix.data[part][matrix.indices[part] == minor]
    return parts.astype(np.float32).sum(dtype=np.float32)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class CategoryFingerprint:
    """A column of categories: the codes of some cells, and the codes that occur."""

    key: str
    lookup: CategoryLookup
    codes: list[int]
    occurring: frozenset[int]

    @classmethod
    def from_column(cls, key: str, places: I64, codes: I64, known: Sequence[Category]) -> Self:
        """Record a column whose cells have ``codes``, numbers of the ``known`` categories."""
        occurring = frozenset(np.flatnonzero(np.bincount(codes)).tolist())
        return cls(key, CategoryLookup(known), codes[places].tolist(), occurring)

    def matches(self, column: pd.Series[Any], places: I64) -> bool:
        """Whether the cells at ``places`` have the same categories, of whatever type."""
        if [self.lookup.find(v) for v in native_order(column).take(places)] != self.codes:
            return False
        if not isinstance(column.dtype, pd.CategoricalDtype):
            return True
        categories = column.cat.categories
        if len(categories) > _CATEGORIES:
            return True
        return self.occurring <= {self.lookup.find(c) for c in categories}


@dataclass(frozen=True)
class NumberFingerprint:
    """A column of numbers: the values of some cells."""

    key: str
    values: F32

    @classmethod
    def from_column(cls, adata: AnnData, key: str, places: I64) -> Self:
        """Record a column."""
        return cls(key, _floats(native_order(adata.obs[key]).take(places)))

    def matches(self, column: pd.Series[Any], places: I64) -> bool:
        """Whether the cells at ``places`` have the same numbers."""
        try:
            return bool(np.all(_floats(native_order(column).take(places)) == self.values))
        except (TypeError, ValueError):  # no numbers any more
            return False


def _floats(column: pd.Series[Any]) -> F32:
    return np.asarray(column, np.float64).astype(np.float32)


@dataclass(frozen=True)
class DataFingerprint:
    """The cells, declared columns and counts of an AnnData, as a model read them.

    Parameters
    ----------
    n_cells, n_genes
        Size of the AnnData.
    layer
        Layer of the counts; None for X.
    places
        Cells whose names and columns are compared.
    names
        Their names.
    columns
        Fingerprint of each declared column.
    entries
        Entries of the counts; None where the AnnData has none.
    """

    n_cells: int
    n_genes: int
    layer: str | None
    places: I64
    names: list[str]
    columns: tuple[CategoryFingerprint | NumberFingerprint, ...]
    entries: EntryFingerprint | None

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        schema: Schema,
        columns: Columns,
        counts: sp.csr_matrix | None,
        positions: I64 | None,
    ) -> Self:
        """Record data that have just been read.

        Parameters
        ----------
        adata
            The data.
        schema
            The declared columns and their categories.
        columns
            The columns of ``adata`` in the codes of ``schema``.
        counts
            The counts of the model's genes; None where they were dropped.
        positions
            Where the model's genes are in ``adata``; None where they agree.
        """
        d = schema.declarations
        places = spread_places(adata.n_obs, _CELLS)
        coded = [(d.batch_key, columns.batch, schema.batches)]
        coded.append((d.labels_key, columns.labels, schema.labels))
        coded += zip(
            d.categorical_covariate_keys, columns.categorical.T, schema.categories, strict=True
        )
        numbers = [*d.continuous_covariate_keys]
        numbers += [] if d.size_factor_key is None else [d.size_factor_key]
        return cls(
            n_cells=adata.n_obs,
            n_genes=adata.n_vars,
            layer=d.layer,
            places=places,
            names=[str(name) for name in adata.obs_names[places]],
            columns=(
                *(
                    CategoryFingerprint.from_column(key, places, codes, known)
                    for key, codes, known in coded
                    if key is not None
                ),
                *(NumberFingerprint.from_column(adata, key, places) for key in numbers),
            ),
            entries=None if counts is None else EntryFingerprint.from_counts(counts, positions),
        )

    def find_changed_cells(self, adata: AnnData) -> str | None:
        """What of the cells and genes changed, as a clause; None if nothing."""
        if adata.n_obs != self.n_cells:
            return f"The data have {adata.n_obs:,} cells now, but had {self.n_cells:,}"
        if adata.n_vars != self.n_genes:
            return f"The data have {adata.n_vars:,} genes now, but had {self.n_genes:,}"
        for name, now in zip(self.names, adata.obs_names[self.places], strict=True):
            if str(now) != name:
                return f"The cells were reordered or renamed (cell {str(now)!r} was {name!r})"
        return None

    def find_changed_column(self, adata: AnnData) -> str | None:
        """The first declared column that changed or is missing; None if there is none."""
        for column in self.columns:
            if column.key not in adata.obs:
                return column.key
            refuse_repeated_name(adata.obs, "obs", column.key, "declared at set-up")
            if not column.matches(adata.obs[column.key], self.places):
                return column.key
        return None

    def has_counts(self, adata: AnnData, counts: sp.csr_matrix) -> bool:
        """Whether X or the layer still holds the counts that the model read as ``counts``.

        Views and X on disk are not compared: reading X from them costs a copy, and the model
        has its own.
        """
        if self.entries is None or adata.is_view or adata.isbacked:
            return True
        matrix = adata.X if self.layer is None else adata.layers.get(self.layer)
        return _share_arrays(matrix, counts) or self.entries.matches(matrix)


def _share_arrays(matrix: Any, counts: sp.csr_matrix) -> bool:
    """Whether both are CSR matrices of the same memory."""
    return (
        sp.issparse(matrix)
        and matrix.format == "csr"
        and all(
            _share_memory(getattr(matrix, part), getattr(counts, part))
            for part in ("data", "indices", "indptr")
        )
    )


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are the same piece of memory, read the same way."""
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and (
        a.shape,
        a.dtype,
        a.strides,
    ) == (b.shape, b.dtype, b.strides)
