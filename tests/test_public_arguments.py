"""What holds for the arguments of every public method, whatever is added later."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from vivace import SCVI, LinearSCVI
from vivace.errors import ArgumentTypeError, DataError, OptionError, VivaceError

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


def make_models(tiny: Callable[..., AnnData]) -> dict[type[Any], Any]:
    """A trained model of each class."""
    adata = tiny()
    made = {}
    for cls in (SCVI, LinearSCVI):
        cls.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
        made[cls] = cls(adata, n_hidden=16, n_latent=3)
        made[cls].train(max_epochs=1, batch_size=20, seed=1, progress=False)
    return made


@pytest.fixture(scope="module")
def models(tiny) -> dict[type[Any], Any]:
    return make_models(tiny)


def caller(
    models: dict[type[Any], Any], tiny: Callable[..., AnnData], folder: Path
) -> Callable[..., Any]:
    """Calls a method with what it cannot do without."""
    needed = {
        "__init__": lambda cls: {"adata": models[cls].adata},
        "setup_anndata": lambda cls: {"adata": tiny()},
        "decode": lambda cls: {"z": np.zeros((60, 3))},
        "differential_abundance": lambda cls: {"sample_key": "donor"},
        "differential_expression": lambda cls: {"groupby": "cell_type"},
        "load": lambda cls: {"dir_path": folder / "none"},
        "load_query_data": lambda cls: {"adata": tiny(), "reference_model": models[cls]},
        "prepare_query_anndata": lambda cls: {"adata": tiny(), "reference_model": models[cls]},
        "save": lambda cls: {"dir_path": folder / "saved"},
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


@pytest.fixture
def call(models, tiny, tmp_path) -> Callable[..., Any]:
    return caller(models, tiny, tmp_path)


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


WRONG = [
    ARRAY, FRAME, {"a": ARRAY}, object(), 1.5, "z" * 200, ["zzz"] * 100, (), float("nan"), 10**30, -(10**400),
    np.array(3), np.array("z"), np.int64(-2), np.zeros(60, int), b"z", "z" * 300, "z\n" * 100, {"z" * 10**5: 1},
]  # fmt: skip
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
            with refused(
                OptionError, f"{option} must be one of '", ", not an ndarray of shape (2, 100)"
            ):
                cls(adata, **{option: ARRAY})
    with refused(
        ArgumentTypeError, "max_steps must be an integer, not an ndarray of shape (2, 100)"
    ):
        models[SCVI].train(max_steps=ARRAY)
    with refused(
        ArgumentTypeError, "change_fn must be a function, not an ndarray of shape (2, 100)"
    ):
        models[SCVI].differential_expression(groupby="cell_type", change_fn=ARRAY)
    with refused(ArgumentTypeError, "z must be an array of numbers, not None"):
        models[SCVI].decode(z=None)


# ---- right values in other types -------------------------------------------------------


def arguments_of(*annotations: str) -> list[Any]:
    """Arguments of SCVI's methods with one of these annotations."""
    return [
        pytest.param(name, parameter.name, id=f"{name}.{parameter.name}")
        for cls, name in public_methods()
        for parameter in inspect.signature(getattr(cls, name)).parameters.values()
        if cls is SCVI and parameter.annotation in annotations
    ]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    elif isinstance(one, SCVI):
        assert one.config == other.config
        assert one.schema == other.schema
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, torch.distributions.Distribution):
        np.testing.assert_array_equal(one.mean, other.mean)
    elif hasattr(one, "todense"):
        np.testing.assert_array_equal(one.todense(), other.todense())
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("method", "argument"), arguments_of("int", "int | None"))
def test_integers_of_every_type(call, method, argument):
    """R's numbers are floats, and those of arrays NumPy's."""
    has_seed = "seed" in inspect.signature(getattr(SCVI, method)).parameters
    same: dict[str, Any] = {"seed": 0} if has_seed else {}
    same |= {"transfer_labels": {"expression": False}}.get(method, {})
    if method in ("get_marginal_ll", "get_importance_weights"):
        same["n_mc_samples"] = 4
    n = 30 if argument == "batch_size" else 2
    expected = call(SCVI, method, **same | {argument: n})
    for value in (float(n), np.int64(n), np.float32(n), np.array(n), np.array(n, float)):
        assert_same(call(SCVI, method, **same | {argument: value}), expected)
    assert_same(call(SCVI, method, **same | {argument: torch.tensor(n)}), expected)


@pytest.mark.parametrize(("method", "argument"), arguments_of("int", "int | None"))
def test_numbers_that_are_no_integers(call, refused, method, argument):
    for value in (2.5, float("nan"), float("inf"), np.float32(0.1), True, "2", [2]):
        with refused(ArgumentTypeError, f"{argument} must be an integer, not "):
            call(SCVI, method, **{argument: value})
    with refused(OptionError, f"{argument} must ", "not 1" + 30 * "0"):
        call(SCVI, method, **{argument: 10**30})


NAMES = {"gene_list": "gene3"} | dict.fromkeys(
    ["categorical_covariate_keys", "continuous_covariate_keys"], "age"
)


@pytest.mark.parametrize(("method", "argument"), arguments_of("Sequence[str] | None"))
def test_one_name_for_a_list_of_names(models, tiny, method, argument):
    name = NAMES[argument]
    if method == "setup_anndata":
        for value in (name, [name], (name,), np.array(name), np.array([name]), pd.Index([name])):
            adata = tiny()
            adata.obs["age"] = adata.obs["age"].round(-1)
            SCVI.setup_anndata(adata, **{argument: value})
            assert list(getattr(SCVI(adata).schema.declarations, argument)) == [name]
        return
    ask = getattr(models[SCVI], method)
    expected = ask(gene_list=[name], seed=0)
    mask = pd.Series(False, index=models[SCVI].schema.genes[::-1])
    mask[name] = True
    for value in (name, (name,), np.array(name), pd.Index([name]), mask, mask.astype("boolean")):
        assert_same(ask(gene_list=value, seed=0), expected)


WITH_CELLS = [
    pytest.param(name, argument, id=f"{name}.{argument}")
    for cls, name in public_methods()
    for argument in inspect.signature(getattr(cls, name)).parameters
    if cls is SCVI and argument in ("indices", "idx1", "idx2")
]


@pytest.mark.parametrize(("method", "argument"), WITH_CELLS)
def test_every_method_reads_masks_alike(models, refused, method, argument):
    model = models[SCVI]
    mask = model.adata.obs["cell_type"] == "T"
    rows = np.flatnonzero(mask)
    more: dict[str, Any] = {"idx2": {"idx1": ~mask}, "idx1": {}}.get(argument, {})
    if method == "decode":
        more = {"z": np.zeros((len(rows), 3))}
    elif method == "differential_abundance":
        more = {"sample_key": "donor"}
    if "seed" in inspect.signature(getattr(SCVI, method)).parameters:
        more["seed"] = 0

    def ask(value: Any) -> Any:
        return getattr(model, method)(**{argument: value}, **more)

    expected = ask(rows)
    shuffled = mask.sample(frac=1.0, random_state=0)
    for value in (mask, shuffled, shuffled.astype("boolean"), list(mask), rows.astype(float)):
        assert_same(ask(value), expected)
    with refused(OptionError, f"{argument} holds only 0 and 1", f"{argument}.astype(bool)"):
        ask(mask.astype(int))
    with refused(DataError, f"{argument} has no value for 1 of 60 cells"):
        ask(mask.astype("boolean").where(np.arange(60) > 0))
