"""Columns of obs: missing, unknown, unseen or constant values."""

from __future__ import annotations

import datetime
import decimal
import re

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI
from vivace.data.columns import CategoryLookup, code_column, read_numbers
from vivace.errors import (
    DataError,
    MissingColumnError,
    VivaceWarning,
)

SMALL = {"n_hidden": 16, "n_latent": 3}


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA], ids=str)
@pytest.mark.parametrize("categorical", [True, False])
def test_a_missing_category_is_counted_and_named(tiny, use, refused, missing, categorical):
    adata = tiny()
    batch = adata.obs["batch"].astype(object)
    batch.iloc[[4, 9, 11]] = missing
    adata.obs["batch"] = batch.astype("category") if categorical else batch
    with refused(
        DataError, "obs['batch']", "batch_key", "3 of 60 cells", "'cell4'", ".notna()].copy()"
    ):
        use(adata)


def test_the_remedy_for_missing_categories_works(tiny):
    adata = tiny()
    adata.obs.loc[["cell4", "cell9"], "batch"] = None
    adata = adata[adata.obs["batch"].notna()].copy()
    SCVI.setup_anndata(adata, batch_key="batch")
    assert SCVI(adata).schema.batches == ("b0", "b1")


@pytest.mark.parametrize(
    "argument",
    [
        "batch_key",
        "labels_key",
        "size_factor_key",
        "categorical_covariate_keys",
        "continuous_covariate_keys",
    ],
)
def test_an_unknown_column_is_named_with_a_near_match(tiny, refused, argument):
    name = ["batches"] if argument.endswith("keys") else "batches"
    with refused(MissingColumnError, "'batches'", argument, "did you mean 'batch'?"):
        SCVI.setup_anndata(tiny(), **{argument: name})


def test_without_a_near_match_the_columns_are_listed(tiny, refused):
    with refused(MissingColumnError, "obs", "'x'", "'age', 'batch', 'cell_type', 'depth', 'donor'"):
        SCVI.setup_anndata(tiny(), batch_key="x")


def test_a_column_that_new_data_lack_is_named(tiny, trained, refused):
    adata = tiny()
    del adata.obs["batch"]
    with refused(MissingColumnError, "obs", "'batch'", "batch_key"):
        trained.get_latent_representation(adata)


def test_a_layer_that_new_data_lack_is_named(tiny, refused):
    adata = tiny()
    adata.layers["counts"] = adata.X
    SCVI.setup_anndata(adata, layer="counts")
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    with refused(MissingColumnError, "layers", "'counts'"):
        model.get_latent_representation(tiny())


def test_unseen_categories_are_counted_and_named(tiny, trained, refused):
    adata = tiny()
    adata.obs["batch"] = adata.obs["batch"].replace({"b1": "b11"})
    with refused(
        DataError, "obs['batch']", "batch_key", "'b11'", "30 cells", "rename", "did you mean 'b1'?"
    ):
        trained.get_latent_representation(adata)


@pytest.mark.parametrize(
    ("argument", "column"),
    [
        ({"batch_key": "one"}, "one"),
        ({"categorical_covariate_keys": ["donor", "one"]}, "one"),
        ({"continuous_covariate_keys": ["age", "flat"]}, "flat"),
    ],
)
def test_a_covariate_with_one_value_gives_a_warning(tiny, argument, column):
    adata = tiny()
    adata.obs["one"], adata.obs["flat"] = "same", 3.5
    with pytest.warns(VivaceWarning, match=column) as caught:
        SCVI.setup_anndata(adata, **argument)
    assert len(caught) == 1
    assert next(iter(argument)) in str(caught[0].message)
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    assert np.isfinite(model.get_elbo())


@pytest.mark.parametrize("argument", ["batch_key", "labels_key", "categorical_covariate_keys"])
def test_a_column_that_names_the_cells_is_refused(tiny, argument, refused):
    adata = tiny(n_cells=300)
    adata.obs["barcode"] = adata.obs_names
    value = ["barcode"] if argument.endswith("keys") else "barcode"
    with refused(DataError, "barcode", argument, "300 categories"):
        SCVI.setup_anndata(adata, **{argument: value})


def test_many_donors_are_not_refused(tiny):
    adata = tiny(n_cells=300)
    adata.obs["sample"] = [f"s{i % 140}" for i in range(300)]
    SCVI.setup_anndata(adata, batch_key="sample")


