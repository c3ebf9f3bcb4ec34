from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from vivace import SCVI
from vivace.data.schema import UNS_KEY, Codes, Declarations, Schema, read_declarations
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, VivaceWarning

EVERYTHING = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "depth",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


def test_declarations_survive_json():
    before = Declarations(layer="counts", **EVERYTHING, allow_non_integer=True)
    assert Declarations.from_json(before.to_json()) == before
    assert json.loads(before.to_json())["categorical_covariate_keys"] == ["donor"]


def test_setup_changes_nothing_but_one_string_in_uns(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((60, 2))
    adata.uns["colours"] = ["red"]
    before = adata.copy()
    SCVI.setup_anndata(adata, layer="counts", **EVERYTHING)
    assert isinstance(adata.uns.pop(UNS_KEY), str)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    for now, then in ((adata.X, before.X), (adata.layers["counts"], before.layers["counts"])):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(now, part), getattr(then, part))
    np.testing.assert_array_equal(adata.obsm["X_pca"], before.obsm["X_pca"])
    assert list(adata.layers) == ["counts"]
    assert list(adata.obsm) == ["X_pca"]
    assert dict(adata.uns) == {"colours": ["red"]}


def test_declarations_survive_writing_and_reading_h5ad(tiny, tmp_path):
    adata = tiny()
    SCVI.setup_anndata(adata, **EVERYTHING)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert read_declarations(back) == Declarations(**EVERYTHING)
    assert SCVI(back).schema == SCVI(adata).schema


def test_setting_up_again_replaces_the_declarations(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    SCVI.setup_anndata(adata, labels_key="cell_type")
    assert read_declarations(adata) == Declarations(labels_key="cell_type")


def test_a_refused_setup_leaves_no_declarations(tiny, refused):
    adata = tiny()
    adata.X.data[0] = -1
    with refused(DataError, "negative"):
        SCVI.setup_anndata(adata, batch_key="batch")
    assert UNS_KEY not in adata.uns


def test_a_model_keeps_the_declarations_it_was_made_with(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    SCVI.setup_anndata(adata)
    adata.obs["batch"] = "b0"
    assert model.schema.declarations.batch_key == "batch"
    assert model.schema.batches == ("b0", "b1")


@pytest.mark.parametrize("keys", [["donor"], ("donor",), pd.Index(["donor"]), np.array(["donor"])])
def test_lists_of_columns_of_any_kind(tiny, keys):
    adata = tiny()
    SCVI.setup_anndata(adata, categorical_covariate_keys=keys)
    assert read_declarations(adata).categorical_covariate_keys == ("donor",)


def test_data_without_declarations_are_refused(tiny, refused):
    with refused(DataError, "not been set up", "setup_anndata"):
        SCVI(tiny())


@pytest.mark.parametrize("text", ["{", "[1]", '{"colour": "red"}', '{"batch_key": 3}'])
def test_damaged_declarations_are_refused(tiny, refused, text):
    adata = tiny()
    adata.uns[UNS_KEY] = text
    with refused(DataError, "uns['vivace']", "setup_anndata again"):
        SCVI(adata)


@pytest.mark.parametrize(
    ("column", "categories"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 10], (9, 10)),
        ([True, False, True], (False, True)),
        (pd.Categorical(["b", "a", "b"], categories=["b", "x", "a"]), ("b", "a")),
        (np.array([1.5, 0.5, 1.5], np.float32), (0.5, 1.5)),
    ],
    ids=["text", "integers", "truth", "categorical", "floats"],
)
def test_categories_sorted_or_in_their_own_order(tiny, column, categories):
    adata = tiny(3)
    adata.obs["batch"] = column
    schema = Schema.from_anndata(adata, Declarations(batch_key="batch"))
    assert schema.batches == categories
    assert [type(c) for c in schema.batches] == [type(c) for c in categories]
    text = [str(c) for c in categories]
    expected = [text.index(str(value)) for value in adata.obs["batch"]]
    assert schema.columns(adata).batch.tolist() == expected


