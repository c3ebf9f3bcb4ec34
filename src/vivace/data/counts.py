"""Counts of an AnnData as a checked CSR matrix in memory.

Every value is looked at, in blocks, once when data is set up and once when it
is read: a wrong layer found after training costs more than the scan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from vivace.data.minified import read_minified
from vivace.data.source import MemorySource
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, near
from vivace.setup import Schema

_BLOCK = 1 << 20  # values looked at in one go


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
    where = _where(layer)
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


def check_counts(
    adata: AnnData, counts: sp.csr_matrix, schema: Schema, *, allow_negative: bool = False
) -> None:
    """Refuse counts that are negative, not finite, not integers, and cells without any."""
    where = _where(schema.declarations.layer)
    for start, values in _value_blocks(counts.data):
        finite = np.isfinite(values)
        if not finite.all():
            at = start + int(np.argmin(finite))
            raise DataError(
                f"{where} holds {counts.data[at]} {_place(adata, counts, schema, at)}; replace or "
                "drop such values before setting up."
            )
        if values.min(initial=0) < 0 and not allow_negative:
            at = start + int(np.argmin(values))
            raise DataError(
                f"{where} holds the negative value {counts.data[at]:g} "
                f"{_place(adata, counts, schema, at)}; give raw counts, not scaled data"
                f"{_suggest_layer(adata, schema)}."
            )
        if not schema.declarations.allow_non_integer:
            whole = values == np.rint(values)
            if not whole.all():
                _refuse_fractions(adata, counts, schema, start + int(np.argmin(whole)))
    empty = np.diff(counts.indptr) == 0
    if counts.data.min(initial=1) <= 0:  # zeros stored as entries, or negative values
        empty = np.asarray(counts.sum(axis=1)).ravel() <= 0
    if empty.any():
        cell = adata.obs_names[int(np.argmax(empty))]
        raise DataError(
            f"{int(empty.sum())} of {adata.n_obs} cells have no counts in {where} over the "
            f"{counts.shape[1]} genes used (first: {cell!r}); drop them with "
            "sc.pp.filter_cells(adata, min_counts=1)."
        )
    if adata.n_obs == 0:
        raise DataError("The data have no cells; check the selection that made this AnnData.")


def _refuse_fractions(adata: AnnData, counts: sp.csr_matrix, schema: Schema, at: int) -> None:
    where = _where(schema.declarations.layer)
    place = _place(adata, counts, schema, at)
    raw = _suggest_layer(adata, schema)
    if _looks_log1p(counts):
        raise DataError(
            f"{where} looks log1p-normalised ({counts.data[at]:g} {place}); give raw counts"
            f"{raw or ', from before sc.pp.normalize_total and sc.pp.log1p'}."
        )
    raise DataError(
        f"{where} holds {counts.data[at]:g} {place}, which is not an integer; give raw counts"
        f"{raw}, or pass allow_non_integer=True to setup_anndata if these are meant."
    )


def _looks_log1p(counts: sp.csr_matrix) -> bool:
    """Whether, in most cells, expm1 gives whole multiples of the cell's smallest value.

    Most, not all: a cell without a single count of one has no unit to go by.
    """
    if counts.data.max() > 20:
        return False
    tested = passed = 0
    for cell in range(min(counts.shape[0], 50)):
        values = np.expm1(np.sort(counts.data[counts.indptr[cell] : counts.indptr[cell + 1]]))
        values = values[values > 0].astype(np.float64)
        if len(values) < 3:
            continue
        multiples = values / values[0]
        tested += 1
        passed += bool((np.abs(multiples - np.rint(multiples)) < 0.005 * multiples).all())
    return 2 * passed > tested


def _suggest_layer(adata: AnnData, schema: Schema) -> str:
    """A clause that names a layer (or X, or raw) whose values all look like counts."""
    if schema.declarations.layer is not None and _integers(adata.X):
        return " (X holds integers: leave out layer=)"
    for name, matrix in adata.layers.items():
        if name != schema.declarations.layer and _integers(matrix):
            return f" (adata.layers[{name!r}] holds integers: pass layer={name!r})"
    if adata.raw is not None and _integers(adata.raw.X):
        return " (adata.raw holds integers: start from adata.raw.to_adata())"
    return ""


def _integers(matrix: Any) -> bool:
    values = matrix.data if sp.issparse(matrix) else matrix
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        return False
    some = values.ravel()[:_BLOCK]
    return bool(
        some.size and np.isfinite(some).all() and (some >= 0).all() and not (some % 1).any()
    )


def _value_blocks(values: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(values), _BLOCK):
        yield start, values[start : start + _BLOCK]


def _place(adata: AnnData, counts: sp.csr_matrix, schema: Schema, at: int) -> str:
    cell = int(np.searchsorted(counts.indptr, at, side="right")) - 1
    gene = schema.genes[int(counts.indices[at])]
    return f"(cell {adata.obs_names[cell]!r}, gene {gene!r})"


def _where(layer: str | None) -> str:
    return "X" if layer is None else f"layers[{layer!r}]"
