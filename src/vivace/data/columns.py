"""Genes and columns of an AnnData: checked, and read as codes and numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from vivace.errors import DataError, brief, list_names, near
from vivace.types import F32, F64, I64, Bool, Category
from vivace.validate import obs_column, unreadable_column

_MANY = 100  # categories; a column with fewer is never mistaken for cell names
# a missing integer written as a number, by R and by NumPy
_MISSING_INTEGERS = {str(-(2**31)): "R", str(-(2**63)): "NumPy"}
_MISSING_TEXTS = {
    "", "NA", "Na", "na", "N/A", "n/a", "<NA>", "#N/A", "NA_character_", "nan", "NaN", "NAN", "NaT",
    "None", "null", "NULL",
}  # fmt: skip
_ROUNDING = 1e-12  # relative to the values; less spread is none


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation by which a continuous covariate is standardised.

    Parameters
    ----------
    mean, sd
        Of the model's own cells, in the covariate's unit. ``sd`` is 0 if all cells have the
        same value; the covariate then has no effect. The defaults change nothing.
    low, high
        The smallest and the largest value of these cells.

    Examples
    --------
    >>> scale = Scale.from_values(np.array([10.0, 20.0, 30.0]))
    >>> scale.mean, np.round(scale.apply(np.array([20.0, 30.0])).astype(float), 3).tolist()
    (20.0, [0.0, 1.225])
    """

    mean: float = 0.0
    sd: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        is_scale = math.isfinite(self.mean) and 0 <= self.sd < math.inf
        if not (is_scale and self.low <= self.high):
            raise ValueError(f"not the scale of a covariate: {self}")

    @classmethod
    def from_values(cls, values: F64) -> Self:
        """The scale of the values of some cells."""
        if len(values) == 0:
            return cls(0.0, 0.0)
        low, high = float(values.min()), float(values.max())
        if high - low <= _ROUNDING * max(abs(low), abs(high)):
            return cls(low, 0.0, low, high)
        return cls(float(values.mean()), float(values.std()), low, high)

    def apply(self, values: F64) -> F32:
        """Values in standard deviations from the mean, float32."""
        if self.sd == 0:
            return np.zeros(len(values), np.float32)
        return ((values - self.mean) / self.sd).astype(np.float32)

    def distance(self, scaled: F32) -> float:
        """How many standard deviations the median of standardised values is from the mean.

        It is 0 if the median lies between the values of the model's own cells.
        """
        median = float(np.median(scaled)) if len(scaled) else 0.0
        inside = self.low <= self.mean + median * self.sd <= self.high
        return 0.0 if inside else abs(median)

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


@dataclass(frozen=True)
class CodedColumn:
    """A column of categories.

    Parameters
    ----------
    argument
        The argument that names the column.
    key
        Its name.
    categories
        Those that occur, in the order of a categorical column, otherwise sorted.
    codes
        Array, int64, shape (n,), the category of each cell by its number; -1 where it has none.
    """

    argument: str
    key: str
    categories: tuple[Category, ...]
    codes: I64


def code_column(
    adata: AnnData, argument: str, key: object, *, allow_missing: bool = False
) -> CodedColumn:
    """The column of obs that an argument names, as categories and codes.

    Every column of categories is read here. A cell may lack a value if ``allow_missing`` is True.
    """
    column = obs_column(adata, argument, key, allow_missing=allow_missing)
    try:
        if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
            column = column.astype(np.float64)  # pandas has no index of float16 or long doubles
        coded = column.astype("category").cat
        codes = coded.codes.to_numpy().astype(np.int64)
        occurs = np.zeros(len(coded.categories) + 1, bool)
        occurs[codes] = True  # the last is for -1
        categories = tuple(plain_category(c) for c in coded.categories[occurs[:-1]])
        if not occurs[:-1].all():
            code_now = np.cumsum(occurs) - 1
            code_now[-1] = -1
            codes = code_now[codes]
    except Exception as error:  # of pandas, or of the values themselves
        raise unreadable_column(argument, key, column, "categories") from error
    for code, category in enumerate(categories):
        if _canonical_text(category) in _MISSING_INTEGERS:
            if not allow_missing:
                _refuse_missing_integer(adata, argument, key, category, codes == code)
            codes = np.where(codes == code, -1, codes)
    used = np.unique(codes[codes >= 0])
    if len(used) < len(categories):
        categories = tuple(categories[i] for i in used)
        codes = np.where(codes < 0, -1, np.searchsorted(used, codes))
    if column.dtype == object and any(c in (0, 1) for c in categories):
        kinds = {isinstance(v, bool | np.bool_) for v in column if not isinstance(v, str)}
        if len(kinds) > 1:  # pandas takes True for 1
            raise DataError(
                f"obs[{key!r}] ({argument}) mixes True or False with numbers; make them one type "
                f"with adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
            )
    if (text := _find_ambiguous(categories)) is not None:
        raise DataError(
            f"obs[{key!r}] ({argument}) has different values with the same text ({text!r}); "
            "rename one."
        )
    return CodedColumn(argument, str(key), categories, codes)


