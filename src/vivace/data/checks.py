"""Checks that values are raw counts.

A model checks every value, in blocks, in the pass that reads them. ``setup_anndata`` checks a
limited number of cells, so that a wrong layer is found early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from vivace.data.schema import Schema
from vivace.errors import DataError, brief
from vivace.types import F32

_BLOCK = 1 << 20  # values per block
_ROUNDINGS = 32  # of a value that went through a logarithm, a factor and back
_SAMPLE = 1 << 20  # values of another matrix to inspect before suggesting it


class Door(Enum):
    """What data are given to; the value is how to have counts accepted that are no integers."""

    SETUP = "pass allow_non_integer=True to setup_anndata"
    QUERY = "pass allow_non_integer=True to load_query_data"
    QUESTION = "make the model again after setup_anndata(adata, allow_non_integer=True)"


@dataclass(frozen=True)
class CountTotals:
    """Results of one pass over the counts.

    Parameters
    ----------
    library
        Array, float32, shape (n,), molecules of each cell.
    smallest
        The smallest value, at most 0.
    """

    library: F32
    smallest: float


def check_counts(
    adata: AnnData,
    counts: sp.csr_matrix,
    schema: Schema,
    *,
    allow_negative: bool = False,
    door: Door = Door.SETUP,
) -> CountTotals:
    """Read all counts once; refuse unusable values, and cells without counts.

    Parameters
    ----------
    adata
        The data, for names in messages.
    counts
        CSR matrix, float32, n cells x the genes of ``schema``.
    schema
        Genes, and whether values that are not integers are allowed.
    allow_negative
        Whether negative values are allowed.
    door
        What the data were given to, for the fix in a message.

    Raises
    ------
    DataError
        If a value is negative, not finite or not an integer, or a cell has no counts.
    """
    location = describe_location(schema.declarations.layer)
    library = np.zeros(counts.shape[0], np.float32)
    smallest = 0.0
    for first, last in _row_blocks(counts):
        start, stop = int(counts.indptr[first]), int(counts.indptr[last])
        values = counts.data[start:stop]
        if start == stop:
            continue
        least, most = values.min(), values.max()  # NaN if any value is
        if not (np.isfinite(least) and np.isfinite(most)):
            place = start + int(np.argmin(np.isfinite(values)))
            raise DataError(
                f"{location} holds {counts.data[place]} {_name_entry(adata, counts, schema, place)}; "
                "replace or drop such values before setting up."
            )
        if least < 0 and not allow_negative:
            place = start + int(np.argmin(values))
            raise DataError(
                f"{location} holds the negative value {_digits(counts.data[place])} "
                f"{_name_entry(adata, counts, schema, place)}; give raw counts, not scaled data"
                f"{_suggest_layer(adata, schema, door)}."
            )
        if not schema.declarations.allow_non_integer:
            whole = values == np.rint(values)
            if not whole.all():
                place = start + int(np.argmin(whole))
                _refuse_fractions(adata, counts, schema, place, door)
        smallest = min(smallest, float(least))
        # the same sums as csr_matrix.sum(axis=1), without a separate pass
        filled = first + np.flatnonzero(np.diff(counts.indptr[first : last + 1]))
        library[filled] = np.add.reduceat(values, counts.indptr[filled] - start)
    empty = library <= 0  # no entries, stored zeros, or negative values
    if adata.n_obs == 0:
        raise DataError("The data have no cells; check the selection that made this AnnData.")
    if empty.all():
        raise DataError(
            f"No cell has counts in {location} over the {counts.shape[1]} genes used; give raw "
            f"counts{_suggest_layer(adata, schema, door)}."
        )
    if empty.any():
        cell = adata.obs_names[int(np.argmax(empty))]
        same = adata.n_vars == counts.shape[1]
        genes = "adata" if same else "adata[:, list(model.schema.genes)]"
        raise DataError(
            f"{int(empty.sum())} of {adata.n_obs} cells have no counts in {location} over the "
            f"{counts.shape[1]} genes used (first: {cell!r}); drop them with adata = "
            f"adata[np.asarray({genes}.{location}.sum(1)).ravel() > 0].copy()."
        )
    return CountTotals(library, smallest)


def _refuse_fractions(
    adata: AnnData, counts: sp.csr_matrix, schema: Schema, place: int, door: Door
) -> None:
    """Refuse the stored value at ``place``."""
    location = describe_location(schema.declarations.layer)
    value = f"{_digits(counts.data[place])} {_name_entry(adata, counts, schema, place)}"
    if _is_rounding(counts.data):
        raise DataError(
            f"{location} holds {value}, which is not an integer, but all its values are within "
            f"rounding of integers; round them with {_suggest_rint(adata, schema.declarations.layer)}."
        )
    raw = _suggest_layer(adata, schema, door)
    if _looks_log1p(counts):
        raise DataError(
            f"{location} looks log1p-normalised ({value}); give raw counts"
            f"{raw or ', from before sc.pp.normalize_total and sc.pp.log1p'}."
        )
    raise DataError(
        f"{location} holds {value}, which is not an integer; give raw counts"
        f"{raw}, or {door.value} if this is intended."
    )


def _digits(value: np.float32) -> str:
    """As many digits as tell a value from its neighbours: 2.9999998, not 3."""
    return str(value).removesuffix(".0")


def _is_rounding(values: F32) -> bool:
    """Whether values are integers but for a few roundings to float32."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        whole = np.rint(block)
        allowed = np.minimum(_ROUNDINGS * np.finfo(np.float32).eps * np.maximum(whole, 1.0), 0.1)
        if not (np.abs(block - whole) <= allowed).all():  # NaN is not
            return False
    return True