def test_codes_do_not_depend_on_the_type_of_the_column(tiny):
    adata = tiny()
    adata.obs["batch"] = np.arange(60) % 3
    schema = Schema.from_anndata(adata, Declarations(batch_key="batch"))
    for column in (adata.obs["batch"].astype(str), adata.obs["batch"].astype("category")):
        new = tiny()
        new.obs["batch"] = column
        assert schema.columns(new).batch.tolist() == (np.arange(60) % 3).tolist()


def test_new_data_may_hold_a_part_of_the_categories(tiny):
    adata = tiny()
    schema = Schema.from_anndata(adata, Declarations(batch_key="batch"))
    assert schema.columns(adata[1::2].copy()).batch.tolist() == [1] * 30


def test_columns_of_every_kind_are_read(tiny):
    adata = tiny()
    columns = Schema.from_anndata(adata, Declarations(**EVERYTHING)).columns(adata)
    assert columns.batch.tolist() == [0, 1] * 30
    assert columns.categorical.tolist() == [[0], [1], [2]] * 20
    assert columns.labels.tolist() == [["B", "NK", "T"].index(t) for t in adata.obs["cell_type"]]
    standardised = scipy.stats.zscore(adata.obs["age"]).astype(np.float32)
    np.testing.assert_array_equal(columns.continuous[:, 0], standardised)
    np.testing.assert_array_equal(columns.size_factor, adata.obs["depth"].astype(np.float32))


def test_columns_that_are_not_declared_are_empty(tiny):
    columns = Schema.from_anndata(tiny(), Declarations()).columns(tiny())
    assert not columns.batch.any()
    assert not columns.labels.any()
    assert columns.categorical.shape == columns.continuous.shape == (60, 0)
    assert columns.size_factor is None


@pytest.mark.parametrize(("factor", "offset"), [(365.0, 0.0), (1e-6, 0.0), (-3.0, 1e6), (1e30, 0)])
def test_the_unit_of_a_covariate_does_not_matter(tiny, factor, offset):
    adata, other = tiny(), tiny()
    other.obs["age"] = factor * other.obs["age"] + offset
    declarations = Declarations(continuous_covariate_keys=("age",))
    columns, scaled = (
        Schema.from_anndata(data, declarations).columns(data).continuous for data in (adata, other)
    )
    np.testing.assert_allclose(scaled, np.sign(factor) * columns, atol=1e-6)


def test_new_data_are_standardised_by_the_models_cells(tiny):
    adata, declarations = tiny(), Declarations(continuous_covariate_keys=("age",))
    schema = Schema.from_anndata(adata, declarations)
    age = adata.obs["age"]
    few = adata[:3].copy()
    expected = (age[:3] - age.mean()) / age.std(ddof=0)
    np.testing.assert_array_equal(schema.columns(few).continuous[:, 0], expected.astype("float32"))


def test_a_constant_covariate_has_no_effect_on_other_values_either(tiny):
    adata = tiny()
    adata.obs["age"] = 0.1
    schema = Schema.from_anndata(adata, Declarations(continuous_covariate_keys=("age",)))
    adata.obs["age"] = np.arange(60.0)
    assert not schema.columns(adata).continuous.any()


def test_schemas_without_scales_read_covariates_in_their_own_unit(tiny):
    adata = tiny()
    parts = Schema.from_anndata(adata, Declarations(**EVERYTHING)).as_dict()
    del parts["scales"]
    columns = Schema.from_dict(parts).columns(adata)
    np.testing.assert_array_equal(columns.continuous[:, 0], adata.obs["age"].astype(np.float32))


@pytest.mark.parametrize(
    "scales", [[], [{"sd": -1.0}], [{"mean": float("nan")}], [{"middle": 1.0}], [{"sd": "1"}]]
)
def test_damaged_scales_are_noticed(tiny, scales):
    parts = Schema.from_anndata(tiny(), Declarations(**EVERYTHING)).as_dict()
    with pytest.raises((ValueError, TypeError)):
        Schema.from_dict(parts | {"scales": scales})


