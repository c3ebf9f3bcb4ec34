"""Are these the raw counts of a model?

Every value is looked at, in blocks, once when data is set up and once when it
is read: a wrong layer found after training costs more than the scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from vivace.data.schema import Schema
from vivace.errors import DataError
from vivace.types import F32

_BLOCK = 1 << 20  # values looked at in one go


def check_counts(
    adata: AnnData, counts: sp.csr_matrix, schema: Schema, *, allow_negative: bool = False
) -> None:
    """Refuse counts that are negative, not finite, not integers, and cells without any."""
    where = location_of(schema.declarations.layer)
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
    where = location_of(schema.declarations.layer)
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


def _value_blocks(values: F32) -> Iterator[tuple[int, F32]]:
    for start in range(0, len(values), _BLOCK):
        yield start, values[start : start + _BLOCK]


def _place(adata: AnnData, counts: sp.csr_matrix, schema: Schema, at: int) -> str:
    cell = int(np.searchsorted(counts.indptr, at, side="right")) - 1
    gene = schema.genes[int(counts.indices[at])]
    return f"(cell {adata.obs_names[cell]!r}, gene {gene!r})"


def location_of(layer: str | None) -> str:
    """Where the counts are, for a message."""
    return "X" if layer is None else f"layers[{layer!r}]"