# ---- several columns of one name -------------------------------------------------------

ARGUMENTS = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "depth",
    "categorical_covariate_keys": "donor",
    "continuous_covariate_keys": "age",
}


def declare(argument, key):
    return {argument: [key] if argument.endswith("keys") else key}


def repeat_column(adata, key, n=2):
    """As a join of tables leaves it."""
    adata.obs = pd.concat([adata.obs, *[adata.obs[[key]]] * (n - 1)], axis=1)
    return adata


def drop_repeats(adata):
    adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]


def rename_repeats(adata):
    names = list(adata.obs.columns)
    adata.obs.columns = [*names[:-1], f"{names[-1]}_2"]


@pytest.mark.parametrize("remedy", [drop_repeats, rename_repeats])
@pytest.mark.parametrize(("argument", "key"), ARGUMENTS.items())
def test_columns_of_one_name_are_counted_and_refused(tiny, refused, argument, key, remedy):
    adata = repeat_column(tiny(), key)
    with refused(DataError, f"obs has 2 columns named {key!r} ({argument}); drop or rename one."):
        SCVI.setup_anndata(adata, **declare(argument, key))
    remedy(adata)
    SCVI.setup_anndata(adata, **declare(argument, key))
    assert key in SCVI(adata).schema.declarations.columns


def test_new_data_with_columns_of_one_name_are_refused(tiny, trained, refused):
    with refused(DataError, "3 columns named 'batch' (batch_key)"):
        trained.get_latent_representation(repeat_column(tiny(), "batch", 3))
    with refused(DataError, "2 columns named 'batch' (batch_key)"):
        SCVI.load_query_data(repeat_column(tiny(), "batch"), trained)


def test_other_columns_may_have_one_name(tiny, trained):
    expected = trained.get_latent_representation(tiny())
    result = trained.get_latent_representation(repeat_column(tiny(), "donor"))
    np.testing.assert_array_equal(result, expected)


# ---- numbers and texts that stand for missing values -----------------------------------

R, NUMPY = -(2**31), -(2**63)


def run_remedy(message, adata):
    """Evaluate the expression that a message ends with."""
    return eval(re.search(r"with (adata\[.+\]\.copy\(\))\.$", message)[1], {"adata": adata})


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (R, np.int32),
        (R, np.int64),
        (R, np.float32),
        (R, np.float64),
        (R, object),
        (str(R), object),
        (R, "Int32"),
        (R, "category"),
        (str(R), "category"),
        (NUMPY, np.int64),
        (NUMPY, np.float64),
    ],
)
def test_a_missing_integer_is_refused_and_its_cells_can_be_dropped(tiny, argument, value, dtype):
    adata = tiny()
    values = np.resize(np.array([1, 1, 2, 2], type(value)), 60).astype(object)
    values[[4, 9]] = value
    adata.obs["q"] = pd.Series(values, adata.obs_names).astype(dtype)
    with pytest.raises(
        DataError, match=r"missing integer, for 2 of 60 cells \(first: 'cell4'\)"
    ) as e:
        SCVI.setup_anndata(adata, **declare(argument, "q"))
    assert f"obs['q'] ({argument}) is {value}" in str(e.value)
    assert ("R's" if int(value) == R else "NumPy's") in str(e.value)
    rest = run_remedy(str(e.value), adata)
    assert rest.n_obs == 58
    SCVI.setup_anndata(rest, **declare(argument, "q"))


def test_a_missing_integer_in_new_data_is_refused(tiny, refused):
    adata = tiny()
    adata.obs["batch"] = np.arange(60) % 2
    SCVI.setup_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    for key in ("batch", "age"):
        query = adata.copy()
        query.obs[key] = query.obs[key].astype(np.int64).where(np.arange(60) != 7, R)
        for ask in (model.get_latent_representation, lambda q: SCVI.load_query_data(q, model)):
            with refused(DataError, f"obs['{key}']", "R's missing integer", "1 of 60", "'cell7'"):
                ask(query)


