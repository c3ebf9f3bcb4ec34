"""Genes and columns of an AnnData: checked, and read as codes and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from vivace.errors import DataError, MissingColumnError, list_names, near
from vivace.types import F32, F64, I64, Category

_MANY = 100  # categories; a column with fewer is never mistaken for cell names


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation by which a continuous covariate is standardised.

    Parameters
    ----------
    mean, sd
        Of the model's own cells, in the covariate's unit. ``sd`` is 0 if all cells have the
        same value; the covariate then has no effect. The defaults change nothing.

    Examples
    --------
    >>> scale = Scale.from_values(np.array([10.0, 20.0, 30.0]))
    >>> scale.mean, scale.apply(np.array([20.0, 30.0])).round(3).tolist()
    (20.0, [0.0, 1.225])
    """

    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.sd < math.inf):
            raise ValueError(f"not the scale of a covariate: {self}")

    @classmethod
    def from_values(cls, values: F64) -> Self:
        """The scale of the values of some cells; float32 must tell the values apart."""
        if len(values) == 0 or np.ptp(values.astype(np.float32)) == 0:
            return cls(float(values[0]) if len(values) else 0.0, 0.0)
        return cls(float(values.mean()), float(values.std()))

    def apply(self, values: F64) -> F32:
        """Values in standard deviations from the mean, float32."""
        if self.sd == 0:
            return np.zeros(len(values), np.float32)
        return ((values - self.mean) / self.sd).astype(np.float32)

    def __str__(self) -> str:
        return f"mean {self.mean:.4g}, sd {self.sd:.4g}"


NO_SCALE = Scale()


@dataclass(frozen=True)
class Columns:
    """The covariates of n cells as the network reads them."""

    batch: I64
    labels: I64
    categorical: I64
    continuous: F32
    size_factor: F32 | None


def read_gene_names(adata: AnnData) -> tuple[str, ...]:
    """The names of the genes, which must be unique."""
    names = adata.var_names
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise DataError(
            f"var_names holds {len(repeated)} duplicated gene names (first: {repeated[0]!r}); call "
            "adata.var_names_make_unique() or sum the duplicates."
        )
    if len(names) == 0:
        raise DataError("The data have no genes; check the selection that made this AnnData.")
    return tuple(str(name) for name in names)


def _get_column(adata: AnnData, key: str, argument: str) -> pd.Series[Any]:
    """A column of obs without missing values."""
    if key not in adata.obs:
        raise MissingColumnError(
            f"obs has no column {key!r} ({argument}); {near(key, adata.obs.columns)}"
        )
    column = adata.obs[key]
    missing = column.isna().to_numpy()
    if missing.any():
        cell = adata.obs_names[int(np.argmax(missing))]
        raise DataError(
            f"obs[{key!r}] ({argument}) has no value for {int(missing.sum())} of {adata.n_obs} "
            f"cells (first: {cell!r}); fill it in or drop those cells with "
            f"adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def read_categories(adata: AnnData, key: str | None, argument: str) -> tuple[Category, ...]:
    """The categories that occur, in the order of a categorical column, otherwise sorted.

    One category, 0, if there is no column.
    """
    if key is None:
        return (0,)
    column = _get_column(adata, key, argument)
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.cat.remove_unused_categories().cat.categories
    else:
        values = pd.Index(column.unique())
        try:
            values = values.sort_values()
        except TypeError as error:
            kinds = sorted({type(v).__name__ for v in values})
            raise DataError(
                f"obs[{key!r}] ({argument}) mixes values of types {' and '.join(kinds)}; make them "
                f"one type with adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
            ) from error
    plain = tuple(plain_category(v) for v in values)
    if len(plain) > max(_MANY, adata.n_obs // 2):
        raise DataError(
            f"obs[{key!r}] ({argument}) has {len(plain)} categories for {adata.n_obs} cells, "
            "like a column of cell names; choose a coarser column."
        )
    if len({str(v) for v in plain}) < len(plain):
        raise DataError(
            f"obs[{key!r}] ({argument}) has different values with the same text; rename one."
        )
    return plain


def plain_category(value: Any) -> Category:
    """A category as a type that JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float | bool) else str(value)


def read_codes(adata: AnnData, key: str | None, known: tuple[Category, ...], argument: str) -> I64:
    """Codes of a column, by the text of each category; the type of the column does not matter."""
    if key is None:
        return np.zeros(adata.n_obs, np.int64)
    column = _get_column(adata, key, argument).astype("category")
    position = {str(c): i for i, c in enumerate(known)}
    category_codes = np.array(
        [position.get(str(plain_category(c)), -1) for c in column.cat.categories], dtype=np.int64
    )
    codes: I64 = np.zeros(0, np.int64)
    if len(category_codes):
        codes = category_codes[column.cat.codes.to_numpy()]
    if (codes < 0).any():
        unseen = sorted({str(v) for v in column[codes < 0]})
        raise DataError(
            f"obs[{key!r}] ({argument}) holds categories that the model has not seen: "
            f"{list_names(unseen)} ({int((codes < 0).sum())} cells); rename them or leave "
            f"out those cells; {near(unseen[0], known)}"
        )
    return codes


def read_numbers(adata: AnnData, key: str, argument: str) -> F64:
    """A column of numbers; every value must be finite, as float32 too."""
    column = _get_column(adata, key, argument)
    try:
        if column.dtype.kind in "cmM":  # complex numbers and times, which NumPy would convert
            raise TypeError
        values = np.asarray(column, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"obs[{key!r}] ({argument}) must hold numbers, but its type is {column.dtype}; convert "
            "it, or declare it under categorical_covariate_keys."
        ) from error
    fits = np.abs(values) <= np.finfo(np.float32).max
    if not fits.all():
        cell = int(np.argmin(fits))
        raise DataError(
            f"obs[{key!r}] ({argument}) is {values[cell]:g} for cell {adata.obs_names[cell]!r}, which "
            "is not a finite 32-bit number; replace that value."
        )
    return values