def test_a_covariate_in_another_unit_gives_a_warning(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, continuous_covariate_keys=["age"])
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    query = adata[:20].copy()
    model.get_latent_representation(query)  # no warning
    query.obs["age"] *= 365
    with pytest.warns(
        VivaceWarning, match=r"obs\['age'\].* standard deviations .*mean 5"
    ) as caught:
        model.get_latent_representation(query)
    assert len(caught) == 1


def test_a_schema_survives_json(tiny):
    schema = Schema.from_anndata(tiny(), Declarations(**EVERYTHING))
    assert Schema.from_dict(json.loads(json.dumps(schema.as_dict()))) == schema


def test_a_schema_with_unknown_entries_is_refused(tiny):
    parts = Schema.from_anndata(tiny(), Declarations()).as_dict()
    with pytest.raises(ValueError, match="colour"):
        Schema.from_dict({**parts, "colour": "red"})


def test_positions_of_genes(tiny):
    schema = Schema.from_anndata(tiny(), Declarations())
    assert schema.gene_positions(tiny()) is None
    turned = tiny()[:, ::-1].copy()
    assert schema.gene_positions(turned).tolist() == list(range(29, -1, -1))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("layer", 3),
        ("batch_key", ["batch"]),
        ("labels_key", 0),
        ("size_factor_key", True),
        ("categorical_covariate_keys", 5),
        ("continuous_covariate_keys", [1]),
        ("allow_non_integer", "yes"),
    ],
)
def test_declarations_of_a_wrong_type_are_refused(tiny, refused, argument, value):
    shown = repr(value[0]) if value == [1] else repr(value)
    with refused(ArgumentTypeError, argument, shown):
        SCVI.setup_anndata(tiny(), **{argument: value})


@pytest.mark.parametrize("argument", ["size_factor_key", "continuous_covariate_keys"])
@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (np.inf, ("inf", "'cell7'", "replace")),
        (1e300, ("1e+300", "'cell7'", "replace")),
        (np.nan, ("no value for 1 of 60", "'cell7'", "notna")),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(tiny, refused, argument, value, parts):
    adata = tiny()
    adata.obs.loc["cell7", "depth"] = value
    keys = "depth" if argument == "size_factor_key" else ["depth"]
    with refused(DataError, "obs['depth']", argument, *parts):
        SCVI.setup_anndata(adata, **{argument: keys})


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_size_factors_must_be_positive(tiny, refused, value):
    adata = tiny()
    adata.obs.loc["cell7", "depth"] = value
    with refused(DataError, "obs['depth']", "above 0", f"{value:g}", "'cell7'", "recompute"):
        SCVI.setup_anndata(adata, size_factor_key="depth")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ("young", "object"),
        (1 + 1j, "complex128"),
        (pd.Timestamp("2020-01-01"), "datetime64"),
    ],
)
def test_a_number_column_must_hold_numbers(tiny, refused, values, dtype):
    adata = tiny()
    adata.obs["age"] = values
    with refused(DataError, "obs['age']", "must hold numbers", dtype, "categorical_covariate"):
        SCVI.setup_anndata(adata, continuous_covariate_keys=["age"])


def test_categories_of_mixed_types_are_refused(tiny, refused):
    adata = tiny()
    adata.obs["batch"] = ["1", 2] * 30
    with refused(DataError, "obs['batch']", "int and str", "astype(str)"):
        SCVI.setup_anndata(adata, batch_key="batch")


def test_categories_that_read_the_same_are_refused(tiny, refused):
    adata = tiny()
    adata.obs["batch"] = pd.Categorical(["1", 1] * 30, categories=["1", 1])
    with refused(DataError, "obs['batch']", "same text", "rename"):
        SCVI.setup_anndata(adata, batch_key="batch")