@pytest.mark.parametrize(
    "text", ["NA", "N/A", "nan", "NaN", "None", "<NA>", "NaT", "null", "", " ", "NA "]
)
@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_a_text_that_reads_like_a_missing_value_is_named(tiny, text, dtype):
    adata = tiny()
    adata.obs.iloc[[4, 9, 11], adata.obs.columns.get_loc("donor")] = text
    adata.obs["donor"] = adata.obs["donor"].astype(dtype)
    expected = rf"obs\['donor'\] \(categorical_covariate_keys\) is {text!r} for 3 cells"
    with pytest.warns(VivaceWarning, match=expected) as caught:
        SCVI.setup_anndata(adata, categorical_covariate_keys=["donor"])
    assert len(caught) == 1
    assert text in SCVI(adata).schema.categories[0]  # without another warning
    rest = run_remedy(str(caught[0].message), adata)
    assert rest.n_obs == 57
    SCVI.setup_anndata(rest, categorical_covariate_keys=["donor"])


def test_several_such_texts_are_one_warning(tiny):
    adata = tiny()
    adata.obs.iloc[:3, adata.obs.columns.get_loc("batch")] = ["NA", "nan", "nan"]
    with pytest.warns(VivaceWarning, match="'NA' for 1 cell and 'nan' for 2 cells") as caught:
        SCVI.setup_anndata(adata, batch_key="batch")
    assert len(caught) == 1


@pytest.mark.parametrize("text", ["none", "Nan", "NA1", "0", "-", "Unknown"])
def test_other_texts_are_not(tiny, text):
    adata = tiny()
    adata.obs.iloc[:3, adata.obs.columns.get_loc("batch")] = text
    SCVI.setup_anndata(adata, batch_key="batch")


def test_a_new_batch_that_reads_like_a_missing_value_is_named_once(tiny, trained):
    query = tiny(seed=2)
    query.obs.iloc[:7, query.obs.columns.get_loc("batch")] = "nan"
    with pytest.warns(VivaceWarning) as caught:
        model = SCVI.load_query_data(query, trained)
    assert model.schema.batches == ("b0", "b1", "nan")
    said = [str(w.message) for w in caught if "reads like a missing value" in str(w.message)]
    assert len(said) == 1
    assert "obs['batch'] (batch_key) is 'nan' for 7 cells" in said[0]


# ---- columns of every type -------------------------------------------------------------

