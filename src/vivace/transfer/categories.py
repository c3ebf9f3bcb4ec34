"""The new categories of a query, after those of the reference."""

from __future__ import annotations

from dataclasses import replace

from anndata import AnnData

from vivace.data.columns import CategoryLookup, read_categories
from vivace.data.schema import Declarations, Schema
from vivace.errors import DataError, MissingColumnError, near
from vivace.types import Category


def extend_schema(schema: Schema, adata: AnnData, *, labels: bool) -> Schema:
    """The reference's schema with the query's new categories after the known ones.

    Parameters
    ----------
    schema
        The schema of the reference.
    adata
        The query.
    labels
        Whether the model reads labels; if it does not, the query needs none.

    Raises
    ------
    DataError
        If a declared column is missing, or contains a category that may be one of the reference,
        such as True for 1.
    """
    d = schema.declarations
    if not labels:
        d = replace(d, labels_key=None)
    _check_columns(d, adata)
    return Schema(
        declarations=d,
        genes=schema.genes,
        batches=_add_new(schema.batches, adata, d.batch_key, "batch_key"),
        labels=_add_new(schema.labels, adata, d.labels_key, "labels_key") if labels else (0,),
        categories=tuple(
            _add_new(known, adata, key, "categorical_covariate_keys")
            for key, known in zip(d.categorical_covariate_keys, schema.categories, strict=True)
        ),
        scales=schema.scales,
    )


def _check_columns(d: Declarations, adata: AnnData) -> None:
    """Name the first declared column that the query lacks, and near matches."""
    if d.batch_key is not None and d.batch_key not in adata.obs:
        raise MissingColumnError(
            f"The query has no column {d.batch_key!r} in obs, the batch of the reference; name its "
            f"batch with query.obs[{d.batch_key!r}] = 'query'; {near(d.batch_key, adata.obs)}"
        )
    if d.labels_key is not None and d.labels_key not in adata.obs:
        raise MissingColumnError(
            f"The query has no column {d.labels_key!r} in obs, whose labels have their own "
            f"dispersions in the reference; label it with query.obs[{d.labels_key!r}] = 'Unknown'."
        )


def _add_new(
    known: tuple[Category, ...], adata: AnnData, key: str | None, argument: str
) -> tuple[Category, ...]:
    """The known categories and, after them, the new ones of a column of the query."""
    if key is None:
        return known
    lookup = CategoryLookup(known)
    new = [c for c in read_categories(adata, key, argument) if lookup.find(c) < 0]
    for value in new:
        match = next((k for k in known if _may_be_same(k, value)), None)
        if match is not None:
            raise DataError(
                f"obs[{key!r}] ({argument}) holds {value!r} ({type(value).__name__}), which may be the "
                f"{match!r} ({type(match).__name__}) of the reference; if it is, convert it with "
                f"query.obs[{key!r}] = query.obs[{key!r}]{_conversion(value, match)}, else rename it."
            )
    return (*known, *new)


def _conversion(value: Category, target: Category) -> str:
    """The pandas code that converts a column with ``value`` into one with ``target``."""
    if isinstance(target, bool):
        return f"{'.astype(float)' if isinstance(value, str) else ''}.astype(bool)"
    if not isinstance(target, str):
        needs_float = isinstance(target, int) and isinstance(value, str) and not value.isdigit()
        return f"{'.astype(float)' if needs_float else ''}.astype({type(target).__name__})"
    number, text = "", str(value)
    if isinstance(value, bool):
        whole = target.isdigit()
        number = ".astype(int)" if whole else ".astype(float)"
        text = str(int(value) if whole else float(value))
    rename = "" if text == target else f".replace({text!r}, {target!r})"
    return f"{number}.astype(str){rename}"


def _may_be_same(first: Category, second: Category) -> bool:
    """Whether two categories may be intended to be the same: 1, True and "01", or "0" and "0.0"."""
    if type(first) is type(second) and not isinstance(first, str):
        return False
    try:
        return float(first) == float(second)
    except ValueError:
        return False