def _suggest_rint(adata: AnnData, layer: str | None) -> str:
    """The line that rounds the counts."""
    matrix = adata.X if layer is None else adata.layers[layer]
    name = "adata.X" if layer is None else f"adata.layers[{brief(layer)}]"
    if not sp.issparse(matrix):
        return f"{name} = np.rint({name})"
    if adata.is_view:  # whose matrix is a new one each time
        return f"{name} = {name}.rint()"
    return f"{name}.data = np.rint({name}.data)"


def _looks_log1p(counts: sp.csr_matrix) -> bool:
    """Whether, in most cells, expm1 gives whole multiples of the cell's smallest value.

    Most, not all, because in a cell without a count of one the smallest value is not the unit.
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


def _suggest_layer(adata: AnnData, schema: Schema, door: Door) -> str:
    """A clause that names a layer (or X, or raw) whose values all look like counts."""
    layer = schema.declarations.layer
    target = f"adata.{describe_location(layer)}"
    if layer is not None and _all_integers(adata.X):
        fix = "leave out layer=" if door is Door.SETUP else f"set {target} = adata.X"
        return f" (X holds integers: {fix})"
    for name, matrix in adata.layers.items():
        if name != layer and _all_integers(matrix):
            place = f"adata.layers[{brief(name)}]"
            fix = f"pass layer={brief(name)}" if door is Door.SETUP else f"set {target} = {place}"
            return f" ({place} holds integers: {fix})"
    if adata.raw is not None and _all_integers(adata.raw.X):
        return " (adata.raw holds integers: start from adata.raw.to_adata())"
    return ""


def _all_integers(matrix: Any) -> bool:
    """Whether the first values of a matrix are finite integers of at least 0."""
    values = matrix.data if sp.issparse(matrix) else matrix
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        return False
    sample = values.ravel()[:_SAMPLE]
    return bool(
        sample.size and np.isfinite(sample).all() and (sample >= 0).all() and not (sample % 1).any()
    )


def _row_blocks(counts: sp.csr_matrix) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about ``_BLOCK`` values each."""
    indptr, first, n_rows = counts.indptr, 0, counts.shape[0]
    while first < n_rows:
        end = min(int(indptr[first]) + _BLOCK, int(indptr[-1]))
        # a number of another type would make NumPy convert the whole array
        last = int(np.searchsorted(indptr, indptr.dtype.type(end), side="right")) - 1
        last = min(max(last, first + 1), n_rows)
        yield first, last
        first = last


def _name_entry(adata: AnnData, counts: sp.csr_matrix, schema: Schema, place: int) -> str:
    """Cell and gene of a stored value."""
    cell = int(np.searchsorted(counts.indptr, place, side="right")) - 1
    gene = schema.genes[int(counts.indices[place])]
    return f"(cell {brief(adata.obs_names[cell])}, gene {brief(gene)})"


def describe_location(layer: str | None) -> str:
    """Location of the counts, for messages."""
    return "X" if layer is None else f"layers[{brief(layer)}]"