def test_the_view_of_a_setup_names_every_column(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, **EVERYTHING)
    rows = SCVI(adata).view_anndata_setup().to_dict("records")
    assert [(row["meaning"], row["where"]) for row in rows] == [
        ("counts", "X"),
        ("batch", "obs['batch']"),
        ("labels", "obs['cell_type']"),
        ("categorical covariate", "obs['donor']"),
        ("continuous covariate", "obs['age']"),
        ("size factor", "obs['depth']"),
    ]
    assert rows[0]["content"] == "30 genes"
    assert rows[1]["content"] == "2 categories: b0, b1"


def test_an_unknown_column_is_a_value_error_and_a_key_error(tiny):
    for builtin in (ValueError, KeyError):
        with pytest.raises(builtin) as caught:
            SCVI.setup_anndata(tiny(), batch_key="batsh")
        assert isinstance(caught.value, MissingColumnError)
        assert str(caught.value).startswith("obs has no column 'batsh'")


@pytest.fixture(scope="module")
def schema(tiny):
    """Batches b0, b1; donors d0, d1, d2; cell types B, NK, T as a covariate too."""
    declarations = Declarations(
        batch_key="batch", categorical_covariate_keys=["donor", "cell_type"]
    )
    return Schema.from_anndata(tiny(), declarations)


@pytest.mark.parametrize(
    ("transform", "codes"),
    [
        (None, [Codes()]),
        ("b1", [Codes(1)]),
        (["b1"], [Codes(1)]),
        (["b1", "b0"], [Codes(1), Codes(0)]),
        (("b0", "b1"), [Codes(0), Codes(1)]),
        (pd.Index(["b0", "b1"]), [Codes(0), Codes(1)]),
        (np.array(["b1"]), [Codes(1)]),
        ({"batch": "b1"}, [Codes(1)]),
        ({"donor": "d2"}, [Codes(None, ((0, 2),))]),
        ({"cell_type": "NK"}, [Codes(None, ((1, 1),))]),
        ({"donor": ["d2", "d0"]}, [Codes(None, ((0, 2),)), Codes(None, ((0, 0),))]),
        ({"batch": "b1", "donor": "d1"}, [Codes(1, ((0, 1),))]),
        (
            {"donor": "d1", "cell_type": ["B", "T"]},
            [Codes(None, ((0, 1), (1, 0))), Codes(None, ((0, 1), (1, 2)))],
        ),
        (
            {"batch": ["b0", "b1"], "donor": ["d0", "d2"]},
            [Codes(b, ((0, d),)) for b in (0, 1) for d in (0, 2)],
        ),
        ({}, [Codes()]),
    ],
    ids=repr,
)
def test_codes_of_what_transform_batch_names(schema, transform, codes):
    """One per combination, in the given order; other columns keep the values of the cells."""
    assert list(schema.codes(transform)) == codes


@pytest.mark.parametrize("wanted", [9, "9", np.int64(9), [9], np.array([9])])
def test_categories_are_named_by_their_text(tiny, wanted):
    adata = tiny()
    adata.obs["batch"] = np.arange(60) % 2 + 9
    schema = Schema.from_anndata(adata, Declarations(batch_key="batch"))
    assert schema.codes(wanted) == (Codes(0),)


@pytest.mark.parametrize(
    ("transform", "parts"),
    [
        ("b7", ["obs['batch']", "batch_key", "'b7'", "'b1'"]),
        (["b0", "b11"], ["obs['batch']", "'b11'", "'b1'"]),
        (3, ["obs['batch']", "3"]),
        ({"donor": "d9"}, ["obs['donor']", "categorical_covariate_keys", "'d9'", "'d0'"]),
        ({"donor": ["d0", "e1"]}, ["obs['donor']", "'e1'", "'d1'"]),
        ({"batsh": "b0"}, ["'batsh'", "'batch'"]),
        ({"age": 50.0}, ["'age'", "'donor'"]),
        ({"donor": []}, ["'donor'", "no category"]),
        ([], ["'batch'", "no category"]),
        ({"batch": "b0", "cell_type": np.array([])}, ["'cell_type'", "no category"]),
    ],
    ids=repr,
)
def test_codes_that_there_are_not_are_refused(schema, refused, transform, parts):
    with refused(DataError, *parts):
        schema.codes(transform)


