"""A script written for scvi-tools' SCVI runs with a changed import."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import vivace
import vivace as scvi
from vivace import SCVI, LinearSCVI
from vivace.errors import _REPLACED, ArgumentTypeError, MissingNameError


def test_a_script_for_scvi_tools_runs(tiny, tmp_path):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data)
    scvi.settings.seed = 7
    scvi.model.SCVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = scvi.model.SCVI(adata, n_layers=2, n_latent=5, gene_likelihood="nb")
    model.view_anndata_setup()
    model.train(max_epochs=2, train_size=0.8, batch_size=16, accelerator="cpu", progress=False)
    adata.obsm["X_scVI"] = model.get_latent_representation()
    assert adata.obsm["X_scVI"].shape == (60, 5)
    assert {"train_loss", "elbo_train", "elbo_validation"} <= set(model.history)
    assert isinstance(model.get_elbo(), float)
    model.save(tmp_path / "model", overwrite=True)
    again = scvi.model.SCVI.load(tmp_path / "model", adata=adata)
    assert np.array_equal(again.get_latent_representation(), adata.obsm["X_scVI"])


def test_a_script_for_linear_scvi_runs(tiny):
    adata = tiny()
    scvi.model.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.LinearSCVI(adata, n_latent=4)
    model.train(max_epochs=2, progress=False)
    loadings = model.get_loadings()
    assert isinstance(loadings, pd.DataFrame)
    assert list(loadings.index) == list(adata.var_names)
    assert list(loadings.columns) == ["Z_0", "Z_1", "Z_2", "Z_3"]


def test_the_seed_of_the_package_starts_the_model(tiny):
    def latent(seed):
        vivace.settings.seed = seed
        adata = tiny()
        vivace.SCVI.setup_anndata(adata)
        model = vivace.SCVI(adata, n_hidden=8, n_latent=2)
        model.train(1, progress=False)
        return model.get_latent_representation()

    assert np.array_equal(latent(1), latent(1))
    assert not np.array_equal(latent(1), latent(2))


def test_the_classes_are_the_same():
    assert vivace.model.SCVI is vivace.SCVI
    assert vivace.model.LinearSCVI is vivace.LinearSCVI


@pytest.mark.parametrize("name", ["distributions", "nn", "model"])
def test_rooms_that_users_name(name):
    assert getattr(vivace, name).__all__


# ---- names that scvi-tools has or had -------------------------------------------------

QUICK = {"max_epochs": 1, "progress": False}


def train(**arguments: Any) -> Callable[..., Any]:
    """What to do instead: train with these arguments."""
    return lambda model, adata, path: model.train(**{"max_steps": 1, **QUICK} | arguments)


def set_up(**arguments: Any) -> Callable[..., Any]:
    return lambda model, adata, path: SCVI.setup_anndata(adata, **arguments)


def move(model: SCVI, adata: AnnData, path: Any) -> None:
    model.to_device("cpu")


def pass_cells(model: SCVI, adata: AnnData, path: Any) -> None:
    model.get_elbo(adata=adata)


def lay_counts(model: SCVI, adata: AnnData, path: Any) -> None:
    adata.layers["counts"] = adata.X
    SCVI.setup_anndata(adata, layer="counts")


def copy_and_set_up(model: SCVI, adata: AnnData, path: Any) -> None:
    before = adata
    adata = adata.copy()
    SCVI.setup_anndata(adata)
    assert "vivace" not in before.uns


def read(model: SCVI, adata: AnnData, path: Any) -> None:
    adata.write_h5ad(path / "cells.h5ad")
    assert anndata.read_h5ad(path / "cells.h5ad").shape == adata.shape


# name: a function that has no such argument, a part of the message, what to do instead
FORMER = {
    "use_gpu": ("train", "train(accelerator=...)", train(accelerator="auto")),
    "use_cuda": ("SCVI", "train(accelerator=...)", train(accelerator="cpu")),
    "accelerator": ("load", "model.to_device('cpu')", move),
    "device": ("load", "model.to_device('cpu')", move),
    "devices": ("train", "train(accelerator=...)", train(accelerator="auto")),
    "dataloader": ("get_elbo", "adata=", pass_cells),
    "datamodule": ("train", "adata=", pass_cells),
    "registry": ("SCVI", "adata=", lambda model, adata, path: SCVI(adata=model.adata)),
    "prefix": ("save", "dir_path", lambda model, adata, path: model.save(path / "mine_model")),
    "copy": ("setup_anndata", "adata = adata.copy()", copy_and_set_up),
    "unlabeled_category": ("setup_anndata", "leave it out", set_up()),
    "X_layers_key": ("setup_anndata", "layer=", lay_counts),
    "n_epochs": ("train", "max_epochs=", train(max_epochs=1)),
    "epochs": ("train", "max_epochs=", train(max_epochs=1)),
    "use_early_stopping": ("train", "early_stopping=", train(early_stopping=True)),
    "enable_progress_bar": ("train", "progress=", train(progress=False)),
    "progress_bar_refresh_rate": ("train", "progress=", train(progress=False)),
    "plan_config": ("train", "plan_kwargs=", train(plan_kwargs={"lr": 1e-3})),
    "lr": ("train", "plan_kwargs={'lr': 1e-3}", train(plan_kwargs={"lr": 1e-3})),
    "weight_decay": (
        "train", "plan_kwargs={'weight_decay': 1e-6}", train(plan_kwargs={"weight_decay": 1e-6})
    ),
    "n_epochs_kl_warmup": (
        "train",
        "plan_kwargs={'n_epochs_kl_warmup': 400}",
        train(plan_kwargs={"n_epochs_kl_warmup": 400}),
    ),
    "n_steps_kl_warmup": (
        "train",
        "plan_kwargs={'n_steps_kl_warmup': 400}",
        train(plan_kwargs={"n_steps_kl_warmup": 400}),
    ),
    "check_val_every_n_epoch": ("train", "every epoch is validated", train()),
    "frequency": ("train", "every epoch is validated", train()),
    "vivace.data.setup_anndata": ("", "SCVI.setup_anndata(adata, ...)", set_up(batch_key="batch")),
    "vivace.data.transfer_anndata_setup": ("", "adata=", pass_cells),
    "vivace.data.view_anndata_setup": (
        "", "model.view_anndata_setup()", lambda model, adata, path: model.view_anndata_setup()
    ),
    "vivace.data.read_h5ad": ("", "anndata.read_h5ad", read),
    "vivace.data.synthetic_iid": (
        "", "vivace.datasets.pbmc3k()", lambda model, adata, path: vivace.datasets.pbmc3k()
    ),
    "vivace.settings.verbosity": ("", "progress=False", train(progress=False)),
    "vivace.settings.dl_num_workers": ("", "leave it out", train()),
    "model.history_": ("", "model.history.", lambda model, adata, path: model.history),
    "model.is_trained_": ("", "model.is_trained.", lambda model, adata, path: model.is_trained),
    "model.adata_manager": (
        "", "model.view_anndata_setup()", lambda model, adata, path: model.view_anndata_setup()
    ),
    "model.registry": (
        "", "model.view_anndata_setup()", lambda model, adata, path: model.view_anndata_setup()
    ),
    "model.posterior": (
        "",
        "model.get_latent_representation()",
        lambda model, adata, path: model.get_latent_representation(),
    ),
}  # fmt: skip


def test_every_former_name_is_tried():
    assert set(FORMER) == set(_REPLACED)


@pytest.fixture
def own_model(saved, tiny) -> SCVI:
    """The small trained model, with data."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    return SCVI.load(saved, adata)


