"""Which cells are compared: groups and rows become parts; impossible comparisons are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vivace.de.plan import plan_comparisons, read_replicates
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    VivaceWarning,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is one cell")
KINDS = ["B", "NK", "T", "B", "T", "T", "NK", "B", "T", "DC"]
LABELS = np.array(KINDS)


def made(kinds=KINDS, **columns):
    obs = pd.DataFrame(
        {"kind": kinds, "age": np.arange(len(kinds)), **columns},
        index=[f"cell{i}" for i in range(len(kinds))],
    )
    return AnnData(np.ones((len(kinds), 2), np.float32), obs=obs)


def make_comparisons(adata=None, groupby=None, group1=None, group2=None, idx1=None, idx2=None):
    return plan_comparisons(made() if adata is None else adata, groupby, group1, group2, idx1, idx2)


def get_rows(result):
    """The rows of both sides of each comparison, by its names."""
    return {
        (c.group1, c.group2): (
            sorted(result.parts[c.first].tolist()),
            sorted(result.rows(c.second).tolist()),
        )
        for c in result.comparisons
    }


def where(*names):
    return np.flatnonzero(np.isin(LABELS, names)).tolist()


# ---- groups of a column ------------------------------------------------------


def test_two_named_groups_are_compared():
    result = make_comparisons(groupby="kind", group1="B", group2="T")
    assert get_rows(result) == {("B", "T"): (where("B"), where("T"))}
    assert result.comparisons[0].name == "B vs T"
    assert result.groupby == "kind"


@pytest.mark.parametrize(
    ("group1", "names"),
    [
        (None, ["B", "DC", "NK", "T"]),
        ("T", ["T"]),
        (["T"], ["T"]),
        (["T", "B"], ["T", "B"]),
        (("NK", "B", "T"), ["NK", "B", "T"]),
        (np.array(["NK", "T", "DC", "B"]), ["NK", "T", "DC", "B"]),
        (pd.Index(["DC", "B"]), ["DC", "B"]),
    ],
    ids=str,
)
def test_without_group2_each_is_compared_with_all_other_cells_once(group1, names):
    result = make_comparisons(groupby="kind", group1=group1)
    assert [c.group1 for c in result.comparisons] == names
    assert {c.group2 for c in result.comparisons} == {"Rest"}
    for (name, _), (first, second) in get_rows(result).items():
        assert first == where(name)
        assert second == sorted(set(range(len(KINDS))) - set(first))
    every = np.concatenate(result.parts)
    assert sorted(every.tolist()) == list(range(len(KINDS)))


@pytest.mark.parametrize(
    ("group1", "names"), [(None, ["B", "DC", "NK"]), (["NK", "B"], ["NK", "B"]), ("DC", ["DC"])]
)
def test_with_group2_each_is_compared_with_it(group1, names):
    result = make_comparisons(groupby="kind", group1=group1, group2="T")
    wanted = {(name, "T"): (where(name), where("T")) for name in names}
    assert get_rows(result) == wanted
    assert [c.group1 for c in result.comparisons] == names


@pytest.mark.parametrize("values", [[0, 1, 0, 1], [True, False, True, False], [0.5, 1.5, 0.5, 1.5]])
def test_groups_may_be_numbers_or_truths(values):
    adata = made(["B"] * 4, other=values)
    result = get_rows(make_comparisons(adata, "other", values[0], values[1]))
    assert result == {(str(values[0]), str(values[1])): ([0, 2], [1, 3])}


def test_unused_categories_are_no_groups():
    adata = made()
    adata.obs["kind"] = pd.Categorical(KINDS, ["T", "unused", "NK", "DC", "B"])
    result = make_comparisons(adata, "kind")
    assert [c.group1 for c in result.comparisons] == ["T", "NK", "DC", "B"]


def test_cells_of_no_group_are_left_out_where_both_groups_are_named():
    adata = made([None if i in (3, 8) else k for i, k in enumerate(KINDS)])
    result = get_rows(make_comparisons(adata, "kind", "B", "T"))
    assert result == {("B", "T"): ([0, 7], [2, 4, 5])}


@pytest.mark.parametrize(
    "arguments", [{}, {"group1": "B"}, {"group2": "T"}, {"group1": ["B", "T"]}]
)
def test_cells_of_no_group_are_refused_where_the_column_says_who_is_compared(refused, arguments):
    adata = made([None if i in (3, 8) else k for i, k in enumerate(KINDS)])
    with refused(DataError, "'kind'", "groupby", "2 cells", "fill it in"):
        make_comparisons(adata, "kind", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"groupby": "kin"}, MissingColumnError, ("'kin'", "did you mean 'kind'")),
        ({"groupby": 3}, ArgumentTypeError, ("groupby", "3")),
        ({"groupby": "kind", "group1": "NKT"}, DataError, ("'NKT'", "group1", "'NK'")),
        ({"groupby": "kind", "group1": ["B", "NKT"]}, DataError, ("'NKT'", "group1", "'NK'")),
        ({"groupby": "kind", "group1": "B", "group2": "x"}, DataError, ("'x'", "group2", "'DC'")),
        ({"groupby": "kind", "group1": "B", "group2": "B"}, DataError, ("'B'", "both")),
        ({"groupby": "kind", "group1": ["T", "B"], "group2": "B"}, DataError, ("'B'", "both")),
        ({"groupby": "kind", "group1": ["B", "B"]}, OptionError, ("group1", "twice")),
        ({"groupby": "kind", "group1": []}, OptionError, ("group1", "empty")),
        ({"group1": "B"}, OptionError, ("groupby=",)),
        ({}, OptionError, ("groupby=", "idx1=")),
        ({"groupby": "kind", "idx1": [0]}, OptionError, ("idx1", "groupby", "leave one")),
        ({"group1": "B", "idx1": [0]}, OptionError, ("idx1", "groupby", "leave one")),
        ({"group2": "B", "idx2": [0]}, OptionError, ("idx1", "groupby", "leave one")),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_groups_are_refused(refused, arguments, error, parts):
    with refused(error, *parts):
        make_comparisons(**arguments)


def test_a_column_of_one_group_has_nothing_to_compare(refused):
    for arguments in ({}, {"group1": "B"}):
        with refused(DataError, "'kind'", "'B'", "only one group"):
            make_comparisons(made(["B"] * 3), "kind", **arguments)


def test_values_that_read_the_same_are_refused(refused):
    adata = made(["B"] * 3)
    adata.obs["mixed"] = pd.Categorical([1, "1", 1], [1, "1"])
    with refused(DataError, "'mixed'", "the same text"):
        make_comparisons(adata, "mixed")


# ---- rows --------------------------------------------------------------------

MASK = np.isin(np.arange(10), [1, 4, 9])


@pytest.mark.parametrize(
    "idx1",
    [
        MASK,
        MASK.tolist(),
        pd.Series(MASK),
        [4, 1, 9],
        [-1, 4, -9],
        np.array([9, 4, 1], np.uint8),
        "age in [1, 4, 9]",
        "age == 9 or (kind == 'NK' and age < 5) or age == 4",
    ],
    ids=str,
)
def test_rows_are_a_mask_numbers_or_a_query(idx1):
    rest = [0, 2, 3, 5, 6, 7, 8]
    assert get_rows(make_comparisons(idx1=idx1)) == {("group1", "Rest"): ([1, 4, 9], rest)}
    result = make_comparisons(idx1=idx1, idx2=[5, 0])
    assert get_rows(result) == {("group1", "group2"): ([1, 4, 9], [0, 5])}
    assert result.groupby is None
    assert get_rows(make_comparisons(idx1=[5, 0], idx2=idx1)) == {
        ("group1", "group2"): ([0, 5], [1, 4, 9])
    }


def test_a_query_is_of_columns_whatever_the_cells_are_called():
    adata = made()
    adata.obs_names = ["twin"] * 10
    assert get_rows(make_comparisons(adata, idx1="kind == 'DC'"))["group1", "Rest"][0] == [9]


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"idx1": []}, DataError, ("idx1", "empty")),
        ({"idx1": np.zeros(10, bool)}, DataError, ("idx1", "empty")),
        ({"idx1": "age > 99"}, DataError, ("idx1", "empty")),
        ({"idx1": [0], "idx2": []}, DataError, ("idx2", "empty")),
        ({"idx1": np.ones(10, bool)}, DataError, ("idx1", "every cell", "empty")),
        ({"idx1": [0, 1, 4], "idx2": [4, 1]}, DataError, ("2 cells", "'cell1'", "one side")),
        ({"idx1": [0, 3, 0]}, DataError, ("idx1", "1 cells", "more than once")),
        ({"idx1": [0, -10]}, DataError, ("idx1", "more than once")),
        ({"idx1": [0], "idx2": [3, 3]}, DataError, ("idx2", "more than once")),
        ({"idx1": np.ones(9, bool)}, OptionError, ("idx1", "9", "10 cells")),
        ({"idx1": [0], "idx2": [True] * 11}, OptionError, ("idx2", "11", "10 cells")),
        ({"idx1": [10]}, OptionError, ("idx1", "10")),
        ({"idx1": [-11]}, OptionError, ("idx1", "-11")),
        ({"idx1": [0.5]}, ArgumentTypeError, ("idx1", "holds 0.5")),
        ({"idx1": [[0]]}, ArgumentTypeError, ("idx1", "one-dimensional")),
        ({"idx1": ["cell0"]}, ArgumentTypeError, ("idx1", "integers or a mask", "isin(idx1)")),
        ({"idx2": [0]}, OptionError, ("idx2", "idx1")),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_rows_are_refused(refused, arguments, error, parts):
    with refused(error, *parts):
        make_comparisons(**arguments)


@pytest.mark.parametrize(
    "query",
    [
        "kin == 'B'",
        "kind == ",
        "kind = 'B'",
        "kind == 'B' and",
        "kind == 'B' age",
        "",
        "3",
        "99",
        "'kind'",
        "kind",
        "age + 1",
        "age < 'B'",
        "@here == 3",
        "kind.nothing()",
    ],
)
def test_a_query_that_cannot_be_asked_is_refused(refused, query):
    with refused(OptionError, f"idx1={query!r}", "obs"):
        make_comparisons(idx1=query)


# ---- replicates --------------------------------------------------------------


def test_replicates_are_named_by_text():
    adata = made(["B"] * 4, donor=[3, 1, 3, 2])
    result = read_replicates(adata, "donor", np.array([0, 1, 3]))
    assert result.tolist() == ["3", "1", "", "2"]


def test_only_cells_that_are_compared_need_a_sample(refused):
    adata = made(["B"] * 4, donor=["a", None, "b", None])
    assert read_replicates(adata, "donor", np.array([2, 0])).tolist() == ["a", "", "b", ""]
    with refused(DataError, "'donor'", "sample_key", "2 of the cells"):
        read_replicates(adata, "donor", np.arange(4))
    with refused(MissingColumnError, "'donr'", "sample_key", "did you mean 'donor'"):
        read_replicates(adata, "donr", np.arange(4))
    with refused(ArgumentTypeError, "sample_key", "7"):
        read_replicates(adata, 7, np.arange(4))


def test_a_side_of_one_cell_is_planned_and_said():
    with pytest.warns(VivaceWarning, match="group1 vs group2: 'group1' is one cell"):
        result = make_comparisons(idx1=[0], idx2=[1, 2])
    assert [len(part) for part in result.parts] == [1, 2]


def test_a_group_may_be_named_by_nothing(conditions):
    adata = conditions[:9].copy()
    adata.obs["kind"] = ["", "", "", "b", "b", "c", "c", "c", "c"]
    for group1 in (["", "b"], ""):
        result = plan_comparisons(adata, "kind", group1, None, None, None)
        first = result.comparisons[0]
        assert result.parts[first.first].tolist() == [0, 1, 2]
        assert sorted(result.rows(first.second).tolist()) == [3, 4, 5, 6, 7, 8]


def test_a_mask_with_names_is_read_by_them(conditions, refused):
    mask = conditions.obs["condition"] == "1"
    shuffled = mask.sample(frac=1.0, random_state=0)
    one, other = (plan_comparisons(conditions, None, None, None, m, None) for m in (mask, shuffled))
    np.testing.assert_array_equal(one.parts[0], other.parts[0])
    with refused(DataError, "idx1", "obs_names"):
        plan_comparisons(conditions, None, None, None, mask.iloc[:-1].rename({"c0": "x"}), None)


@pytest.fixture
def nullable():
    """Ten cells, with columns of nullable types that lack the values of some cells."""
    adata = made(["B"] * 5 + ["T"] * 5)
    adata.obs["cluster"] = pd.array([0, 1, None, 0, 1, 2, 0, None, 1, 0], dtype="Int64")
    adata.obs["doublet"] = pd.array([True, None, False, True] + [False] * 6, dtype="boolean")
    adata.obs["score"] = pd.array([0.5, None] + [1.5] * 8, dtype="Float64")
    adata.obs["name"] = pd.array(["a", None] + ["b"] * 8, dtype="string")
    adata.obs["flag"] = np.array([True, None] + [False] * 8, dtype=object)
    return adata


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("cluster == 0", [0, 3, 6, 9]),
        ("cluster != 0", [1, 4, 5, 8]),
        ("not (cluster == 0)", [1, 4, 5, 8]),
        ("cluster in [1, 2]", [1, 4, 5, 8]),
        ("cluster > 0 and kind == 'B'", [1, 4]),
        ("doublet", [0, 3]),
        ("doublet == True", [0, 3]),
        ("~doublet", [2, 4, 5, 6, 7, 8, 9]),
        ("score < 1", [0]),
        ("name == 'a' or doublet", [0, 3]),
        ("name == 'a' and cluster == 0", [0]),
        ("flag", [0]),
    ],
)
def test_missing_values_match_no_query(nullable, query, rows):
    plan = plan_comparisons(nullable, None, None, None, query, None)
    assert plan.parts[0].tolist() == rows
    np.testing.assert_array_equal(  # as pandas has it
        nullable.obs.query(query).index if query != "flag" else ["cell0"], nullable.obs_names[rows]
    )


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("clustr == 0", ("asks for 'clustr', which is not a column", "did you mean 'cluster'?")),
        ("zzz == 0", ("asks for 'zzz'", "available: 'age'")),
        ("kind", ("gives 'B' for cell 'cell0' of obs", "compare it")),
        ("cluster", ("gives 0 for cell 'cell0' of obs", "compare it")),
        ("cluster + 1", ("gives 1 for cell 'cell0' of obs", "compare it")),
        ("kind > 3", ("is not a valid query", "not supported")),
        ("kind == ", ("is not a valid query", "invalid syntax")),
        ("True", ("for each cell",)),
    ],
)
def test_a_query_that_fails_says_why(nullable, refused, query, parts):
    with refused(OptionError, f"idx1={query!r}", *parts) as caught:
        plan_comparisons(nullable, None, None, None, query, None)
    assert f"did you mean {query!r}" not in str(caught.value)


def test_a_query_that_only_misses_values_selects_no_cells(nullable, refused):
    nullable.obs["empty"] = pd.array([None] * 10, dtype="boolean")
    with refused(DataError, "idx1 selects no cells"):
        plan_comparisons(nullable, None, None, None, "empty", None)


def test_several_groups_of_one_cell_give_one_warning():
    with pytest.warns(VivaceWarning) as caught:
        plan_comparisons(made(["a", "b", "c"]), "kind", None, None, None, None)
    assert [str(w.message) for w in caught] == [
        "Each of 3 groups is one cell ('a', 'b', 'c'), so their results describe these cells and "
        "not groups; give them more cells."
    ]


@pytest.mark.parametrize("query", ["@pd.io", "donor.__class__", "[1, 2, 3]", "donor"])
def test_a_query_is_a_condition_and_no_program(conditions, refused, query):
    with refused(OptionError, "idx1", query):
        plan_comparisons(conditions, None, None, None, query, None)
