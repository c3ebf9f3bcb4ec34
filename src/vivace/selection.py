"""Which cells or genes an argument selects: by row numbers, or by a mask.

Every question reads ``indices``, ``idx1``, ``idx2`` and masks of genes here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vivace.errors import ArgumentTypeError, DataError, OptionError, brief, list_names
from vivace.types import I64, Bool, Indices

_MASK = 10  # numbers from which those of another count may be a mask of some cells
_PLACES = {"cell": "adata.obs_names", "gene": "model.schema.genes"}


def row_numbers(
    indices: Indices | None,
    cells: pd.Index[Any],
    argument: str = "indices",
    *,
    repeats: bool = False,
) -> I64:
    """Row numbers from a mask or from row numbers; those of all cells if ``indices`` is None.

    Negative numbers count from the end. Whole floats are row numbers, too. A mask that is a
    Series whose index names the cells may have any order.

    Parameters
    ----------
    indices
        What the user gave.
    cells
        Names of the cells, in their order.
    argument
        Name of the argument, for messages.
    repeats
        Whether rows are usually given several times.

    Raises
    ------
    ArgumentTypeError, OptionError, DataError
        If it is neither; or a mask of 0 and 1, of another length, of other cells, or with
        missing values.

    Examples
    --------
    >>> cells = pd.Index(["a", "b", "c"])
    >>> row_numbers([2, 0, -1], cells).tolist()
    [2, 0, 2]
    >>> row_numbers(pd.Series([True, False, False], index=["c", "b", "a"]), cells).tolist()
    [2]
    """
    n = len(cells)
    if indices is None:
        return np.arange(n)
    array, kind = _read_array(argument, indices, "integers or a mask")
    _refuse_numbers_as_mask(argument, indices, array, kind, n, "cell", repeats)
    if kind == "boolean":
        return np.flatnonzero(_align_mask(argument, indices, array, cells, "cell"))
    _refuse_missing(argument, array, "cell", "drop them")
    if kind == "string":
        raise ArgumentTypeError(
            f"{argument} must be integers or a mask, not text ({brief(str(array[0]))}); "
            f"{_suggest_mask(argument, indices, array)}."
        )
    if kind in ("floating", "mixed-integer-float"):
        with np.errstate(invalid="ignore"):
            fraction = array[array.astype(np.float64) % 1 != 0]  # and what is not finite
        if len(fraction):
            raise ArgumentTypeError(
                f"{argument} must be integers or a mask, but holds {brief(float(fraction[0]))}."
            )
    elif kind not in ("integer", "empty"):
        raise ArgumentTypeError(
            f"{argument} must be one-dimensional, integers or a mask, not {_describe(array)}."
        )
    outside = array[(array < -n) | (array >= n)]
    if len(outside):
        raise OptionError(f"{argument} holds {brief(int(outside[0]))}, but there are {n} cells.")
    rows: I64 = array.astype(np.int64)
    return np.where(rows < 0, rows + n, rows)


def gene_mask(gene_list: Any, genes: pd.Index[Any], argument: str = "gene_list") -> Bool | None:
    """One boolean per gene of the model, in its order, if the argument is a mask; else None.

    Parameters
    ----------
    gene_list
        What the user gave: a list of names, or a mask.
    genes
        Names of the model's genes.
    argument
        Name of the argument, for messages.

    Raises
    ------
    OptionError, ArgumentTypeError, DataError
        If it is a mask of 0 and 1, of another length, of other genes, or with missing values.
    """
    array, kind = _read_array(argument, gene_list, "gene names or a mask")
    _refuse_numbers_as_mask(argument, gene_list, array, kind, len(genes), "gene")
    if kind != "boolean":
        return None
    return _align_mask(argument, gene_list, array, genes, "gene")


def _read_array(argument: str, value: Any, wanted: str) -> tuple[NDArray[Any], str]:
    """A one-dimensional array and what it holds, in pandas' words; missing values may be in it."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if isinstance(value, np.ma.MaskedArray):  # NumPy would uncover what is hidden
        value = value.tolist()  # with None
    try:
        if isinstance(value, list | tuple):  # NumPy would turn True into 1 beside numbers
            array = np.asarray(value, dtype=object)
        else:
            array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"{argument} must be one-dimensional, {wanted}, not {brief(value)}."
        ) from error
    if array.ndim == 0:
        raise ArgumentTypeError(
            f"{argument} must be one-dimensional, {wanted}, not {brief(value)}."
        )
    if array.ndim > 1:
        fix = f"; give one column, {argument}[...]" * isinstance(value, pd.DataFrame)
        raise ArgumentTypeError(
            f"{argument} must be one-dimensional, not of shape {array.shape}{fix}."
        )
    return array, pd.api.types.infer_dtype(array, skipna=True)