FIRST, SECOND = datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (np.array([0.5, 1.5], np.float16), (0.5, 1.5)),
        (np.array([0.5, 1.5], np.longdouble), (0.5, 1.5)),
        (np.array([0, 1], np.uint8), (0, 1)),
        (np.array([True, False]), (False, True)),
        (np.array([b"x", b"y"]), ("x", "y")),
        (np.array([b"x", b"y"], object), ("x", "y")),
        (np.array([2, 1j]), ("1j", "(2+0j)")),
        (np.array([FIRST, SECOND], object), ("2020-01-01", "2020-01-02")),
        (np.array([FIRST, SECOND], "M8[s]"), ("2020-01-01 00:00:00", "2020-01-02 00:00:00")),
        (pd.to_timedelta([1, 2], "D"), ("1 days 00:00:00", "2 days 00:00:00")),
        (pd.period_range("2020-01", periods=2, freq="M"), ("2020-01", "2020-02")),
        (pd.interval_range(0, 2), ("(0, 1]", "(1, 2]")),
        (pd.cut([1, 3], [0, 2, 4]), ("(0, 2]", "(2, 4]")),
        (pd.array([1, 0], "Int64"), (0, 1)),
        (pd.array([True, False], "boolean"), (False, True)),
        (pd.array([0.5, 1.5], "Float64"), (0.5, 1.5)),
        (pd.array(["y", "x"], "string"), ("x", "y")),
        (pd.arrays.SparseArray([0, 1]), (0, 1)),
        (pd.arrays.SparseArray([0.0, 1.0]), (0.0, 1.0)),
        (pd.Categorical(["x", "y"], ["y", "unused", "x"], ordered=True), ("y", "x")),
        (pd.Categorical(["x", "y"], ["a", "y", "x", "z"]), ("y", "x")),
        (pd.Categorical([2.0, 1.0]), (1.0, 2.0)),
        (np.array([decimal.Decimal("1.5"), decimal.Decimal(2)], object), ("1.5", "2")),
        (np.array(["\ud800", "x"], object), ("x", "\ud800")),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, tuple) else f"{type(v).__name__}-{v.dtype}",
)
def test_categories_of_every_type_are_read(tiny, tmp_path, values, categories):
    adata = tiny()
    adata.obs["q"] = pd.Series(values)[np.arange(60) // 3 % 2].set_axis(adata.obs_names)
    column = code_column(adata, "groupby", "q")
    assert column.categories == categories
    assert [type(c) for c in column.categories] == [type(c) for c in categories]
    assert column.codes.tolist() in ([0, 0, 0, 1, 1, 1] * 10, [1, 1, 1, 0, 0, 0] * 10)
    SCVI.setup_anndata(adata, batch_key="q")
    model = SCVI(adata, **SMALL)
    assert model.schema.batches == categories
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", adata)
    own, other = categories[column.codes[0]], categories[1 - column.codes[0]]
    expected = model.get_normalized_expression(transform_batch=values[0])
    assert loaded.get_normalized_expression(transform_batch=own).equals(expected)
    assert not loaded.get_normalized_expression(transform_batch=other).equals(expected)


class Unprintable:
    def __str__(self):
        raise RuntimeError

    __repr__ = object.__repr__


class Unhashable:
    def __hash__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        ([["u"], ["v", "w"]], "list"),
        ([np.zeros(1), np.ones(2)], "ndarray"),
        ([{"u"}, {"v"}], "set"),
        ([{"u": 1}, {"v": 1}], "dict"),
        ([pd.Series([1]), pd.Series([2])], "Series"),
        ([Unprintable()] * 2, "Unprintable"),
        ([Unhashable()] * 2, "Unhashable"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_values_that_are_no_categories_are_refused(tiny, refused, pair, kind):
    adata = tiny()
    values = np.empty(60, object)
    for i in range(60):
        values[i] = pair[i % 2]
    adata.obs["q"] = values
    for argument in ("batch_key", "labels_key", "categorical_covariate_keys"):
        with refused(
            DataError, f"obs['q'] ({argument}) cannot be read", f"of type {kind}", "astype(str)"
        ):
            SCVI.setup_anndata(adata, **declare(argument, "q"))
    for argument in ("size_factor_key", "continuous_covariate_keys"):
        with refused(DataError, f"obs['q'] ({argument}) must hold numbers", "object"):
            SCVI.setup_anndata(adata, **declare(argument, "q"))


def test_lists_made_text_are_categories(tiny):
    adata = tiny()
    adata.obs["q"] = [["u"], ["v"]] * 30
    adata.obs["q"] = adata.obs["q"].astype(str)
    SCVI.setup_anndata(adata, batch_key="q")
    assert SCVI(adata).schema.batches == ("['u']", "['v']")


def test_a_type_that_pandas_cannot_look_into_is_refused(tiny, refused):
    adata = tiny()
    adata.obs["q"] = np.zeros(60, [("a", int)])
    with refused(DataError, "obs['q'] (batch_key) cannot be read", "[('a', '<i8')]", "astype(str)"):
        SCVI.setup_anndata(adata, batch_key="q")


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, 2], np.float16),
        np.array([1.5, 2], np.longdouble),
        np.array([decimal.Decimal("1.5"), decimal.Decimal(2)], object),
        pd.array([1.5, 2], "Float64"),
        pd.arrays.SparseArray([1.5, 2]),
        pd.Categorical([1.5, 2]),
        pd.Categorical(["1.5", "2"]),
        np.array(["1.5", "2"], object),
    ],
    ids=lambda v: f"{type(v).__name__}-{v.dtype}",
)
def test_numbers_of_every_type_are_read(tiny, values):
    adata = tiny()
    adata.obs["q"] = pd.Series(values)[np.arange(60) % 2].set_axis(adata.obs_names)
    result = read_numbers(adata, "q", "continuous_covariate_keys")
    np.testing.assert_array_equal(result, np.array([1.5, 2] * 30, np.float32))


def test_the_first_text_among_numbers_is_named(tiny, refused):
    adata = tiny()
    adata.obs["age"] = adata.obs["age"].astype(str)
    adata.obs.loc[["cell7", "cell9"], "age"] = "NA"
    with refused(DataError, "obs['age']", "must hold numbers", "cell 'cell7' has 'NA'"):
        SCVI.setup_anndata(adata, continuous_covariate_keys=["age"])


def test_names_of_cells_may_be_any_text(tiny, tmp_path):
    adata = tiny()
    adata.obs_names = ["\ud800", *adata.obs_names[1:]]
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", adata)
    assert loaded.train_indices.tolist() == model.train_indices.tolist()


# ---- one comparison of values with categories ------------------------------------------


