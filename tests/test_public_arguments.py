"""What holds for the arguments of every public method, whatever is added later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI, LinearSCVI
from vivace.errors import ArgumentTypeError, OptionError, VivaceError

ARRAY = np.arange(200).reshape(2, 100)
FRAME = pd.DataFrame({"a": [1, 2], "b": [3, 4]})


def public_methods() -> Iterator[tuple[type[Any], str]]:
    for cls in (SCVI, LinearSCVI):
        yield cls, "__init__"
        for name in dir(cls):
            if not name.startswith("_") and callable(getattr(cls, name)):
                yield cls, name


METHODS = [pytest.param(*m, id=f"{m[0].__name__}.{m[1]}") for m in public_methods()]


def is_flag(parameter: inspect.Parameter) -> bool:
    """Whether an argument is True or False; one that is also a name or a list is not."""
    if "bool" not in str(parameter.annotation):
        return isinstance(parameter.default, bool)
    return parameter.annotation in (bool, "bool", "bool | None")


FLAGS = [
    pytest.param(cls, name, parameter.name, id=f"{cls.__name__}.{name}.{parameter.name}")
    for cls, name in public_methods()
    for parameter in inspect.signature(getattr(cls, name)).parameters.values()
    if is_flag(parameter)
]
SEEDED = [
    pytest.param(cls, name, id=f"{cls.__name__}.{name}")
    for cls, name in public_methods()
    if "seed" in inspect.signature(getattr(cls, name)).parameters
]


@pytest.fixture(scope="module")
def models(tiny) -> dict[type[Any], Any]:
    adata = tiny()
    made = {}
    for cls in (SCVI, LinearSCVI):
        cls.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
        made[cls] = cls(adata, n_hidden=16, n_latent=3)
        made[cls].train(max_epochs=1, batch_size=20, seed=1, progress=False)
    return made


@pytest.fixture
def call(models, tiny, tmp_path) -> Callable[..., Any]:
    """Calls a method with what it cannot do without."""
    needed = {
        "__init__": lambda cls: {"adata": models[cls].adata},
        "setup_anndata": lambda cls: {"adata": tiny()},
        "decode": lambda cls: {"z": np.zeros((60, 3))},
        "differential_abundance": lambda cls: {"sample_key": "donor"},
        "differential_expression": lambda cls: {"groupby": "cell_type"},
        "load": lambda cls: {"dir_path": tmp_path / "none"},
        "load_query_data": lambda cls: {"adata": tiny(), "reference_model": models[cls]},
        "prepare_query_anndata": lambda cls: {"adata": tiny(), "reference_model": models[cls]},
        "save": lambda cls: {"dir_path": tmp_path / "saved"},
        "to_device": lambda cls: {"device": "cpu"},
        "transfer_labels": lambda cls: {
            "query": tiny(20), "labels_key": "cell_type", "reference": tiny()
        },
    }  # fmt: skip

    def ask(cls: type[Any], name: str, **given: Any) -> Any:
        arguments = needed.get(name, lambda cls: {})(cls) | given
        is_plain = inspect.isfunction(inspect.getattr_static(cls, name))
        if name == "__init__":
            return cls(**arguments)
        return getattr(models[cls] if is_plain else cls, name)(**arguments)

    return ask


@pytest.mark.parametrize(("cls", "method", "argument"), FLAGS)
def test_a_flag_is_true_or_false(call, refused, cls, method, argument):
    for value in ("zzz", 1, ARRAY, float("nan"), [True], FRAME):
        with refused(ArgumentTypeError, f"{argument} must be True", "False", ", not "):
            call(cls, method, **{argument: value})


@pytest.mark.parametrize(("cls", "method"), SEEDED)
def test_a_seed_is_checked_even_if_nothing_is_sampled(call, refused, cls, method):
    with refused(ArgumentTypeError, "seed must be an integer, not 'zzz'"):
        call(cls, method, seed="zzz")


def test_flags_of_numpy(models, tmp_path, tiny):
    yes, no = np.True_, np.False_
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch", allow_non_integer=yes)
    model = SCVI(adata, n_hidden=16, n_latent=3, encode_covariates=yes)
    model.train(max_epochs=1, early_stopping=no, progress=no)
    model.get_normalized_expression(return_numpy=no, return_mean=yes, silent=yes)
    query = SCVI.load_query_data(tiny(20), model, freeze_dropout=yes)
    query.save(tmp_path / "query", save_anndata=yes)
    query.save(tmp_path / "query", overwrite=yes)
    assert SCVI.load(tmp_path / "query").module.surgery.freeze_dropout is True


@pytest.mark.parametrize(("cls", "method"), METHODS)
def test_type_hints_can_be_read(cls, method):
    assert "return" in get_type_hints(getattr(cls, method))


WRONG = [ARRAY, FRAME, {"a": ARRAY}, object(), 1.5, "z" * 200, ["zzz"] * 100, (), float("nan")]
ARGUMENTS = [
    pytest.param(cls, name, parameter.name, id=f"{cls.__name__}.{name}.{parameter.name}")
    for cls, name in public_methods()
    for parameter in inspect.signature(getattr(cls, name)).parameters.values()
    if parameter.name not in ("self", "cls") and parameter.kind is not parameter.VAR_KEYWORD
    if cls is SCVI or name in ("__init__", "get_loadings")  # all others are the same functions
]


@pytest.mark.parametrize(("cls", "method", "argument"), ARGUMENTS)
def test_a_wrong_value_gives_one_short_line(call, cls, method, argument, tmp_path, monkeypatch):
    """If it is refused at all; an error that is not our own fails the test."""
    monkeypatch.chdir(tmp_path)  # some of the values are paths, too
    for value in WRONG:
        try:
            call(cls, method, **{argument: value})
        except VivaceError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 700


@pytest.mark.parametrize("value", [7, [1, 2], 1.5, "zzz", ARRAY])
def test_the_arguments_of_weights_are_a_dict(call, refused, value):
    with refused(ArgumentTypeError, "importance_weighting_kwargs must be a dict or None, not "):
        call(SCVI, "differential_expression", importance_weighting_kwargs=value)


@pytest.mark.parametrize("method", ["view_anndata_setup", "to_device"])
def test_unknown_arguments_of_what_is_no_question(call, refused, method):
    with refused(ArgumentTypeError, f"{method} has no argument 'foo'"):
        call(SCVI, method, foo=1)


def test_arrays_in_place_of_words(models, refused):
    adata = models[SCVI].adata
    for option in ("preset", "dispersion", "use_layer_norm", "use_batch_norm"):
        for cls in models:
            with refused(OptionError, f"{option} must be one of '", ", not array("):
                cls(adata, **{option: ARRAY})
    with refused(ArgumentTypeError, "max_steps must be an integer, not array("):
        models[SCVI].train(max_steps=ARRAY)
    with refused(ArgumentTypeError, "change_fn must be a function, not array("):
        models[SCVI].differential_expression(groupby="cell_type", change_fn=ARRAY)
    with refused(ArgumentTypeError, "z must be an array of numbers, not None"):
        models[SCVI].decode(z=None)
