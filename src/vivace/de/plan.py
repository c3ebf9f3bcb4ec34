"""Which cells are compared with which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from pandas.api.types import infer_dtype
from pandas.errors import UndefinedVariableError

from vivace.errors import DataError, OptionError, brief, list_names, near, one_line, warn
from vivace.selection import row_numbers
from vivace.types import Indices, Rows
from vivace.validate import obs_column

Selection = Indices | str | None


@dataclass(frozen=True)
class Comparison:
    """One test: some cells against others.

    Parameters
    ----------
    group1, group2
        Names of the two sides.
    first
        The part of the plan that is the first side.
    second
        The parts that together are the second side.
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
    """Cells divided into parts that do not overlap, and the comparisons of those parts.

    Parameters
    ----------
    parts
        Row numbers of each part.
    comparisons
        Which parts are compared with which.
    groupby
        The column whose categories define the parts; None if rows were given.
    """

    parts: tuple[Rows, ...]
    comparisons: tuple[Comparison, ...]
    groupby: str | None

    def rows(self, parts: Iterable[int]) -> Rows:
        """Row numbers of several parts."""
        return np.concatenate([self.parts[i] for i in parts])


def plan_comparisons(
    adata: AnnData,
    groupby: str | None,
    group1: object,
    group2: object,
    idx1: Selection,
    idx2: Selection,
) -> Plan:
    """Plan what the arguments of ``differential_expression`` ask for.

    Raises
    ------
    DataError, OptionError, ArgumentTypeError
        If a side is empty, if the sides overlap, or if a name is unknown.

    Warns
    -----
    VivaceWarning
        If a side is a single cell.
    """
    if idx1 is None and idx2 is None:
        if groupby is None:
            raise OptionError(
                "There is nothing to compare; name a column of obs as groupby=, or cells as idx1= "
                "and idx2=."
            )
        plan = _plan_groups(adata, groupby, group1, group2)
    else:
        if groupby is not None or group1 is not None or group2 is not None:
            raise OptionError(
                "Cells were given both as rows (idx1, idx2) and as groups (groupby, group1, "
                "group2); leave one of the two out."
            )
        if idx1 is None:
            raise OptionError("idx2 was given without idx1; give idx1 too.")
        plan = _plan_rows(adata, idx1, idx2)
    _warn_about_single_cells(plan)
    return plan


def _warn_about_single_cells(plan: Plan) -> None:
    single: dict[str, Comparison] = {}
    for comparison in plan.comparisons:
        sides = ((comparison.first,), comparison.second)
        for parts, name in zip(sides, (comparison.group1, comparison.group2), strict=True):
            if len(plan.rows(parts)) == 1:
                single[name] = comparison
    if len(single) > 1:
        warn(
            f"Each of {len(single)} groups is one cell ({list_names(list(single))}), so their results "
            "describe these cells and not groups; give them more cells."
        )
    elif single:
        name, comparison = single.popitem()
        warn(
            f"{one_line(comparison.name)}: {brief(name)} is one cell, so the result describes that "
            "cell and not a group; give it more cells."
        )


# ---- cells as rows ----------------------------------------------------------------------


def _plan_rows(adata: AnnData, idx1: Selection, idx2: Selection) -> Plan:
    """One comparison of the rows that were given."""
    first = _sort_rows("idx1", _select_rows(adata, "idx1", idx1))
    if idx2 is None:
        second = np.setdiff1d(np.arange(adata.n_obs), first)
    else:
        second = _sort_rows("idx2", _select_rows(adata, "idx2", idx2))
    for name, rows in (("idx1", first), ("idx2", second)):
        if len(rows) == 0:
            all_taken = idx2 is None and name == "idx2"
            cause = "idx1 selects every cell" if all_taken else f"{name} selects no cells"
            raise DataError(f"One side of the comparison is empty: {cause}; select other cells.")
    shared = np.intersect1d(first, second)
    if len(shared):
        raise DataError(
            f"idx1 and idx2 share {len(shared)} cells (first: {brief(adata.obs_names[shared[0]])}); a "
            "cell can only be on one side."
        )
    names = ("group1", "Rest" if idx2 is None else "group2")
    return Plan((first, second), (Comparison(*names, 0, (1,)),), None)


