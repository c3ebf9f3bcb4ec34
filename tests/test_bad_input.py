"""The list of issue 2: every bad input gives one sentence that names what, where and the fix."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, ImplicitModificationWarning

from vivace import SCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    ModelFileError,
    OptionError,
    VivaceWarning,
)

SMALL = {"n_hidden": 16, "n_latent": 3}


@pytest.fixture(params=["setup_anndata", "new data"])
def use(request, trained):
    """The two doors that data come in by: setting up, and asking a trained model."""
    if request.param == "setup_anndata":
        return lambda adata: SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    return trained.get_latent_representation


def with_value(adata: AnnData, cell: int, gene: int, value: float) -> AnnData:
    x = adata.X.toarray()
    x[cell, gene] = value
    adata.X = sp.csr_matrix(x)
    return adata


def log1p_normalised(x: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(np.log1p(x.multiply(1e4 / x.sum(1))), dtype=np.float32)


# ---- counts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (-3.0, ("negative value -3", "raw counts, not scaled data")),
        (np.nan, ("holds nan", "replace or drop")),
        (np.inf, ("holds inf", "replace or drop")),
        (-np.inf, ("holds -inf", "replace or drop")),
        (2.5, ("holds 2.5", "not an integer", "raw counts", "allow_non_integer=True")),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_cell_and_gene(tiny, use, refused, value, parts):
    with refused(DataError, "X", "'cell31'", "'gene12'", *parts):
        use(with_value(tiny(), 31, 12, value))


def test_a_wrong_value_in_a_layer_is_named_with_the_layer(tiny, refused):
    adata = tiny()
    adata.layers["scaled"] = adata.X.toarray() - 1
    with refused(DataError, "layers['scaled']", "negative value -1", "X holds integers"):
        SCVI.setup_anndata(adata, layer="scaled")


def test_counts_spoilt_after_setup_are_refused_by_the_model(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(DataError, "negative value -3", "'cell31'", "'gene12'"):
        SCVI(with_value(adata, 31, 12, -3))


def test_non_integers_are_taken_when_allowed(tiny, refused):
    adata = tiny()
    adata.X.data *= 0.75
    SCVI.setup_anndata(adata, allow_non_integer=True)
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    assert np.isfinite(model.get_latent_representation()).all()
    np.testing.assert_allclose(model._own_source().library, adata.X.toarray().sum(1), rtol=1e-6)
    with refused(DataError, "negative value -0.5"):
        model.get_latent_representation(with_value(adata, 0, 0, -0.5))


def test_log1p_normalised_data_are_recognised(tiny, use, refused):
    adata = tiny()
    adata.X = log1p_normalised(adata.X)
    with refused(DataError, "X looks log1p-normalised", "'cell0'", "before sc.pp.normalize_total"):
        use(adata)


@pytest.mark.parametrize("where", ["layer", "raw"])
def test_raw_counts_elsewhere_are_suggested(tiny, use, refused, where):
    adata = tiny()
    if where == "layer":
        adata.layers["counts"] = adata.X.copy()
        parts = ("adata.layers['counts'] holds integers", "layer='counts'")
    else:
        adata.raw = adata
        parts = ("adata.raw holds integers", "adata.raw.to_adata()")
    adata.X = log1p_normalised(adata.X)
    with refused(DataError, "X looks log1p-normalised", *parts):
        use(adata)


def test_what_is_suggested_works(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata
    adata.X = log1p_normalised(adata.X)
    SCVI.setup_anndata(adata, layer="counts")
    SCVI.setup_anndata(adata.raw.to_adata())
    np.testing.assert_array_equal(SCVI(adata)._own_source().counts.toarray(), tiny().X.toarray())


@pytest.mark.parametrize("stored", [True, False], ids=["zeros stored", "no entries"])
def test_cells_without_counts_are_counted_and_named(tiny, use, refused, stored):
    adata = tiny()
    x = adata.X.toarray()
    if stored:
        for cell in (20, 33):
            adata.X.data[adata.X.indptr[cell] : adata.X.indptr[cell + 1]] = 0
    else:
        x[[20, 33]] = 0
        adata.X = sp.csr_matrix(x)
    with refused(DataError, "2 of 60 cells have no counts in X", "'cell20'", "filter_cells"):
        use(adata)


# ---- columns -----------------------------------------------------------------


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


# ---- genes -------------------------------------------------------------------


def test_missing_genes_are_counted_and_named(tiny, trained, refused):
    adata = tiny()[:, 2:].copy()
    with refused(MissingColumnError, "lack 2 of the model's 30 genes", "('gene0', 'gene1')"):
        trained.get_latent_representation(adata)


def test_a_few_of_many_missing_genes_are_named(tiny, trained, refused):
    adata = tiny()
    adata.var_names = [f"ENSG{i}" for i in range(30)]
    with refused(
        MissingColumnError,
        "lack 30 of the model's 30 genes",
        "'gene4', ...",
        "same gene identifiers",
    ):
        trained.get_latent_representation(adata)


def test_genes_in_another_order_are_aligned_by_name(tiny, trained):
    turned = tiny()[:, ::-1].copy()
    np.testing.assert_array_equal(
        trained.get_latent_representation(turned), trained.get_latent_representation()
    )


def test_genes_named_twice_are_refused(tiny, use, refused):
    adata = tiny()
    adata.var_names = ["gene1", "gene1", *adata.var_names[2:]]
    with refused(DataError, "1 gene names more than once", "'gene1'", "var_names_make_unique"):
        use(adata)


# ---- arguments ---------------------------------------------------------------


@pytest.mark.parametrize("data", ["cells.h5ad", None, np.ones((3, 2)), pd.DataFrame({"g": [1]})])
def test_what_is_no_anndata_is_refused(trained, saved, refused, data):
    name = type(data).__name__
    with refused(ArgumentTypeError, "setup_anndata takes an AnnData", name):
        SCVI.setup_anndata(data)
    with refused(ArgumentTypeError, "SCVI takes an AnnData", name, "read_h5ad"):
        SCVI(data)
    if data is not None:  # None means the model's own data
        for question in (
            trained.get_latent_representation,
            trained.get_elbo,
            trained.get_reconstruction_error,
            lambda adata: SCVI.load(saved, adata),
        ):
            with refused(ArgumentTypeError, "must be an AnnData", name, "read_h5ad"):
                question(data)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"n_latent": 2.5}, ArgumentTypeError, ("int", "2.5")),
        ({"n_latent": "10"}, ArgumentTypeError, ("int", "'10'")),
        ({"n_hidden": True}, ArgumentTypeError, ("int", "True")),
        ({"n_layers": None}, ArgumentTypeError, ("int", "None")),
        ({"n_latent": 0}, OptionError, ("at least 1", "0")),
        ({"dropout_rate": "0.1"}, ArgumentTypeError, ("number", "'0.1'")),
        ({"dropout_rate": 1.0}, OptionError, ("below 1", "1.0")),
        ({"dropout_rate": float("nan")}, OptionError, ("below 1", "nan")),
        ({"encode_covariates": 1}, ArgumentTypeError, ("bool", "1")),
        ({"gene_likelihood": "gamma"}, OptionError, ("'zinb', 'nb', 'poisson'", "'gamma'")),
        ({"gene_likelihood": ["nb"]}, OptionError, ("'zinb', 'nb', 'poisson'", "['nb']")),
        ({"dispersion": "genes"}, OptionError, ("'gene'", "'genes'")),
        ({"latent_distribution": 3}, OptionError, ("'normal'", "3")),
        ({"use_batch_norm": True}, OptionError, ("'both'", "True")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_options_of_the_model(tiny, refused, options, error, parts):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(error, *options, *parts):
        SCVI(adata, **options)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"max_epochs": 1.5}, ArgumentTypeError, ("integer", "1.5")),
        ({"max_epochs": 0}, OptionError, ("at least 1", "0")),
        ({"batch_size": "128"}, ArgumentTypeError, ("integer", "'128'")),
        ({"batch_size": -1}, OptionError, ("at least 1", "-1")),
        ({"train_size": "most"}, ArgumentTypeError, ("number", "'most'")),
        ({"train_size": True}, ArgumentTypeError, ("number", "True")),
        ({"train_size": 90}, OptionError, ("at most 1", "90")),
        ({"validation_size": [0.1]}, ArgumentTypeError, ("number", "[0.1]")),
        ({"recipe": "slow"}, OptionError, ("'fast', 'scvi-tools'", "'slow'")),
        ({"recipe": ["fast"]}, OptionError, ("'fast', 'scvi-tools'", "['fast']")),
        ({"accelerator": "abacus"}, OptionError, ("'auto', 'cpu'", "'abacus'")),
        ({"accelerator": 1}, OptionError, ("'auto', 'cpu'", "1")),
        ({"plan_kwargs": "lr"}, ArgumentTypeError, ("dict", "'lr'")),
        ({"plan_kwargs": {"lr": "low"}}, ArgumentTypeError, ("'lr'", "number", "'low'")),
        ({"plan_kwargs": {"lr": -1}}, OptionError, ("'lr'", "at least 0", "-1")),
        ({"plan_kwargs": {"eps": float("inf")}}, OptionError, ("'eps'", "finite", "inf")),
        ({"plan_kwargs": {"lrr": 1}}, ArgumentTypeError, ("'lrr'", "did you mean 'lr'?")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_of_train(tiny, refused, options, error, parts):
    adata = tiny()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    with refused(error, *options, *parts):
        model.train(**options)
    assert not model.is_trained
    assert len(model.train_indices) == 0


def test_a_device_that_is_not_there_is_refused(tiny, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(OptionError, "no device for accelerator='cuda'", "'auto'"):
        SCVI(adata).train(accelerator="cuda")


@pytest.mark.parametrize("method", ["get_elbo", "get_reconstruction_error"])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_samples": 0}, OptionError),
        ({"n_samples": 1.0}, ArgumentTypeError),
        ({"batch_size": 0}, OptionError),
        ({"batch_size": "big"}, ArgumentTypeError),
    ],
)
def test_wrong_arguments_of_questions(trained, refused, method, options, error):
    with refused(error, *options, str(*options.values())):
        getattr(trained, method)(**options)


@pytest.mark.parametrize("options", [{"mc_samples": 0}, {"batch_size": 0}])
def test_wrong_arguments_of_the_latent(trained, refused, options):
    with refused(OptionError, *options, "at least 1"):
        trained.get_latent_representation(**options)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("n_latents", ("did you mean 'n_latent'",)),
        ("gene_likelyhood", ("did you mean 'gene_likelihood'?",)),
        ("zzz", ("there are", "'dispersion'")),
    ],
)
def test_unknown_arguments_of_the_model(tiny, refused, name, parts):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(ArgumentTypeError, "SCVI has no argument", repr(name), *parts):
        SCVI(adata, **{name: 1})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("max_epoch", ("did you mean 'max_epochs'",)),
        ("acelerator", ("did you mean 'accelerator'?",)),
        ("zzz", ("there are", "'accelerator'")),
    ],
)
def test_unknown_arguments_of_train(trained, refused, name, parts):
    with refused(ArgumentTypeError, "train has no argument", repr(name), *parts):
        trained.train(**{name: 1})


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"early_stopping": 1}, ("early_stopping must be True, False or None",)),
        ({"early_stopping_monitor": "elbo"}, ("early_stopping_monitor", "elbo_validation")),
        ({"early_stopping_mode": "least"}, ("early_stopping_mode must be one of 'min', 'max'",)),
        ({"early_stopping_patience": 0}, ("early_stopping_patience must be at least 1",)),
        ({"early_stopping_min_delta": "1"}, ("early_stopping_min_delta must be a number",)),
        ({"early_stopping_warmup_epochs": -1}, ("early_stopping_warmup_epochs",)),
        ({"max_steps": 0}, ("max_steps must be at least 1",)),
        ({"max_steps": 1.5}, ("max_steps must be an integer",)),
        ({"early_stopping_min_delta": float("nan")}, ("must be finite",)),
        ({"early_stopping_min_delta": None}, ("must be a number",)),
        ({"callbacks": [dict]}, ("callbacks takes objects, not classes",)),
        (
            {"plan_kwargs": {"lr_factor": 3}},
            ("plan_kwargs['lr_factor'] must be at least 0 and below 1",),
        ),
        ({"plan_kwargs": {"min_kl_weight": 2}}, ("min_kl_weight (2) is above max_kl_weight (1)",)),
        ({"callbacks": [3]}, ("callbacks must have one of", "on_epoch_end")),
        ({"callbacks": "progress"}, ("callbacks must be an object or a list",)),
        ({"logger": object()}, ("logger must have log_metrics",)),
        ({"logger": True}, ("logger=True is not known", "CSVLogger")),
        ({"plan_kwargs": {"reduce_lr_on_plateau": 1}}, ("must be True or False",)),
        ({"plan_kwargs": {"lr_scheduler_metric": "loss"}}, ("must be one of", "train_loss")),
        ({"plan_kwargs": {"lr_factor": "x"}}, ("plan_kwargs['lr_factor'] must be a number",)),
    ],
)
def test_wrong_training_options(trained, refused, options, parts):
    errors = OptionError, ArgumentTypeError
    before = len(trained.history)
    with pytest.raises(errors) as caught:
        trained.train(1, progress=False, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(trained.history) == before


# ---- model folders (more in store/test_folder.py) ----------------------------


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json", "history.csv"])
@pytest.mark.parametrize("damage", ["cut in half", "other bytes"])
def test_a_damaged_model_folder(saved, refused, file, damage):
    whole = (saved / file).read_bytes()
    (saved / file).write_bytes(
        whole[: len(whole) // 2] if damage == "cut in half" else b"\xff" * len(whole)
    )
    with refused(ModelFileError, str(saved / file), "damaged", "save the model again"):
        SCVI.load(saved)


# ---- every form of AnnData ---------------------------------------------------


def shuffled_entries(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with the entries of each row in another order."""
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [
            start + rng.permutation(stop - start)
            for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True)
        ]
    )
    return sp.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)