def test_without_a_batch_there_is_none_to_name(tiny, refused):
    schema = Schema.from_anndata(tiny(), Declarations(categorical_covariate_keys=["donor"]))
    for transform in ("b0", ["b0"]):
        with refused(DataError, "no batch", repr(transform), "batch_key"):
            schema.codes(transform)
    with refused(DataError, "'batch'", "'donor'"):
        schema.codes({"batch": "b0"})
    assert schema.codes({"donor": "d1"}) == (Codes(None, ((0, 1),)),)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (None, None),
        (["gene3"], [3]),
        (["gene29", "gene0", "gene7"], [29, 0, 7]),
        (("gene2", "gene2"), [2, 2]),
        (pd.Index(["gene5", "gene4"]), [5, 4]),
        (np.array(["gene1"]), [1]),
        ((f"gene{i}" for i in (8, 6)), [8, 6]),
    ],
    ids=["none", "one", "an order", "twice", "index", "array", "generator"],
)
def test_places_of_genes_by_name(schema, names, places):
    result = schema.genes_at(names)
    if places is None:
        assert result is None
    else:
        assert result.tolist() == places
        assert result.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "error", "parts"),
    [
        (["gene1", "gnee2", "gene99"], MissingColumnError, ["2 of 3", "'gnee2'", "'gene2'"]),
        ([3], MissingColumnError, ["1 of 1", "'3'"]),
        ([], DataError, ["gene_list", "empty"]),
        (b"gene1", ArgumentTypeError, ["gene_list", "b'gene1'"]),
        (7, ArgumentTypeError, ["gene_list", "7"]),
    ],
    ids=repr,
)
def test_genes_that_there_are_not_are_refused(schema, refused, names, error, parts):
    with refused(error, *parts):
        schema.genes_at(names)


@pytest.mark.parametrize(
    "values", [1e9 + 1e-3 * np.arange(60), np.where(np.arange(60), 3e38, -3e38)]
)
def test_covariates_are_standardised_in_double_precision(tiny, values):
    adata = tiny()
    adata.obs["age"] = values
    schema = Schema.from_anndata(adata, Declarations(continuous_covariate_keys=("age",)))
    scaled = schema.columns(adata).continuous[:, 0]
    np.testing.assert_allclose(scaled, scipy.stats.zscore(values / 1e9), rtol=1e-3, atol=1e-3)


def test_a_rare_value_of_the_models_own_cells_gives_no_warning(tiny):
    adata = tiny(300)
    adata.obs["flag"] = (np.arange(300) == 7).astype(float)
    SCVI.setup_anndata(adata, continuous_covariate_keys=["flag"])
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    model.get_latent_representation(adata[7:8].copy())


def test_labels_that_are_not_read_may_change_until_the_model_is_loaded_again(tiny, tmp_path):
    adata = tiny()
    SCVI.setup_anndata(adata, labels_key="cell_type")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    adata.obs["cell_type"] = "other"
    model.save(tmp_path / "m", save_anndata=True)
    expected = model.get_latent_representation()
    for loaded in (SCVI.load(tmp_path / "m"), SCVI.load(tmp_path / "m", adata)):
        np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
    del adata.obs["cell_type"]
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)


def test_the_first_size_factor_that_is_not_positive_is_named_with_its_value(tiny, refused):
    adata = tiny()
    adata.obs.iloc[1:3, adata.obs.columns.get_loc("depth")] = [-1.0, -5.0]
    with refused(DataError, "is -1 for cell 'cell1'"):
        SCVI.setup_anndata(adata, size_factor_key="depth")