@pytest.mark.parametrize(
    ("known", "alike"),
    [
        ((0, 1), [1, 1.0, "1", "1.0", np.int8(1), np.float32(1), np.array(1), np.str_("1")]),
        ((0.0, 1.0), [1, 1.0, "1", "1.0", np.uint8(1), np.float16(1), b"1"]),
        (("0", "1"), [1, 1.0, "1", np.int64(1), np.float64(1), b"1"]),
        (("0.0", "1.0"), [1, 1.0, "1.0", np.int64(1), np.float64(1)]),
        ((False, True), [True, np.True_, "True", "TRUE", "true"]),
        (("False", "True"), [True, np.True_, "True"]),
        (("FALSE", "TRUE"), [True, np.True_, "TRUE"]),
        ((0.5, 0.1), [0.1, "0.1", np.float32(0.1), np.float64(0.1)]),
        ((0.5, float(np.float32(0.1))), [0.1, "0.1", np.float32(0.1)]),
        ((-1, -0.0), [0, 0.0, -0.0, "0", "-0.0"]),
        (("1", "1.0"), ["1.0", 1.0]),
        (("1.0", "1"), ["1", 1]),
        ((20230101, 20230102), [20230102, 20230102.0, "20230102"]),
    ],
    ids=str,
)
def test_values_are_found_in_every_form(known, alike):
    lookup = CategoryLookup(known)
    assert [lookup.find(value) for value in alike] == [1] * len(alike)


@pytest.mark.parametrize(
    ("known", "others"),
    [
        ((0, 1), [2, True, "True", "01", "one", "", None, np.nan, 1.5, 1.00000001]),
        ((123456.78, 1e300), [123456.8, 123456.7, 1e301, np.inf, "1e299"]),
        (("0", "1"), ["1.0", "01", True, "1 "]),
        (("01", "02"), [1, "1", 1.0]),
        ((False, True), [0, 1, "1", "yes"]),
        (("b1",), ["B1", "b1 ", b"b2"]),
        ((0.1, 0.10000000149011612), ["0.10000000"]),
        ((), [0, "", None]),
    ],
    ids=str,
)
def test_other_values_are_not_found(known, others):
    lookup = CategoryLookup(known)
    assert [lookup.find(value) for value in others] == [-1] * len(others)


@pytest.mark.parametrize(
    "values", [[1, "1"], [1.5, "1.5"], [1, "1.0"], [True, "True"], [True, "TRUE"]], ids=str
)
def test_a_column_with_two_forms_of_a_value_is_refused(tiny, refused, values):
    adata = tiny()
    adata.obs["q"] = pd.Categorical(np.array(values, object)[np.arange(60) % 2], values)
    with refused(DataError, "obs['q'] (batch_key)", "same text", "rename one"):
        SCVI.setup_anndata(adata, batch_key="q")


def test_true_among_numbers_is_refused_and_the_fix_works(tiny, refused):
    adata = tiny()
    adata.obs["q"] = np.array([True, 1, 0, False] * 15, object)
    with refused(DataError, "mixes True or False with numbers", ".astype(str)"):
        SCVI.setup_anndata(adata, batch_key="q")
    adata.obs["q"] = adata.obs["q"].astype(str)
    SCVI.setup_anndata(adata, batch_key="q")


def test_a_missing_integer_may_be_in_cells_that_are_not_compared(trained, tiny):
    adata = tiny()
    adata.obs["q"] = np.where(np.arange(60) < 10, -(2**31), np.arange(60) % 2)
    table = trained.differential_expression(adata, groupby="q", group1=0, group2=1, silent=True)
    assert len(table) == 30
    assert code_column(adata, "groupby", "q", allow_missing=True).categories == (0, 1)


@pytest.mark.parametrize("argument", ["batch_key", "size_factor_key"])
@pytest.mark.parametrize("dtype", [">i4", ">f4", ">f8", "<i4"])
def test_numbers_in_either_byte_order(tiny, argument, dtype):
    """As files of other machines hold them."""
    answers = []
    for kind in (dtype, dtype[1:]):
        adata = tiny()
        adata.obs["number"] = (np.arange(adata.n_obs) % 3 + 1).astype(kind)
        SCVI.setup_anndata(adata, **{argument: "number"})
        model = SCVI(adata, n_hidden=8, n_latent=2)
        model.train(max_epochs=1, progress=False)
        answers.append(model.get_elbo(return_mean=False, seed=0))
    np.testing.assert_array_equal(*answers)