def split_entries(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with every entry above one stored as two."""
    coo = x.tocoo()
    twice = coo.data > 1
    data = np.concatenate([coo.data - twice, np.ones(twice.sum())])
    rows = np.concatenate([coo.row, coo.row[twice]])
    order = np.argsort(rows, kind="stable")
    genes = np.concatenate([coo.col, coo.col[twice]])[order]
    indptr = np.searchsorted(rows[order], np.arange(x.shape[0] + 1))
    return sp.csr_matrix((data[order], genes, indptr), shape=x.shape)


def stored_zeros(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with every zero stored."""
    n, g = x.shape
    indices = np.tile(np.arange(g), n)
    return sp.csr_matrix((x.toarray().ravel(), indices, np.arange(n + 1) * g), shape=x.shape)


FORMS = {
    "CSC": lambda x: x.tocsc(),
    "dense float64": lambda x: x.toarray().astype(np.float64),
    "dense integers": lambda x: x.toarray().astype(np.int64),
    "CSR of integers": lambda x: x.astype(np.int32),
    "CSR float64": lambda x: x.astype(np.float64),
    "sparse array": sp.csr_array,
    "entries in any order": shuffled_entries,
    "integers in any order": lambda x: shuffled_entries(x).astype(np.int64),
    "entries in pieces": lambda x: split_entries(x).astype(np.float32),
    "integers in pieces": lambda x: split_entries(x).astype(np.int64),
    "zeros stored": stored_zeros,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_gives_the_same_numbers_as_csr(tiny, trained, form):
    adata = tiny()
    matrix = form(adata.X)
    adata.X = matrix
    np.testing.assert_allclose(
        trained.get_latent_representation(adata),
        trained.get_latent_representation(),
        rtol=1e-6,
        atol=1e-7,
    )
    np.testing.assert_allclose(
        trained.get_elbo(adata, return_mean=False, seed=0),
        trained.get_elbo(return_mean=False, seed=0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("form", ["CSC", "dense integers", "integers in pieces", "zeros stored"])
def test_every_form_trains_the_same_model(tiny, form):
    losses = []
    for convert in (FORMS[form], sp.csr_matrix):
        adata = tiny()
        adata.X = convert(adata.X)
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata, **SMALL)
        model.train(1, progress=False)
        losses.append(model.history[["elbo_train", "elbo_validation"]].to_numpy())
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_users_matrix_stays_as_it_is(tiny, form):
    adata = tiny()
    adata.X = form(adata.X)
    before = adata.X.copy()
    SCVI.setup_anndata(adata, batch_key="batch")
    SCVI(adata, **SMALL).train(1, progress=False)
    assert type(adata.X) is type(before)
    assert adata.X.dtype == before.dtype
    if sp.issparse(before):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(adata.X, part), getattr(before, part))
    else:
        np.testing.assert_array_equal(adata.X, before)


def test_backed_data_are_refused_with_the_way_to_read_them(tiny, use, refused, tmp_path):
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        with refused(DataError, "X is on disk (backed)", "adata = adata.to_memory()"):
            use(backed)
        use(backed.to_memory())
    finally:
        backed.file.close()


def test_a_view_gives_what_its_copy_gives(tiny, trained):
    adata = tiny()
    part = adata[10:40, ::-1]
    assert part.is_view
    np.testing.assert_array_equal(
        trained.get_latent_representation(part), trained.get_latent_representation(part.copy())
    )
    assert part.is_view


def test_a_model_of_a_view(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    view = adata[adata.obs["cell_type"] != "B", adata.var_names[::-1]]
    models = [SCVI(data, **SMALL) for data in (view, view.copy())]
    for model in models:
        model.train(1, progress=False)
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in models))
    assert view.is_view
    assert adata.shape == (60, 30)


def test_setting_up_a_view_makes_it_a_copy_and_spares_the_whole(tiny):
    adata = tiny()
    view = adata[:20]
    with pytest.warns(ImplicitModificationWarning, match="view"):
        SCVI.setup_anndata(view, batch_key="batch")
    assert "vivace" not in adata.uns
    assert not view.is_view
    assert SCVI(view).schema.batches == ("b0", "b1")


# ---- columns that are allowed but idle ----------------------------------------


@pytest.mark.parametrize(
    ("argument", "column"),
    [
        ({"batch_key": "one"}, "one"),
        ({"categorical_covariate_keys": ["donor", "one"]}, "one"),
        ({"continuous_covariate_keys": ["age", "flat"]}, "flat"),
    ],
)
def test_a_covariate_with_one_value_is_warned_of(tiny, argument, column):
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


# ---- values that are not counts -----------------------------------------------


def negative_somewhere(tiny, value=-0.5):
    adata = tiny()
    x = adata.X.toarray()
    x[4] += 1
    x[4, 7] = value
    adata.X = sp.csr_matrix(x)
    return adata


def test_negative_values_are_for_the_normal_likelihood(tiny, refused):
    adata = negative_somewhere(tiny)
    with refused(DataError, "negative", "gene7", "cell4"):
        SCVI.setup_anndata(adata)
    SCVI.setup_anndata(adata, allow_non_integer=True)
    with refused(DataError, "negative", "gene7", "cell4"):
        SCVI(adata)
    with refused(OptionError, "log_variational=False"):
        SCVI(adata, gene_likelihood="normal")
    model = SCVI(adata, gene_likelihood="normal", log_variational=False, n_hidden=8, n_latent=2)
    model.train(2, progress=False)
    assert np.isfinite(model.get_elbo(return_mean=False)).all()


def test_a_cell_whose_values_add_up_to_nothing_is_refused(tiny, refused):
    adata = negative_somewhere(tiny, value=-1e4)
    with refused(DataError, "no counts", "cell4"):
        SCVI.setup_anndata(adata, allow_non_integer=True)
