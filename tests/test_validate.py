"""Wrong and unknown arguments are refused in one sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI
from vivace.errors import (
    ArgumentTypeError,
    OptionError,
)
from vivace.validate import COUNT, Choice, Number, checked

SMALL = {"n_hidden": 16, "n_latent": 3}


@pytest.mark.parametrize("data", ["cells.h5ad", None, np.ones((3, 2)), pd.DataFrame({"g": [1]})])
def test_data_that_are_not_an_anndata_are_refused(trained, saved, refused, data):
    name = type(data).__name__
    with refused(ArgumentTypeError, "setup_anndata takes an AnnData", name):
        SCVI.setup_anndata(data)
    with refused(ArgumentTypeError, "SCVI takes an AnnData", name, "anndata."):
        SCVI(data)
    if data is not None:  # None means the model's own data
        for question in (
            trained.get_latent_representation,
            trained.get_elbo,
            trained.get_reconstruction_error,
            lambda adata: SCVI.load(saved, adata),
        ):
            with refused(ArgumentTypeError, "must be an AnnData", name, "anndata."):
                question(data)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"n_latent": 2.5}, ArgumentTypeError, ("int", "2.5")),
        ({"n_latent": "10"}, ArgumentTypeError, ("int", "'10'")),
        ({"n_hidden": True}, ArgumentTypeError, ("int", "True")),
        ({"n_layers": None}, ArgumentTypeError, ("int", "None")),
        ({"n_latent": 0}, OptionError, ("at least 1", "0")),
        ({"n_hidden": 10**6}, OptionError, ("at most 65,536", "1000000")),
        ({"n_layers": 1000.0}, OptionError, ("at most 256", "1000")),
        ({"batch_embedding_kwargs": {"embedding_dim": 2.5}}, ArgumentTypeError, ("2.5",)),
        ({"dropout_rate": "0.1"}, ArgumentTypeError, ("number", "'0.1'")),
        ({"dropout_rate": 1.0}, OptionError, ("below 1", "1.0")),
        ({"dropout_rate": float("nan")}, OptionError, ("below 1", "nan")),
        ({"encode_covariates": 1}, ArgumentTypeError, ("True or False", "1")),
        ({"gene_likelihood": "gamma"}, OptionError, ("'zinb', 'nb', 'poisson'", "'gamma'")),
        ({"gene_likelihood": ["nb"]}, OptionError, ("'zinb', 'nb', 'poisson'", "['nb']")),
        ({"dispersion": "genes"}, OptionError, ("'gene'", "'genes'")),
        ({"latent_distribution": 3}, OptionError, ("'normal'", "3")),
        ({"use_batch_norm": True}, OptionError, ("'both'", "True")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_options_of_the_model_are_refused(tiny, refused, options, error, parts):
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
def test_wrong_arguments_of_train_are_refused(tiny, refused, options, error, parts):
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
        ({"n_samples": 1.5}, ArgumentTypeError),
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
        ("zzz", ("available: ", "'dispersion'")),
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
        ("zzz", ("available: ", "'accelerator'")),
    ],
)
def test_unknown_arguments_of_train_are_refused(trained, refused, name, parts):
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
        ({"logger": True}, ("logger=True is not supported", "CSVLogger")),
        ({"plan_kwargs": {"reduce_lr_on_plateau": 1}}, ("must be True or False",)),
        ({"plan_kwargs": {"lr_scheduler_metric": "loss"}}, ("must be one of", "train_loss")),
        ({"plan_kwargs": {"lr_factor": "x"}}, ("plan_kwargs['lr_factor'] must be a number",)),
    ],
)
def test_wrong_training_options_are_refused(trained, refused, options, parts):
    errors = OptionError, ArgumentTypeError
    before = len(trained.history)
    with pytest.raises(errors) as caught:
        trained.train(1, progress=False, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(trained.history) == before


def test_paths_that_the_system_cannot_use(trained, tiny, refused, tmp_path):
    query = tiny(20)
    for name, reason in (("x" * 300, "File name too long"), ("a\0b", "null")):
        for argument, call in (
            ("dir_path", trained.save),
            ("dir_path", SCVI.load),
            ("reference_model", lambda path: SCVI.load_query_data(query, path)),
            ("reference_model", lambda path: SCVI.prepare_query_anndata(query, path)),
            ("out", lambda path: trained.get_normalized_expression(out=path)),
            ("out", lambda path: trained.posterior_predictive_sample(out=path)),
        ):
            for path in (str(tmp_path / name), tmp_path / name):
                with refused(OptionError, f"{argument} is not a path that can be used", reason):
                    call(path)


def test_numbers_reach_a_function_as_plain_python():
    @checked(share=Number(at_least=0), word=Choice(("a", "b")), n=COUNT)
    def take(n=1, share=0.5, word="a", *, flag: bool = True):
        return n, share, word, flag

    given = take(np.float64(2), np.float32(0.1), np.array("b"), flag=np.False_)
    assert given == (2, 0.1, "b", False)
    assert [type(value) for value in given] == [int, float, str, bool]
    assert take(2.0, np.int64(3))[:2] == (2, 3)
    assert take(share=10**30)[1] == 1e30
    assert take()[0] == 1
