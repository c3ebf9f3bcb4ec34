"""Every combination of options trains, answers, saves and loads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model_answers import assert_same_bits, get_answers
from vivace import SCVI, LinearSCVI
from vivace.errors import ArgumentTypeError, OptionError

SCVI_OPTIONS = {
    "gene_likelihood": ["zinb", "nb", "poisson", "normal"],
    "dispersion": ["gene", "gene-batch", "gene-label", "gene-cell"],
    "use_observed_lib_size": [True, False],
    "latent_distribution": ["normal", "ln"],
    "encode_covariates": [False, True],
    "deeply_inject_covariates": [True, False],
    "batch_representation": ["one-hot", "embedding"],
    "n_layers": [1, 2],
    "use_batch_norm": ["none", "encoder", "decoder", "both"],
    "use_layer_norm": ["none", "encoder", "decoder", "both"],
    "log_variational": [True, False],
    "var_activation": ["exp", "softplus"],
    "dropout_rate": [0.0, 0.1],
}
COLUMNS = {
    "size_factor_key": [None, "depth"],
    "categorical_covariate_keys": [None, ["donor"]],
    "continuous_covariate_keys": [None, ["age"]],
}


def choices(options):
    return st.fixed_dictionaries({k: st.sampled_from(v) for k, v in options.items()})


def two_epochs(cls, tiny, columns, options, recipe):
    adata = tiny(n_cells=50)
    cls.setup_anndata(adata, batch_key="batch", labels_key="donor", **columns)
    model = cls(adata, n_hidden=8, n_latent=3, **options)
    model.train(2, recipe=recipe, batch_size=16, progress=False)
    assert np.isfinite(model.history["train_loss"]).all()
    return model, adata


def check_answers(model, adata):
    """Answers are finite, and the same after saving and loading, with and without data."""
    latent = model.get_latent_representation(seed=1)
    elbo = model.get_elbo(return_mean=False, seed=1)
    error = model.get_reconstruction_error(return_mean=False, seed=1)["reconstruction_loss"]
    assert np.isfinite(latent).all()
    assert np.isfinite(elbo).all()
    assert (elbo <= -error + 1e-3).all()  # neither KL is negative
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        for again in (type(model).load(Path(folder) / "model", data) for data in (adata, None)):
            data = adata if again.adata is None else None
            assert np.array_equal(again.get_latent_representation(data, seed=1), latent)
            assert np.array_equal(again.get_elbo(data, return_mean=False, seed=1), elbo)


ONE_OF_EACH = {k: v[0] for k, v in SCVI_OPTIONS.items()}
slow = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@slow
@example(ONE_OF_EACH, {}, "fast")
@given(choices(SCVI_OPTIONS), choices(COLUMNS), st.sampled_from(["fast", "scvi-tools"]))
def test_every_combination_of_scvi(tiny, options, columns, recipe):
    check_answers(*two_epochs(SCVI, tiny, columns, options, recipe))


LINEAR_OPTIONS = SCVI_OPTIONS | {
    "use_layer_norm": ["none", "encoder"],
    "use_batch_norm": ["none", "encoder", "decoder", "both", True, False],
}


@slow
@given(choices(LINEAR_OPTIONS), choices(COLUMNS), st.sampled_from(["fast", "scvi-tools"]))
def test_every_combination_of_linear_scvi(tiny, options, columns, recipe):
    model, adata = two_epochs(LinearSCVI, tiny, columns, options, recipe)
    check_answers(model, adata)
    loadings = model.get_loadings()
    assert loadings.shape == (adata.n_vars, 3)
    assert np.isfinite(loadings.to_numpy()).all()


@pytest.mark.parametrize("cls", [SCVI, LinearSCVI])
@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("dispersion", "gene-batch", "batch_key"),
        ("dispersion", "gene-label", "labels_key"),
        ("batch_representation", "embedding", "batch_key"),
    ],
)
def test_an_option_that_needs_a_column_names_it(cls, option, value, key, tiny, refused):
    adata = tiny()
    cls.setup_anndata(adata)
    with refused(OptionError, option, value, key):
        cls(adata, **{option: value})


@pytest.mark.parametrize("cls", [SCVI, LinearSCVI])
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (5, ArgumentTypeError),
        ({"dim": 5}, ArgumentTypeError),
        ({"embedding_dim": 0}, OptionError),
        ({"embedding_dim": 2.5}, ArgumentTypeError),
    ],
)
def test_embedding_options_are_checked(cls, given, error, tiny, refused):
    adata = tiny()
    cls.setup_anndata(adata, batch_key="batch")
    with refused(error, "embedding"):
        cls(adata, batch_representation="embedding", batch_embedding_kwargs=given)


@pytest.mark.parametrize("where", ["decoder", "both"])
def test_a_linear_decoder_has_no_layer_norm(where, tiny, refused):
    adata = tiny()
    LinearSCVI.setup_anndata(adata)
    with refused(OptionError, "use_layer_norm", where, "'encoder'"):
        LinearSCVI(adata, use_layer_norm=where)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "poisson"},
        {"gene_likelihood": "zero_inflated_negative_binomial"},
        {"n_layers": 2, "encode_covariates": True},
        {"n_layers": 2, "deeply_inject_covariates": False},
        {"use_batch_norm": "none", "use_layer_norm": "both"},
        {"log_variational": False, "dropout_rate": 0},
        {"n_latent": np.int64(4), "dropout_rate": np.float32(0.25)},
    ],
    ids=str,
)
def test_every_option_trains_and_survives_a_save(tiny, ready, tmp_path, options):
    model = ready(**options)
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert loaded.config == model.config
    assert_same_bits(get_answers(model), get_answers(loaded))
    assert np.isfinite(get_answers(model)["elbo"]).all()
