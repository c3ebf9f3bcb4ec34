"""Declared columns that are refused or doubted, because of what they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivace.data.columns import CodedColumn, Columns, describe_missing_texts
from vivace.data.fingerprint import spread_places
from vivace.data.schema import Declarations, Schema
from vivace.errors import OptionError, list_names

_PLACES = 2048  # cells that are compared before all
_SAME = 1e-4  # standard deviations between two covariates that are one


def refuse_repeated_columns(d: Declarations) -> None:
    """Refuse a column that is declared as two covariates."""
    covariates = {
        "batch_key": () if d.batch_key is None else (d.batch_key,),
        "categorical_covariate_keys": d.categorical_covariate_keys,
        "continuous_covariate_keys": d.continuous_covariate_keys,
    }
    declared: dict[str, str] = {}
    for argument, keys in covariates.items():
        for key in keys:
            other = declared.setdefault(key, argument)
            if keys.count(key) > 1:
                raise OptionError(f"{argument} names the column {key!r} twice; name it once.")
            if other != argument:
                raise OptionError(
                    f"The column {key!r} is declared twice, in {other} and {argument}; leave it "
                    "out of one of them."
                )


def find_missing_texts(
    schema: Schema, columns: Columns, known: Schema | None = None
) -> Iterator[str]:
    """A sentence for each column with a category such as "NA" that ``known`` does not have."""
    reference = {} if known is None else {c.key: c.categories for c in _coded(known, columns)}
    for column in _coded(schema, columns):
        if sentence := describe_missing_texts(column, reference.get(column.key, ())):
            yield sentence


def find_overlap(schema: Schema, columns: Columns) -> str | None:
    """A sentence about covariates that determine each other; None if there are none.

    The model divides an effect between such columns as it likes.
    """
    d = schema.declarations
    coded = [c for c in _coded(schema, columns) if c.argument != "labels_key"]
    coded = [c for c in coded if len(c.categories) > 1]  # one category is nested in all
    numbers = dict(
        zip(d.continuous_covariate_keys, np.ascontiguousarray(columns.continuous.T), strict=True)
    )
    numbers = {key: values for key, values in numbers.items() if np.ptp(values) > 0}
    alike, nested = [], []
    categorical = False
    for a, b in combinations(coded, 2):
        a_in_b = len(a.categories) >= len(b.categories) and _determines(a, b.codes)
        b_in_a = len(b.categories) >= len(a.categories) and _determines(b, a.codes)
        categorical |= a_in_b or b_in_a
        if a_in_b and b_in_a:
            alike.append(f"{a.key!r} and {b.key!r} divide the cells alike")
        elif a_in_b or b_in_a:
            inner, outer = (a, b) if a_in_b else (b, a)
            nested.append(f"each {inner.key!r} has one {outer.key!r}")
    for a in coded:
        nested += [
            f"each {a.key!r} has one {key!r}" for key in numbers if _determines(a, numbers[key])
        ]
    for first, second in combinations(numbers, 2):
        a, b = numbers[first], numbers[second]
        if min(np.abs(a - b).max(), np.abs(a + b).max()) < _SAME:
            alike.append(f"{first!r} and {second!r} are the same up to their unit")
    if not alike and not nested:
        return None
    found = alike + nested
    count = f"{len(found)} pairs, " if len(found) > 1 else ""
    decode = ", or give transform_batch a category of each" if categorical else ""
    return (
        f"Declared columns overlap: {count}{list_names(found, form=str)}; decoding as another "
        "category of one leaves the part of an effect that the model assigns to the other, so leave "
        f"one of them out{decode}."
    )


def _determines(column: CodedColumn, values_n: NDArray[Any]) -> bool:
    """Whether all cells of a category have one value."""
    value_of_category = np.empty(len(column.categories), values_n.dtype)
    for cells in (spread_places(len(values_n), _PLACES), slice(None)):
        codes, values = column.codes[cells], values_n[cells]
        value_of_category[codes] = values
        if not (value_of_category[codes] == values).all():
            return False
    return True


def _coded(schema: Schema, columns: Columns) -> list[CodedColumn]:
    """The batch, the labels and the categorical covariates, as far as they are declared."""
    d = schema.declarations
    covariates = zip(
        d.categorical_covariate_keys,
        schema.categories,
        np.ascontiguousarray(columns.categorical.T),
        strict=True,
    )
    coded = [
        ("batch_key", d.batch_key, schema.batches, columns.batch),
        ("labels_key", d.labels_key, schema.labels, columns.labels),
        *(("categorical_covariate_keys", *covariate) for covariate in covariates),
    ]
    return [CodedColumn(a, key, known, codes) for a, key, known, codes in coded if key is not None]