def _refuse_missing_integer(
    adata: AnnData, argument: str, key: object, value: Category, missing: Bool
) -> None:
    """Refuse a number that stands for a missing integer in some cells."""
    text = _canonical_text(value)
    cell = adata.obs_names[int(np.argmax(missing))]
    raise DataError(
        f"obs[{key!r}] ({argument}) is {text}, {_MISSING_INTEGERS[text]}'s missing integer, for "
        f"{int(missing.sum())} of {adata.n_obs} cells (first: {cell!r}); fill it in or drop those "
        f"cells with adata[adata.obs[{key!r}] != {value!r}].copy()."
    )


def _find_ambiguous(categories: Sequence[Category]) -> str | None:
    """A text that two categories share, such as that of 1 and "1"; None if there is none."""
    texts: set[str] = set()
    types: dict[str, type[Category]] = {}
    for category in categories:
        text, canonical = str(category), _canonical_text(category)
        if text in texts or types.setdefault(canonical, type(category)) is not type(category):
            return text
        texts.add(text)
    return None


def describe_missing_texts(column: CodedColumn, known: Collection[Category] = ()) -> str | None:
    """A sentence about categories whose text reads like a missing value; None without them.

    Categories that are ``known``, because a model was trained with them, are left out.
    """
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.categories))
    texts = {
        text: count
        for text, count in zip(column.categories, counts.tolist(), strict=True)
        if isinstance(text, str) and text.strip() in _MISSING_TEXTS and text not in known and count
    }
    if not texts:
        return None
    listed = " and ".join(
        f"{text!r} for {count} cell{'s' * (count != 1)}" for text, count in texts.items()
    )
    return (
        f"obs[{column.key!r}] ({column.argument}) is {listed}, which reads like a missing value "
        "but is a category of its own; fill it in, or drop those cells with "
        f"adata[~adata.obs[{column.key!r}].isin({list(texts)!r})].copy()."
    )


