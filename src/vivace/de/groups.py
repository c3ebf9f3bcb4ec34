"""Which cells are compared with which."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from vivace.errors import ArgumentTypeError, DataError, OptionError, VivaceWarning, near
from vivace.types import Indices, Rows
from vivace.validate import any_column_of, column_of, row_numbers

Chosen = Indices | str | None


@dataclass(frozen=True)
class Comparison:
    """One test: some cells against others.

    Parameters
    ----------
    group1, group2
        Names of the two sides.
    first
        Which part of the cells is the first side.
    second
        Which parts together are the other.
    """

    group1: str
    group2: str
    first: int
    second: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.group1} vs {self.group2}"


@dataclass(frozen=True)
class Plan:
    """Cells cut into parts that do not overlap, and what is compared.

    Parameters
    ----------
    parts
        Row numbers of each part.
    comparisons
        Of parts.
    groupby
        The column that the parts are categories of; None where rows were given.
    """

    parts: tuple[Rows, ...]
    comparisons: tuple[Comparison, ...]
    groupby: str | None

    def rows(self, parts: Iterable[int]) -> Rows:
        """Row numbers of several parts."""
        return np.concatenate([self.parts[i] for i in parts])


def plan(
    adata: AnnData,
    groupby: str | None,
    group1: object,
    group2: object,
    idx1: Chosen,
    idx2: Chosen,
) -> Plan:
    """What the arguments of ``differential_expression`` ask for.

    Raises
    ------
    DataError, OptionError, ArgumentTypeError
        If a side is empty, if sides overlap, or if a name is unknown.

    Warns
    -----
    VivaceWarning
        If a side is one cell.
    """
    if idx1 is None and idx2 is None:
        if groupby is None:
            raise OptionError(
                "Say what is compared: a column of obs as groupby=, or cells as idx1= and idx2=."
            )
        found = _of_column(adata, groupby, group1, group2)
    else:
        if groupby is not None or group1 is not None or group2 is not None:
            raise OptionError(
                "Cells were given both as rows (idx1, idx2) and as groups (groupby, group1, group2); "
                "leave one of the two out."
            )
        if idx1 is None:
            raise OptionError("idx2 says what is compared with idx1; give idx1 too.")
        found = _of_rows(adata, idx1, idx2)
    _warn_of_one_cell(found)
    return found


def _warn_of_one_cell(found: Plan) -> None:
    for comparison in found.comparisons:
        sides = ((comparison.first,), comparison.second)
        for parts, name in zip(sides, (comparison.group1, comparison.group2), strict=True):
            if len(found.rows(parts)) == 1:
                warnings.warn(
                    f"{comparison.name}: {name!r} is one cell, so that the result is about that cell "
                    "and not about a group; give it more cells.",
                    VivaceWarning,
                    stacklevel=4,
                )


def _of_rows(adata: AnnData, idx1: Chosen, idx2: Chosen) -> Plan:
    first = _unique("idx1", _rows(adata, "idx1", idx1))
    if idx2 is None:
        second = np.setdiff1d(np.arange(adata.n_obs), first)
    else:
        second = _unique("idx2", _rows(adata, "idx2", idx2))
    for name, rows in (("idx1", first), ("idx2", second)):
        if len(rows) == 0:
            what = (
                "idx1 names every cell" if idx2 is None and name == "idx2" else f"{name} names none"
            )
            raise DataError(
                f"{what}, so that one side of the comparison is empty; name other cells."
            )
    both = np.intersect1d(first, second)
    if len(both):
        raise DataError(
            f"idx1 and idx2 share {len(both)} cells (first: {adata.obs_names[both[0]]!r}); a cell "
            "belongs to one side."
        )
    names = ("group1", "Rest" if idx2 is None else "group2")
    return Plan((first, second), (Comparison(*names, 0, (1,)),), None)


def _rows(adata: AnnData, name: str, chosen: Chosen) -> Rows:
    if isinstance(chosen, pd.Series):
        named = not isinstance(chosen.index, pd.RangeIndex)
        if chosen.dtype == bool and named and not chosen.index.equals(adata.obs_names):
            if not chosen.index.is_unique or set(chosen.index) != set(adata.obs_names):
                raise DataError(
                    f"{name} is a Series whose index is not obs_names; give one value for each cell."
                )
            chosen = chosen.reindex(adata.obs_names)
        chosen = np.asarray(chosen)
    if not isinstance(chosen, str):
        try:
            return row_numbers(chosen, adata.n_obs)
        except (OptionError, ArgumentTypeError) as error:
            raise type(error)(str(error).replace("indices", name)) from None
    try:
        if "@" in chosen or "__" in chosen:  # names of Python, which are nobody's columns
            raise ValueError("a query compares columns of obs, without @ and __")
        found = adata.obs.eval(chosen)
        if not isinstance(found, pd.Series) or found.dtype != bool:
            raise TypeError("it is no condition on the cells")
        return np.flatnonzero(found.to_numpy())
    except Exception as error:  # whatever pandas makes of it
        raise OptionError(
            f"{name}={chosen!r} cannot be asked of obs ({' '.join(str(error).split())}); "
            f"{near(chosen, adata.obs.columns)}"
        ) from error


def _unique(name: str, rows: Rows) -> Rows:
    found = np.unique(rows)
    if len(found) < len(rows):
        raise DataError(
            f"{name} names {len(rows) - len(found)} cells more than once; name each once."
        )
    return found


def _of_column(adata: AnnData, groupby: str, group1: object, group2: object) -> Plan:
    first, second = _listed(group1), None if group2 is None else str(group2)
    labels = _labels(adata, groupby, complete=first is None or second is None)
    known = [str(c) for c in labels.cat.categories]
    for argument, names in (
        ("group1", first or ()),
        ("group2", () if second is None else (second,)),
    ):
        for name in names:
            if name not in known:
                raise DataError(
                    f"obs[{groupby!r}] has no cells of {name!r} ({argument}); {near(name, known)}"
                )
    if first is None:
        first = [name for name in known if name != second]
    if second in first:
        raise DataError(f"{second!r} is both group1 and group2; a cell belongs to one side.")
    if len(set(first)) < len(first):
        raise OptionError("group1 names a group twice; name each once.")
    if len(known) == 1:
        raise DataError(
            f"obs[{groupby!r}] has one group only, {known[0]!r}, so that there is nothing to compare "
            "it with; choose another column."
        )
    codes = labels.cat.codes.to_numpy()
    names = first if second is None else [*first, second]
    parts = [np.flatnonzero(codes == known.index(name)) for name in names]
    others = [i for i, name in enumerate(known) if name not in names]
    if second is None and others:
        parts.append(np.flatnonzero(np.isin(codes, others)))
    against = "Rest" if second is None else second
    comparisons = tuple(
        Comparison(
            name,
            against,
            i,
            tuple(j for j in range(len(parts)) if j != i) if second is None else (len(first),),
        )
        for i, name in enumerate(first)
    )
    return Plan(tuple(parts), comparisons, groupby)


def _listed(group1: object) -> list[str] | None:
    if group1 is None:
        return None
    if isinstance(group1, str) or not isinstance(group1, Iterable):
        return [str(group1)]
    names = [str(name) for name in group1]
    if not names:
        raise OptionError("group1 is empty; name a group, or leave it None for each in turn.")
    return names


def _labels(adata: AnnData, groupby: object, complete: bool) -> pd.Series[str]:
    """The column as text categories; without ``complete`` cells may have none."""
    column = (column_of if complete else any_column_of)(adata, "groupby", groupby)
    text = column.astype("category").cat.remove_unused_categories()
    if len({str(c) for c in text.cat.categories}) < len(text.cat.categories):
        raise DataError(
            f"obs[{groupby!r}] has different values that read the same as text; rename one."
        )
    return text.cat.rename_categories([str(c) for c in text.cat.categories])


def samples_of(adata: AnnData, sample_key: object, cells: Rows) -> NDArray[np.str_]:
    """The sample of each of these cells, by name."""
    used = any_column_of(adata, "sample_key", sample_key).iloc[cells]
    if used.isna().any():
        raise DataError(
            f"obs[{sample_key!r}] (sample_key) has no value for {int(used.isna().sum())} of the cells "
            "that are compared; fill it in."
        )
    return np.array([str(name) for name in used])