def _suggest_mask(argument: str, value: Any, array: NDArray[Any]) -> str:
    """The mask that was probably meant by text."""
    for true, false in (("True", "False"), ("TRUE", "FALSE"), ("true", "false"), ("T", "F")):
        if set(array) <= {true, false}:  # as a file may hold a mask
            own = argument if isinstance(value, pd.Series) else f"np.asarray({argument})"
            return f"give the mask {own} == {true!r}"
    return f"for cells by their names, give the mask adata.obs_names.isin({argument})"


def _describe(array: NDArray[Any]) -> str:
    if array.dtype != object:
        return f"of type {array.dtype}"
    types = list(dict.fromkeys(type(v).__name__ for v in array))
    return f"of type {list_names(types, most=3, form=str)}"


def _refuse_missing(argument: str, array: NDArray[Any], unit: str, fix: str) -> None:
    missing = int(pd.isna(array).sum())
    if missing:
        raise DataError(f"{argument} has no value for {missing} of {len(array)} {unit}s; {fix}.")


def _refuse_numbers_as_mask(
    argument: str,
    value: Any,
    array: NDArray[Any],
    kind: str,
    n: int,
    unit: str,
    repeats: bool = False,
) -> None:
    """Refuse a mask of 0 and 1, which would select the first two again and again."""
    if kind not in ("integer", "floating", "mixed-integer-float") or len(array) == 0:
        return
    named = isinstance(value, pd.Series) and not isinstance(value.index, pd.RangeIndex)
    if len(array) != n and not named and (repeats or len(array) < _MASK):
        return
    given = array[~pd.isna(array)]
    zeros = int((given == 0).sum())
    ones = len(given) - zeros
    if len(array) != n and not named and not (zeros and ones):
        return  # one row, again and again
    if (given[given != 0] == 1).all() and max(zeros, ones) > 1:  # else each row once
        mask = argument if hasattr(value, "astype") else f"np.asarray({argument})"
        if len(given) < len(array):
            mask = f"pd.Series({argument}).fillna(0)"
        raise OptionError(
            f"{argument} holds only 0 and 1, like a mask of {len(array)} {unit}s; give booleans "
            f"with {mask}.astype(bool)."
        )


def _align_mask(
    argument: str, value: Any, array: NDArray[Any], names: pd.Index[Any], unit: str
) -> Bool:
    """The mask in the order of ``names``: by the index of a Series, else by position."""
    if isinstance(value, pd.Series) and not value.index.equals(names):
        array = array[_positions_by_name(argument, value.index, names, unit)]
    fix = "make each True or False"
    if isinstance(value, pd.Series):
        plain = value.dtype == object or isinstance(value.dtype, pd.CategoricalDtype)
        nullable = ".astype('boolean')" if plain else ""
        fix = f"give {argument}{nullable}.fillna(False)"
    _refuse_missing(argument, array, unit, fix)
    if len(array) != len(names):
        raise OptionError(
            f"{argument} is a mask of {len(array)} values for {len(names)} {unit}s; give one value "
            f"per {unit}."
        )
    return array.astype(bool)


def _positions_by_name(
    argument: str, index: pd.Index[Any], names: pd.Index[Any], unit: str
) -> NDArray[np.intp] | slice:
    """Where each name is in the index of a mask; all of it if the index only counts."""
    counts = isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(index)))
    labels = pd.Index([str(label) for label in index])
    wanted = pd.Index([str(name) for name in names])
    if labels.equals(wanted):
        return slice(None)
    unique = labels.is_unique and wanted.is_unique
    missing = wanted[~wanted.isin(labels)]
    if not unique or len(missing) or len(labels) != len(wanted):
        if counts:
            return slice(None)
        place = _PLACES[unit]
        if len(missing):
            problem = f"lacks {len(missing)} of {len(wanted)} {unit}s (first: {brief(missing[0])})"
        elif not unique:
            problem = f"names a {unit} more than once"
        else:
            problem = f"has {len(labels) - len(wanted)} others besides the {len(wanted)} {unit}s"
        fix = f"give {argument}.reindex({place})"
        if len(missing) or not unique:
            fix = f"give one value per {unit}, in the order of {place} or indexed by it"
        raise DataError(f"{argument} is a Series whose index {problem}; {fix}.")
    if counts:  # the cells are called "0", "1", ..., in another order
        raise DataError(
            f"{argument} is a Series whose index may be the names of the {unit}s or their "
            f"positions, which differ; give {argument}.to_numpy() for positions, or make the index "
            f"text with {argument}.set_axis({argument}.index.astype(str)) for names."
        )
    places: NDArray[np.intp] = labels.get_indexer(wanted)
    return places