def read_categories(adata: AnnData, key: str | None, argument: str) -> tuple[Category, ...]:
    """The categories of a declared column; one category, 0, if there is no column."""
    if key is None:
        return (0,)
    categories = code_column(adata, argument, key).categories
    if not isinstance(adata.obs[key].dtype, pd.CategoricalDtype):
        kinds = sorted({type(c).__name__ for c in categories})
        if "str" in kinds and len(kinds) > 1:  # no order
            raise DataError(
                f"obs[{key!r}] ({argument}) mixes values of types {' and '.join(kinds)}; make them "
                f"one type with adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
            )
    if len(categories) > max(_MANY, adata.n_obs // 2):
        raise DataError(
            f"obs[{key!r}] ({argument}) has {len(categories)} categories for {adata.n_obs} cells, "
            "like a column of cell names; choose a coarser column."
        )
    return categories


def plain_category(value: Any) -> Category:
    """A category as a type that JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return value if isinstance(value, str | int | float | bool) else str(value)


def _canonical_text(category: Category) -> str:
    """One text for the forms that a value takes in files: 1, 1.0 and "1"; True and "TRUE".

    Examples
    --------
    >>> [_canonical_text(c) for c in (1, 1.0, "1", np.float32(0.1).item(), "TRUE")]
    ['1', '1', '1', '0.1', 'True']
    """
    if isinstance(category, float):
        if category.is_integer():
            return str(int(category))
        with np.errstate(over="ignore"):
            return str(np.float32(category))  # a file may have stored it so
    text = str(category)
    if text.endswith(".0") and text[:-2].removeprefix("-").isdecimal():
        return text[:-2]
    return text.capitalize() if text in ("TRUE", "FALSE", "true", "false") else text


class CategoryLookup:
    """Finds values among known categories: the one comparison of the two.

    A value is found by its text; otherwise, if it has another type than a category or is a
    number, by what it stands for: 1, 1.0, "1" and "1.0" are the same, and so are True and "TRUE".

    Parameters
    ----------
    known
        The categories, in the order of their codes.

    Examples
    --------
    >>> lookup = CategoryLookup((0, 1))
    >>> [lookup.find(value) for value in (1, 1.0, "1", "1.0", True, "one")]
    [1, 1, 1, 1, -1, -1]
    """

    def __init__(self, known: Sequence[Category]) -> None:
        self.known = known
        self._by_text = {str(c): i for i, c in enumerate(known)}
        self._alike: dict[str, list[int]] = {}
        for i, category in enumerate(known):
            self._alike.setdefault(_canonical_text(category), []).append(i)

    def find(self, value: Any) -> int:
        """The code of a value; -1 if it is not among the categories."""
        plain = plain_category(value)
        code = self._by_text.get(str(plain))
        if code is not None:
            return code
        alike = [
            i
            for i in self._alike.get(_canonical_text(plain), ())
            if not (isinstance(plain, str) and isinstance(self.known[i], str))
        ]
        return alike[0] if len(alike) == 1 else -1


def read_codes(adata: AnnData, key: str | None, known: tuple[Category, ...], argument: str) -> I64:
    """Codes of a column in the order of the known categories, whatever type the column has."""
    if key is None:
        return np.zeros(adata.n_obs, np.int64)
    column, lookup = code_column(adata, argument, key), CategoryLookup(known)
    code_of_category = np.array([lookup.find(c) for c in column.categories], np.int64)
    codes: I64 = code_of_category[column.codes]
    if (codes < 0).any():
        unseen = sorted(str(c) for c in np.array(column.categories, object)[code_of_category < 0])
        raise DataError(
            f"obs[{key!r}] ({argument}) holds categories that the model has not seen: "
            f"{list_names(unseen)} ({int((codes < 0).sum())} cells); rename them or leave "
            f"out those cells; {near(unseen[0], known)}"
        )
    return codes


def read_numbers(adata: AnnData, key: str, argument: str) -> F64:
    """A column of numbers; every value must be finite, as float32 too."""
    column = obs_column(adata, argument, key)
    other = ", or declare it under categorical_covariate_keys" * (argument != "size_factor_key")
    try:
        if column.dtype.kind in "cmM":  # complex numbers and times, which NumPy would convert
            raise TypeError
        values = np.asarray(column, np.float64)
    except Exception as error:  # of pandas, NumPy, or of the values themselves
        raise DataError(
            f"obs[{key!r}] ({argument}) must hold numbers, but its type is {column.dtype}"
            f"{_name_text(adata, column)}; convert it{other}."
        ) from error
    least = float(values.min(initial=0))
    if _canonical_text(least) in _MISSING_INTEGERS:
        written = plain_category(column.iloc[int(np.argmin(values))])
        _refuse_missing_integer(adata, argument, key, written, values == least)
    fits = np.abs(values) <= np.finfo(np.float32).max
    if not fits.all():
        cell = int(np.argmin(fits))
        raise DataError(
            f"obs[{key!r}] ({argument}) is {values[cell]:g} for cell {adata.obs_names[cell]!r}, which "
            "is not a finite 32-bit number; replace that value."
        )
    return values


def _name_text(adata: AnnData, column: pd.Series[Any]) -> str:
    """A clause with the first value that is text and no number; empty if there is none."""
    for cell, value in zip(adata.obs_names, column, strict=True):
        if isinstance(value, str):
            try:
                float(value)
            except ValueError:
                return f" (cell {cell!r} has {brief(value)})"
    return ""
