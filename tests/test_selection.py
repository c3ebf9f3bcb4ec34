"""Masks and row numbers, in whatever form they come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from vivace.errors import ArgumentTypeError, DataError, OptionError
from vivace.selection import gene_mask, row_numbers

CELLS = pd.Index([f"c{i}" for i in range(6)])
MASK = np.array([True, False, False, True, True, False])
ROWS = [0, 3, 4]
SHUFFLED = CELLS[[3, 1, 2, 0, 5, 4]]


def named(values=MASK, index=CELLS, dtype=None):
    return pd.Series(values, index=index, dtype=dtype)


MASKS = {
    "array": MASK,
    "list": MASK.tolist(),
    "tuple": tuple(MASK),
    "objects": MASK.astype(object),
    "tensor": torch.from_numpy(MASK),
    "index": pd.Index(MASK),
    "masked array": np.ma.array(MASK, mask=False),
    "sparse": pd.arrays.SparseArray(MASK),
    "Series": named(),
    "numbered Series": pd.Series(MASK),
    "nullable": named(dtype="boolean"),
    "objects in a Series": named(dtype=object),
    "categories": named(pd.Categorical(MASK.tolist())),
    "column": pd.DataFrame({"mask": named()})["mask"],
    "another order": named()[SHUFFLED],
    "nullable in another order": named(dtype="boolean")[SHUFFLED],
    "categories as names": named(index=pd.CategoricalIndex(CELLS)),
}
NUMBERS = {
    "list": [0, 3, 4],
    "from the end": [-6, -3, 4],
    "whole floats": [0.0, 3.0, 4.0],
    "array of floats": np.array([0.0, 3.0, 4.0], np.float32),
    "unsigned": np.array([0, 3, 4], np.uint64),
    "floats and integers": [0, 3.0, 4],
    "objects": np.array([0, 3, 4], object),
    "tensor": torch.tensor([0, 3, 4]),
    "Series": pd.Series([0, 3, 4], index=["x", "y", "z"]),
    "nullable": pd.array([0, 3, 4], dtype="Int64"),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(mask):
    rows = row_numbers(mask, CELLS)
    assert rows.tolist() == ROWS
    assert rows.dtype == np.int64


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_row_numbers(numbers):
    rows = row_numbers(numbers, CELLS)
    assert rows.tolist() == ROWS
    assert rows.dtype == np.int64


def test_none_is_all_and_an_empty_list_none():
    assert row_numbers(None, CELLS).tolist() == list(range(6))
    assert row_numbers([], CELLS).tolist() == []
    assert row_numbers(range(6), CELLS).tolist() == list(range(6))


@pytest.mark.parametrize("indices", [[0], [0, 1], [1, 0], [0.0, 1.0]])
def test_as_many_numbers_as_cells_are_rows_if_each_is_there_once(indices):
    assert row_numbers(indices, CELLS[: len(indices)]).tolist() == indices


@pytest.mark.parametrize(
    "make",
    [
        np.asarray,
        list,
        torch.tensor,
        named,
        lambda x: np.asarray(x, float),
        lambda x: np.asarray(x, object),
        lambda x: named(x, dtype="Int64"),
        lambda x: named(x)[SHUFFLED],
        lambda x: pd.array([1, None, 0, 1, 1, 0], dtype="Int64"),
        lambda x: named(np.where(x == 1, 1.0, np.nan)),
    ],
)
def test_a_mask_of_numbers_is_refused_with_the_line_that_makes_it_one(refused, make):
    indices = make(MASK.astype(int))
    with refused(OptionError, "indices holds only 0 and 1", "mask of 6 cells") as caught:
        row_numbers(indices, CELLS)
    line = str(caught.value).partition(" with ")[2].removesuffix(".")
    assert line.endswith(".astype(bool)")
    mask = eval(line, {"indices": indices, "np": np, "pd": pd})
    assert row_numbers(mask, CELLS).tolist() == ROWS


@pytest.mark.parametrize("mask", [np.zeros(6, int), np.ones(6, int)])
def test_a_mask_of_only_0_or_only_1_is_refused(refused, mask):
    with refused(OptionError, "idx1 holds only 0 and 1", "idx1.astype(bool)"):
        row_numbers(mask, CELLS, "idx1")


def test_a_mask_of_numbers_for_other_cells_is_refused(refused):
    with refused(OptionError, "only 0 and 1", "mask of 4 cells"):
        row_numbers(named([1, 0, 0, 1], CELLS[:4]), CELLS)


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (named([True, None, False, True, None, False], dtype="boolean"), ("2 of 6", "fillna")),
        (named([True, None, False, True, None, False], dtype=object), ("2 of 6", "fillna")),
        (named([True, None] + [False] * 4, dtype="boolean")[SHUFFLED], ("1 of 6", "fillna")),
        ([True, None, False, True, np.nan, pd.NA], ("3 of 6", "True or False")),
        (np.ma.array(MASK, mask=[1, 0, 0, 0, 0, 0]), ("1 of 6", "True or False")),
        ([0, None, 3], ("1 of 3", "drop them")),
        ([0.0, np.nan], ("1 of 2", "drop them")),
    ],
)
def test_missing_values_are_counted(refused, mask, parts):
    with refused(DataError, "indices has no value for", *parts):
        row_numbers(mask, CELLS)


@pytest.mark.parametrize("dtype", ["boolean", "object"])
def test_missing_values_are_filled_in_as_the_message_says(refused, dtype):
    indices = named([True, None, None, True, True, False], dtype=dtype)[SHUFFLED]
    with refused(DataError, "give indices.", "fillna(False).") as caught:
        row_numbers(indices, CELLS)
    line = str(caught.value).partition("give ")[2].removesuffix(".")
    assert row_numbers(eval(line, {"indices": indices}), CELLS).tolist() == ROWS


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (named()[:4], ("lacks 2 of 6 cells", "'c4'")),
        (named(index=list("abcdef")), ("lacks 6 of 6 cells", "'c0'")),
        (pd.Series(MASK)[::-1], ("lacks 6 of 6 cells",)),
        (named(index=[*CELLS[:5], "c0"]), ("lacks 1 of 6 cells", "'c5'")),
        (named([True] * 7, [*CELLS, "c0"]), ("names a cell more than once",)),
        (named(index=pd.MultiIndex.from_product([[0], CELLS])), ("lacks 6",)),
    ],
)
def test_a_mask_of_other_cells_is_refused(refused, mask, parts):
    with refused(DataError, "indices is a Series whose index", "adata.obs_names", *parts):
        row_numbers(mask, CELLS)


def test_a_mask_of_more_cells_is_cut_as_the_message_says(refused):
    indices = named([False, *MASK], ["x", *CELLS])[::-1]
    with refused(DataError, "1 others", "give indices.reindex(adata.obs_names)."):
        row_numbers(indices, CELLS)
    assert row_numbers(indices.reindex(CELLS), CELLS).tolist() == ROWS


@pytest.mark.parametrize("n", [0, 2, 7])
def test_a_mask_of_another_length_is_refused(refused, n):
    for mask in (np.ones(n, bool), pd.Series([True] * n, dtype=bool)):
        with refused(OptionError, f"mask of {n} values for 6 cells", "one value per cell"):
            row_numbers(mask, CELLS)


def test_cells_that_are_called_by_numbers(refused):
    """A counting index may be names or positions."""
    cells = pd.Index(["2", "0", "1"])
    mask = pd.Series([True, False, False])
    with refused(DataError, "names of the cells or their positions"):
        row_numbers(mask, cells)
    assert row_numbers(mask.to_numpy(), cells).tolist() == [0]
    assert row_numbers(mask.set_axis(mask.index.astype(str)), cells).tolist() == [1]
    assert row_numbers(mask, cells.sort_values()).tolist() == [0]
    assert row_numbers(pd.Series([True, False, False], index=[1, 2, 0]), cells).tolist() == [2]


def test_names_are_refused_with_the_mask_that_they_mean(refused):
    for names in (CELLS[ROWS], list(CELLS[ROWS]), named(list(CELLS)).iloc[ROWS]):
        with refused(ArgumentTypeError, "'c0'", "adata.obs_names.isin(indices)"):
            row_numbers(names, CELLS)
        assert row_numbers(CELLS.isin(names), CELLS).tolist() == ROWS


def test_words_are_refused_with_the_mask_that_they_mean(refused):
    indices = named(MASK.astype(str))[SHUFFLED]
    with refused(ArgumentTypeError, "give the mask indices == 'True'."):
        row_numbers(indices, CELLS)
    assert row_numbers(indices == "True", CELLS).tolist() == ROWS
    indices = MASK.astype(str).tolist()
    with refused(ArgumentTypeError, "give the mask np.asarray(indices) == 'True'."):
        row_numbers(indices, CELLS)
    assert row_numbers(np.asarray(indices) == "True", CELLS).tolist() == ROWS


@pytest.mark.parametrize(
    ("indices", "error", "parts"),
    [
        ([6], OptionError, ("6", "6 cells")),
        ([10**30], OptionError, ("holds 1" + 30 * "0",)),
        (np.array([2**64 - 1], np.uint64), OptionError, (str(2**64 - 1),)),
        ([2.5], ArgumentTypeError, ("2.5",)),
        ([np.inf], ArgumentTypeError, ("inf",)),
        ([True, 2], ArgumentTypeError, ("bool, int",)),
        (5, ArgumentTypeError, ("one-dimensional", "5")),
        (np.array(5), ArgumentTypeError, ("one-dimensional", "5")),
        ("donor == 'd1'", ArgumentTypeError, ("integers or a mask",)),
        (slice(3), ArgumentTypeError, ("slice",)),
        ({1, 2}, ArgumentTypeError, ("{1, 2}",)),
        ({"a": 1}, ArgumentTypeError, ("{'a': 1}",)),
        (object(), ArgumentTypeError, ("object",)),
        (np.eye(6, dtype=bool), ArgumentTypeError, ("(6, 6)",)),
        (pd.DataFrame({"mask": MASK}), ArgumentTypeError, ("(6, 1)", "one column")),
        ([[1], [1, 2]], ArgumentTypeError, ("list",)),
        ([1j], ArgumentTypeError, ("complex",)),
        (pd.to_datetime(["2020-01-01"]), ArgumentTypeError, ("datetime64",)),
    ],
)
def test_what_is_neither_is_refused(refused, indices, error, parts):
    with refused(error, "indices", *parts):
        row_numbers(indices, CELLS)


# ---- genes ---------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_of_genes(mask):
    assert np.flatnonzero(gene_mask(mask, CELLS)).tolist() == ROWS


@pytest.mark.parametrize(
    "names", [["c0"], CELLS, pd.Series(["c0"]), np.array(["c0"]), [], ["a", 1]]
)
def test_names_of_genes_are_no_mask(names):
    assert gene_mask(names, CELLS) is None


def test_wrong_masks_of_genes_are_refused(refused):
    with refused(OptionError, "gene_list holds only 0 and 1", "gene_list.astype(bool)"):
        gene_mask(MASK.astype(int), CELLS)
    with refused(OptionError, "gene_list is a mask of 5 values for 6 genes"):
        gene_mask(MASK[:5], CELLS)
    with refused(DataError, "lacks 1 of 6 genes", "'c5'", "model.schema.genes"):
        gene_mask(named()[:5], CELLS)
    with refused(DataError, "gene_list has no value for 1 of 6 genes", "gene_list.fillna(False)"):
        gene_mask(named([True, None] + [False] * 4, dtype="boolean"), CELLS)


def test_a_mask_of_some_cells_as_numbers_is_refused_but_repeated_rows_are_not(refused):
    with refused(OptionError, "like a mask of 10 cells"):
        row_numbers([0, 1] * 5, CELLS)
    assert row_numbers([0] * 10, CELLS).tolist() == [0] * 10
    assert row_numbers([0, 1, 0], CELLS).tolist() == [0, 1, 0]
    assert row_numbers([0, 1] * 5, CELLS, repeats=True).tolist() == [0, 1] * 5


@pytest.mark.parametrize(("true", "false"), [("TRUE", "FALSE"), ("True", "False"), ("T", "F")])
def test_a_mask_of_text_is_read_as_the_message_says(refused, true, false):
    indices = [true, false] * 3
    with refused(ArgumentTypeError, f"give the mask np.asarray(indices) == {true!r}"):
        row_numbers(indices, CELLS)
    assert row_numbers(np.asarray(indices) == true, CELLS).tolist() == [0, 2, 4]


def test_a_categorical_mask_is_filled_in_as_the_message_says(refused):
    indices = pd.Series([True, None, False] * 2, index=CELLS, dtype="category")
    with refused(DataError, "give indices.astype('boolean').fillna(False)"):
        row_numbers(indices, CELLS)
    assert row_numbers(indices.astype("boolean").fillna(False), CELLS).tolist() == [0, 3]