def _select_rows(adata: AnnData, name: str, selection: Selection) -> Rows:
    """Row numbers from a mask, from row numbers, or from a query of obs."""
    if not isinstance(selection, str):
        return row_numbers(selection, adata.obs_names, name)
    start = f"{name}={brief(selection)}"
    if "@" in selection or "__" in selection:  # Python's own names are not columns
        raise OptionError(
            f"{start} is not a query of obs; compare columns of obs, without @ and __."
        )
    try:
        answer = adata.obs.eval(selection, engine="python")
    except UndefinedVariableError as error:
        column = _undefined_name(error)
        raise OptionError(
            f"{start} asks for {brief(column)}, which is not a column of obs; "
            f"{near(column, adata.obs.columns)}"
        ) from error
    except Exception as error:  # pandas raises errors of many kinds
        raise OptionError(
            f"{start} is not a valid query of obs ({one_line(error)}); compare columns of obs, such "
            "as \"donor == 'd1'\"."
        ) from error
    if not isinstance(answer, pd.Series) or len(answer) != adata.n_obs:
        raise OptionError(
            f"{start} does not evaluate to True or False for each cell; compare a column of obs."
        )
    known = answer.dropna()  # a missing value is no match, as in pandas' query
    if infer_dtype(known) != "boolean" and len(known):
        raise OptionError(
            f"{start} gives {brief(known.tolist()[0])} for cell {brief(known.index[0])} of obs, not True "
            "or False; compare it with a value, such as with ==."
        )
    rows: Rows = np.flatnonzero(answer.notna())[known.to_numpy(bool)]
    return rows


def _undefined_name(error: UndefinedVariableError) -> str:
    """The name in pandas' message: name 'clustr' is not defined."""
    return str(error).removeprefix("name ").removesuffix(" is not defined").strip("'\"")


def _sort_rows(name: str, rows: Rows) -> Rows:
    """The rows in ascending order; each may occur once."""
    unique = np.unique(rows)
    if len(unique) < len(rows):
        raise DataError(
            f"{name} selects {len(rows) - len(unique)} cells more than once; select each once."
        )
    return unique


# ---- cells as groups --------------------------------------------------------------------


def _plan_groups(adata: AnnData, groupby: str, group1: object, group2: object) -> Plan:
    """Each of the groups against another group, or against all other cells."""
    first, second = _read_groups(group1), None if group2 is None else str(group2)
    labels = _read_labels(adata, groupby, complete=first is None or second is None)
    known = [str(c) for c in labels.cat.categories]
    for argument, names in (
        ("group1", first or ()),
        ("group2", () if second is None else (second,)),
    ):
        for name in names:
            if name not in known:
                raise DataError(
                    f"obs[{brief(groupby)}] has no cells of {brief(name)} ({argument}); "
                    f"{near(name, known)}"
                )
    if first is None:
        first = [name for name in known if name != second]
    if second in first:
        raise DataError(
            f"{brief(second)} is both group1 and group2; a cell can only be on one side."
        )
    if len(set(first)) < len(first):
        raise OptionError("group1 names a group twice; name each once.")
    if len(known) == 1:
        raise DataError(
            f"obs[{brief(groupby)}] has only one group, {brief(known[0])}, and nothing to compare it with; "
            "choose another column."
        )
    codes = labels.cat.codes.to_numpy()
    names = first if second is None else [*first, second]
    parts = [np.flatnonzero(codes == known.index(name)) for name in names]
    # All remaining cells are one further part, which is in the rest of every comparison.
    remaining = [i for i, name in enumerate(known) if name not in names]
    if second is None and remaining:
        parts.append(np.flatnonzero(np.isin(codes, remaining)))
    comparisons = []
    for i, name in enumerate(first):
        if second is None:
            rest = tuple(j for j in range(len(parts)) if j != i)
            comparisons.append(Comparison(name, "Rest", i, rest))
        else:
            comparisons.append(Comparison(name, second, i, (len(first),)))
    return Plan(tuple(parts), tuple(comparisons), groupby)


def _read_groups(group1: object) -> list[str] | None:
    if group1 is None:
        return None
    if isinstance(group1, str) or not isinstance(group1, Iterable):
        return [str(group1)]
    names = [str(name) for name in group1]
    if not names:
        raise OptionError("group1 is empty; name a group, or leave it None for each in turn.")
    return names


def _read_labels(adata: AnnData, groupby: object, complete: bool) -> pd.Series[str]:
    """The column as text categories; a cell may lack a value unless ``complete``."""
    column = obs_column(adata, "groupby", groupby, allow_missing=not complete)
    labels = column.astype("category").cat.remove_unused_categories()
    if len({str(c) for c in labels.cat.categories}) < len(labels.cat.categories):
        raise DataError(
            f"obs[{brief(groupby)}] has different values with the same text; rename one."
        )
    return labels.cat.rename_categories([str(c) for c in labels.cat.categories])


# ---- replicates -------------------------------------------------------------------------


def read_replicates(adata: AnnData, sample_key: object, rows: Rows) -> NDArray[np.str_]:
    """The biological sample (donor, mouse) of each cell, by name; "" outside of ``rows``."""
    column = obs_column(adata, "sample_key", sample_key, allow_missing=True).iloc[rows]
    if column.isna().any():
        raise DataError(
            f"obs[{brief(sample_key)}] (sample_key) has no value for {int(column.isna().sum())} of the "
            "cells that are compared; fill it in."
        )
    names = np.array([str(name) for name in column])
    replicates = np.full(adata.n_obs, "", dtype=names.dtype)
    replicates[rows] = names
    return replicates
