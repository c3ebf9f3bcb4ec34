"""A query that cannot be mapped is refused in one sentence and left unchanged.

What is much like it and is taken stands beside it. Refusals whose message gives the line of code
that helps are in test_remedies.py, those of genes alone in test_genes.py.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mapping_cases import SMALL, assert_unchanged, trained_on

from vivace import SCVI, LinearSCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    ModelFileError,
    NotTrainedError,
    OptionError,
)


@pytest.fixture
def reference(reference):
    """One will do."""
    return reference("seeing")


# ---- genes -------------------------------------------------------------------


def test_a_query_without_a_shared_gene(reference, query, refused_whole):
    query.var_names = [f"other{i}" for i in range(30)]
    with refused_whole(
        query, DataError, "lacks 30 of the reference's 30 genes", "'gene0'", "prepare_query_anndata"
    ):
        SCVI.load_query_data(query, reference, inplace_subset_query_vars=True)


def test_a_query_with_a_gene_missing(reference, query, refused_whole):
    fewer = query[:, query.var_names != "gene7"].copy()
    with refused_whole(fewer, DataError, "lacks 1 of the reference's 30 genes", "'gene7'"):
        SCVI.load_query_data(fewer, reference)


def test_a_query_with_a_gene_twice(reference, query, refused):
    names = list(query.var_names)
    query.var_names = [*names[:-1], "gene3"]
    with refused(DataError, "gene29"):
        SCVI.load_query_data(query, reference)


@pytest.mark.parametrize(
    "columns",
    [
        pd.DataFrame({0: [f"gene{i}" for i in range(30)]}),
        pd.DataFrame([["p", "q"]] * 30, columns=["id", "id"]),
    ],
    ids=["whose name is a number", "with one name"],
)
def test_columns_of_var_do_no_harm(reference, query, refused, columns):
    query.var_names = [f"other{i}" for i in range(30)]
    query.var = columns.set_index(query.var_names)
    with refused(DataError, "none of the reference's 30 genes"):
        SCVI.prepare_query_anndata(query, reference)


# ---- columns -----------------------------------------------------------------


@pytest.mark.parametrize("key", ["donor", "age", "depth"])
def test_a_query_without_another_declared_column(tiny, query, refused_whole, key):
    trained = trained_on(
        tiny(),
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        size_factor_key="depth",
    )
    del query.obs[key]
    with refused_whole(query, MissingColumnError, "obs", repr(key)):
        SCVI.load_query_data(query, trained)


@pytest.mark.parametrize("column", ["batch", "donor"])
@pytest.mark.parametrize("missing", [np.nan, None, pd.NA], ids=str)
def test_a_cell_without_a_category(reference, query, refused_whole, column, missing):
    values = query.obs[column].astype(object)
    values.iloc[[4, 9]] = missing
    query.obs[column] = values
    with refused_whole(query, DataError, f"obs['{column}']", "2 of 60 cells", "'cell4'"):
        SCVI.load_query_data(query, reference)


@pytest.mark.parametrize("column", ["batch", "donor"])
@pytest.mark.parametrize(
    ("known", "given", "advice"),
    [
        (["01", "02"], [1, 3], ".astype(str)"),
        ([1, 2], ["01", "x"], ".astype(int)"),
        ([0.5, 1.5], ["0.50", "x"], ".astype(float)"),
        ([True, False], ["1", "x"], ".astype(bool)"),
        ([0, 1], [False, True], ".astype(int)"),
    ],
    ids=str,
)
def test_a_category_that_may_be_one_of_another_type(
    tiny, query, refused_whole, column, known, given, advice
):
    """It is refused even where the others would not become those known."""
    adata = tiny()
    adata.obs[column] = np.repeat(np.array(known), 30)
    trained = trained_on(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    query.obs["donor"], query.obs["batch"] = "d0", "b0"
    query.obs[column] = np.resize(np.array(given, object), 60)
    meant = next(k for k in known if float(k) == float(given[0]))
    parts = (f"obs['{column}']", repr(given[0]), repr(meant), advice, "rename it")
    with refused_whole(query, DataError, *parts):
        SCVI.load_query_data(query, trained)


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_categories_of_one_type_are_known_whatever_the_column_stores(reference, query, dtype):
    query.obs["batch"] = np.resize(np.array(["b1", "x"]), 60)
    query.obs["batch"] = query.obs["batch"].astype(dtype)
    assert SCVI.load_query_data(query, reference).schema.batches == ("b0", "b1", "x")


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, "Int64", "category"])
def test_integers_of_any_width_are_one_type(tiny, query, dtype, tmp_path):
    adata = tiny()
    adata.obs["batch"] = np.arange(60) % 2
    trained_on(adata, batch_key="batch").save(tmp_path / "model")
    query.obs["batch"] = pd.Series(np.arange(60) % 3, query.obs_names).astype(dtype)
    model = SCVI.load_query_data(query, tmp_path / "model")
    assert model.schema.batches == (0, 1, 2)
    assert {type(b) for b in model.schema.batches} == {int}


def test_a_query_whose_column_mixes_types(reference, query, refused_whole):
    query.obs["batch"] = np.resize(np.array(["x", 1], object), 60)
    with refused_whole(query, DataError, "obs['batch']", "mixes values of types int and str"):
        SCVI.load_query_data(query, reference)


def test_a_query_whose_batch_names_its_cells(reference, tiny, refused_whole):
    query = tiny(n_cells=300)
    query.obs["batch"] = query.obs_names
    with refused_whole(query, DataError, "obs['batch']", "300 categories for 300 cells"):
        SCVI.load_query_data(query, reference)


def test_a_new_batch_where_none_is_allowed(reference, query, refused_whole):
    with refused_whole(query, DataError, "'a8', 'a9'", "transfer_batch=False"):
        SCVI.load_query_data(query, reference, transfer_batch=False)
    query.obs["batch"] = "b1"
    query.obs["donor"] = "somebody"  # of a covariate, new categories are allowed
    result = SCVI.load_query_data(query, reference, transfer_batch=False).schema
    assert result.batches == ("b0", "b1")
    assert result.categories == (("d0", "d1", "d2", "somebody"), ("l0", "l1", "k"))


# ---- the reference -----------------------------------------------------------


def test_a_reference_without_batch(tiny, query, refused_whole):
    with refused_whole(
        query, OptionError, "no batch and no categorical covariates", "adata=query", "batch_key"
    ):
        SCVI.load_query_data(query, trained_on(tiny()))


def test_a_reference_with_a_covariate_but_no_batch_takes_a_query(tiny, query):
    trained = trained_on(tiny(), categorical_covariate_keys=["donor"])
    query.obs["donor"] = "somebody"
    model = SCVI.load_query_data(query, trained)
    assert model.schema.categories == (("d0", "d1", "d2", "somebody"),)


def test_an_untrained_reference(tiny, query, refused_whole, tmp_path):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    untrained = SCVI(adata, **SMALL)
    with refused_whole(query, NotTrainedError, "reference model has not been trained", "train()"):
        SCVI.load_query_data(query, untrained)
    untrained.save(tmp_path / "model")
    with refused_whole(query, NotTrainedError, "reference model has not been trained"):
        SCVI.load_query_data(query, tmp_path / "model")


def test_an_untrained_model_of_a_query_is_no_reference(reference, query, refused_whole):
    model = SCVI.load_query_data(query.copy(), reference)
    with refused_whole(query, NotTrainedError, "reference model has not been trained"):
        SCVI.load_query_data(query, model)


def test_a_folder_that_is_not_there(query, refused_whole, tmp_path):
    with refused_whole(query, ModelFileError, "no model folder at", "nothing"):
        SCVI.load_query_data(query, tmp_path / "nothing")


def test_a_folder_without_a_model(query, refused_whole, tmp_path):
    with refused_whole(query, ModelFileError, "holds no model.json"):
        SCVI.load_query_data(query, str(tmp_path))


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors", "history.csv"])
@pytest.mark.parametrize("how", ["cut short", "missing"])
def test_a_damaged_folder(reference, query, refused_whole, tmp_path, file, how):
    reference.save(tmp_path / "model")
    path = tmp_path / "model" / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with refused_whole(query, ModelFileError, file):
        SCVI.load_query_data(query, tmp_path / "model")


def test_a_damaged_model_of_scvi_tools(query, refused_whole, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"not a model")
    with refused_whole(query, ModelFileError, "model.pt"):
        SCVI.load_query_data(query, tmp_path)
    with refused_whole(query, ModelFileError, "model.pt"):
        SCVI.prepare_query_anndata(query, tmp_path)


def test_a_folder_with_weights_of_another_size(reference, query, refused_whole, tmp_path):
    reference.save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    sections = json.loads(file.read_text())
    sections["schema"]["batches"].append("b2")
    file.write_text(json.dumps(sections))
    with refused_whole(query, ModelFileError, "model.json", "is damaged"):
        SCVI.load_query_data(query, tmp_path / "model")


@pytest.mark.parametrize("stored", [True, False], ids=["folder", "in memory"])
def test_a_reference_of_another_class(tiny, query, refused_whole, tmp_path, stored):
    linear = trained_on(tiny(), LinearSCVI, batch_key="batch")
    if stored:
        linear.save(tmp_path / "model")
        with refused_whole(query, ModelFileError, "LinearSCVI, not SCVI", "LinearSCVI.load"):
            SCVI.load_query_data(query, tmp_path / "model")
        return
    with refused_whole(query, ArgumentTypeError, "reference_model", "SCVI", "LinearSCVI"):
        SCVI.load_query_data(query, linear)


# ---- arguments ---------------------------------------------------------------


@pytest.mark.parametrize("given", [None, 3, ["folder"], b"folder", SCVI], ids=str)
def test_a_reference_of_the_wrong_type(query, refused_whole, given):
    with refused_whole(query, ArgumentTypeError, "reference_model must be", type(given).__name__):
        SCVI.load_query_data(query, given)


@pytest.mark.parametrize("given", [None, "query.h5ad", np.ones((3, 3)), pd.DataFrame()], ids=repr)
def test_a_query_of_the_wrong_type(reference, refused, given):
    with refused(ArgumentTypeError, "takes an AnnData", type(given).__name__):
        SCVI.load_query_data(given, reference)


@pytest.mark.parametrize("value", ["yes", 1, 0, None, np.array([True])], ids=repr)
@pytest.mark.parametrize(
    "flag",
    [
        "inplace_subset_query_vars",
        "unfrozen",
        "freeze_dropout",
        "freeze_expression",
        "freeze_decoder_first_layer",
        "freeze_batchnorm_encoder",
        "freeze_batchnorm_decoder",
        "transfer_batch",
    ],
)
def test_a_flag_that_is_not_true_or_false(reference, query, refused_whole, flag, value):
    with refused_whole(query, ArgumentTypeError, f"{flag} must be True or False", repr(value)):
        SCVI.load_query_data(query, reference, **{flag: value})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("freeze_expresion", "freeze_expression"),
        ("freeze_batch_norm_decoder", "freeze_batchnorm_decoder"),
        ("inplace_subset_vars", "inplace_subset_query_vars"),
        ("transfer_batches", "transfer_batch"),
    ],
)
def test_an_unknown_argument(reference, query, refused_whole, given, meant):
    with refused_whole(query, ArgumentTypeError, repr(given), "did you mean", repr(meant)):
        SCVI.load_query_data(query, reference, **{given: True})


def test_an_unknown_preset(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    with refused(OptionError, "preset must be one of 'mapping'", "'maping'"):
        SCVI(adata, preset="maping")


# ---- counts ------------------------------------------------------------------


def test_a_query_whose_counts_were_dropped(reference, tiny, refused_whole):
    other = trained_on(tiny(seed=5), batch_key="batch")
    other.minify_adata()
    with refused_whole(other.adata, DataError, "dropped by minify_adata"):
        SCVI.load_query_data(other.adata, reference)


def test_a_reference_whose_counts_were_dropped_still_takes_a_query(tiny, query, tmp_path):
    small = trained_on(tiny(), batch_key="batch")
    small.minify_adata()
    assert SCVI.load_query_data(query, small).schema.batches == ("b0", "b1", "a8", "a9")
    small.save(tmp_path / "model")
    model = SCVI.load_query_data(query, tmp_path / "model")
    model.train(max_steps=2, accelerator="cpu", progress=False)
    assert model.get_latent_representation().shape == (60, 3)


def test_a_query_of_values_that_are_not_counts(reference, query, refused_whole):
    query.X = sp.csr_matrix(np.log1p(query.X.multiply(1e4 / query.X.sum(1))), dtype=np.float32)
    del query.layers["more"]
    with refused_whole(query, DataError, "X looks log1p-normalised", "'cell0'"):
        SCVI.load_query_data(query, reference, inplace_subset_query_vars=True)


@pytest.mark.parametrize(("value", "part"), [(-1.0, "negative"), (np.nan, "nan"), (2.5, "2.5")])
def test_a_query_with_a_value_that_is_no_count(reference, query, refused_whole, value, part):
    x = query.X.toarray()
    x[31, 12] = value
    query.X = x
    with refused_whole(query, DataError, "'cell31'", "'gene12'", part):
        SCVI.load_query_data(query, reference)


def test_a_query_with_a_cell_without_counts(reference, query, refused_whole):
    x = query.X.toarray()
    x[20] = 0
    query.X = sp.csr_matrix(x)
    with refused_whole(query, DataError, "1 of 60 cells", "no counts", "'cell20'"):
        SCVI.load_query_data(query, reference)


def test_a_query_without_cells(reference, query, refused_whole):
    empty = query[:0].copy()
    with refused_whole(empty, DataError, "no cells"):
        SCVI.load_query_data(empty, reference)
    report = SCVI.prepare_query_anndata(empty, reference)  # its genes can be aligned
    assert empty.shape == (0, 30)
    assert report.share_of_counts == 0.0


@pytest.mark.parametrize("column", ["age", "depth"])
def test_a_query_with_a_number_missing(tiny, query, refused_whole, column):
    keys = {"age": {"continuous_covariate_keys": ["age"]}, "depth": {"size_factor_key": "depth"}}
    trained = trained_on(tiny(), batch_key="batch", **keys[column])
    query.obs.loc["cell3", column] = np.nan
    with refused_whole(query, DataError, f"obs['{column}']", "'cell3'"):
        SCVI.load_query_data(query, trained)


def test_a_query_without_the_layer_of_the_reference(tiny, query, refused_whole):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    trained = trained_on(adata, layer="counts", batch_key="batch")
    with refused_whole(query, MissingColumnError, "layers", "'counts'"):
        SCVI.load_query_data(query, trained)


# ---- success changes nothing either -----------------------------------------


def test_mapping_and_training_leave_the_query_as_it_is(reference, query):
    before = query.copy()
    SCVI.load_query_data(query, reference).train(max_steps=2, accelerator="cpu", progress=False)
    assert_unchanged(query, before)