@pytest.mark.parametrize("name", FORMER)
def test_what_took_the_place_of_a_former_name_works(name, own_model, tiny, tmp_path, refused):
    where, part, do = FORMER[name]
    calls = {
        "SCVI": lambda **named: SCVI(own_model.adata, **named),
        "setup_anndata": lambda **named: SCVI.setup_anndata(tiny(), **named),
        "load": lambda **named: SCVI.load("model", **named),
        "save": lambda **named: own_model.save("model", **named),
        "train": own_model.train,
        "get_elbo": own_model.get_elbo,
    }
    if where:
        with refused(ArgumentTypeError, f"{where} has no argument {name!r}; ", part):
            calls[where](**{name: 1})
    else:
        place, _, last = name.rpartition(".")
        said = {"model": "SCVI"}.get(place, place)
        with refused(MissingNameError, f"{said} has no {last!r}; ", part):
            if place == "vivace.settings":
                setattr(vivace.settings, last, 1)
            else:
                getattr(own_model if place == "model" else vivace.data, last)
    do(own_model, tiny(), tmp_path)


@pytest.mark.parametrize("method", ["save", "load", "get_latent_representation", "to_device"])
@pytest.mark.parametrize("name", ["use_gpu", "use_cuda"])
def test_the_device_is_explained_everywhere(own_model, refused, method, name):
    said = f"{method} has no argument '{name}'; choose the device with train(accelerator=...)."
    with refused(ArgumentTypeError, said):
        getattr(own_model, method)("model", **{name: True})


def test_models_that_are_not_there(refused):
    with refused(MissingNameError, "vivace.model has no 'SCANVI'; did you mean 'SCVI'?"):
        vivace.model.SCANVI  # noqa: B018
    with refused(MissingNameError, "vivace has no 'external'; available: "):
        vivace.external  # noqa: B018
    assert not hasattr(vivace.model, "TOTALVI")
    assert not hasattr(vivace.data, "poisson_gene_selection")


def test_arguments_by_position(own_model, refused):
    rows = [0, 1]
    assert own_model.get_elbo(None, rows, 128, seed=0) == own_model.get_elbo(
        indices=rows, batch_size=128, seed=0
    )
    with refused(ArgumentTypeError, "get_elbo takes adata, indices, batch_size by position; give"):
        own_model.get_elbo(None, rows, 128, True)
    with refused(ArgumentTypeError, "load takes dir_path, adata by position; give its other"):
        SCVI.load("model", None, False)
    with refused(ArgumentTypeError, "LinearSCVI takes adata by position; give its other"):
        LinearSCVI(own_model.adata, 128)
    with refused(ArgumentTypeError, "save needs dir_path; give it as dir_path=."):
        own_model.save()
    with refused(ArgumentTypeError, "setup_anndata needs adata; give it as adata=."):
        SCVI.setup_anndata(batch_key="batch")
    with refused(ArgumentTypeError, "get_elbo was given adata twice; leave one of the two out."):
        own_model.get_elbo(None, adata=None)


def test_misspelt_names_are_refused(own_model, refused):
    with refused(MissingNameError, "vivace.settings has no 'sed'; did you mean 'seed'?"):
        vivace.settings.sed = 1
    said = "SCVI has no 'get_latent_representaton'; did you mean 'get_latent_representation'"
    with refused(MissingNameError, said):
        own_model.get_latent_representaton()
    assert not hasattr(own_model, "_unknown")
    assert copy.copy(own_model).is_trained
