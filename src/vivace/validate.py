"""Checks that several public methods make of their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, OptionError, near
from vivace.types import I64, Indices


def refuse_unknown(method: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """A sentence with near matches for the first name that no argument has."""
    for name in given:
        raise ArgumentTypeError(f"{method} has no argument {name!r}; {near(name, known)}")


def positive(name: str, value: object) -> None:
    """``value`` must be None or an integer of at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ArgumentTypeError(f"{name} must be an integer, not {value!r}.")
    if value < 1:
        raise OptionError(f"{name} must be at least 1, not {value}.")


def whole(name: str, value: object) -> None:
    """``value`` must be an integer of at least 1."""
    if value is None:
        raise ArgumentTypeError(f"{name} must be an integer, not None.")
    positive(name, value)


def true_or_false(name: str, value: object) -> None:
    """``value`` must be one of the two."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be True or False, not {value!r}.")


def number(name: str, value: object) -> None:
    """``value`` must be None or a number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise ArgumentTypeError(f"{name} must be a number, not {value!r}.")


def numbers(name: str, value: object) -> torch.Tensor:
    """``value`` as a float32 tensor; it must be an array or a number, all of it finite."""
    try:
        array = np.asarray(
            value.detach().cpu() if isinstance(value, torch.Tensor) else value, np.float32
        )
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{name} must be an array of numbers, not {value!r}.") from error
    if not np.isfinite(array).all():
        raise OptionError(f"{name} holds values that are not finite; replace them.")
    return torch.from_numpy(np.ascontiguousarray(array))


def any_column_of(adata: AnnData, name: str, key: object) -> pd.Series[Any]:
    """The column of obs that the argument ``name`` names; values may be missing."""
    if not isinstance(key, str):
        raise ArgumentTypeError(f"{name} must be the name of a column of obs, not {key!r}.")
    if key not in adata.obs:
        raise MissingColumnError(f"obs has no column {key!r} ({name}); {near(key, adata.obs)}")
    return adata.obs[key]


def column_of(adata: AnnData, name: str, key: object) -> pd.Series[Any]:
    """The same where no value is missing."""
    column = any_column_of(adata, name, key)
    if column.isna().any():
        raise DataError(
            f"obs[{key!r}] ({name}) has no value for {int(column.isna().sum())} cells; fill it in."
        )
    return column


def folder(value: object) -> Path:
    """``value`` must be a path."""
    if not isinstance(value, str | Path):
        raise ArgumentTypeError(f"dir_path must be the path of a folder, not {value!r}.")
    return Path(value)


def accelerator_here(name: object) -> None:
    """``name`` must be a kind of device that this machine has, or "auto"."""
    there = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "gpu": torch.cuda.is_available() or torch.backends.mps.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not isinstance(name, str) or name not in there:
        raise OptionError(
            f"accelerator must be one of {', '.join(map(repr, there))}, not {name!r}."
        )
    if not there[name]:
        raise OptionError(f"This machine has no device for accelerator={name!r}; use 'auto'.")


def row_numbers(indices: Indices | None, n_cells: int) -> I64:
    """Row numbers from a mask, from indices (negative ones count from the end), or all.

    Examples
    --------
    >>> row_numbers([2, 0, -1], 3).tolist()
    [2, 0, 2]
    """
    if indices is None:
        return np.arange(n_cells)
    try:
        rows = np.asarray(indices)
    except ValueError as error:
        raise ArgumentTypeError("indices must be one-dimensional, not a list of lists.") from error
    if rows.ndim != 1:
        raise ArgumentTypeError(f"indices must be one-dimensional, not of shape {rows.shape}.")
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise OptionError(
                f"indices is a mask of {len(rows)} values for {n_cells} cells; give one value a cell."
            )
        return np.flatnonzero(rows)
    if rows.size and rows.dtype.kind not in "iu":
        raise ArgumentTypeError(f"indices must be integers or a mask, not of type {rows.dtype}.")
    rows = rows.astype(np.int64)
    outside = rows[(rows < -n_cells) | (rows >= n_cells)]
    if len(outside):
        raise OptionError(f"indices holds {outside[0]}, but there are {n_cells} cells.")
    return np.where(rows < 0, rows + n_cells, rows)
