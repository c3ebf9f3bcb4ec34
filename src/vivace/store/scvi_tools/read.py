"""Reads a folder that scvi-tools saved; nothing in it is executed.

``model.pt`` is a pickle. torch's restricted unpickler reads tensors and plain containers, and
our stand-ins replace the few other names in such a file. NumPy arrays are made from their
bytes, because NumPy's own unpickling trusts a hostile file. What pandas wrote (the history) is
dropped. Any other name is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivace.config import ModelConfig, settings
from vivace.data.columns import NO_SCALE, plain_category
from vivace.data.schema import Declarations, Schema
from vivace.errors import ModelFileError, VivaceError, brief
from vivace.store.folder import StoredModel
from vivace.store.scvi_tools.weights import unused_in_scvi_tools, weights_from_scvi_tools

MODEL_PT = "model.pt"
UNUSED = "unused."  # prefix of tensors that are stored but not used
CLASSES = ("SCVI", "LinearSCVI")
TRIED = "1.4.2"
# options that scvi-tools' LinearSCVI accepts and ignores
_IGNORED_BY_LINEAR = (
    "use_layer_norm",
    "encode_covariates",
    "deeply_inject_covariates",
    "var_activation",
)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_MOST_VALUES = 300_000  # in all containers of a file, without the numbers of arrays
_NOT_OPTIONS = ("use_size_factor_key", "extra_payload_autotune")


# ---- stand-ins for the names that a file may contain ------------------------


class _Inert:
    """Stands in for a class of pandas: accepts any arguments, and does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _DType:
    """Stands in for ``numpy.dtype``, whose own ``__setstate__`` trusts the file."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code not in _ITEMS:
            raise ValueError(f"a NumPy type {brief(code)}")
        self.code = code
        self.swapped = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.swapped = state[1] == ">"


_ITEMS = {"O8", "b1", *(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8))} - {"f1"}


class _Array:
    """Stands in for ``numpy.ndarray``: numbers from their bytes, objects from a list."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, _fortran, data = state
        if dtype.code == "O8":
            if not isinstance(data, list) or any(isinstance(v, _CONTAINERS) for v in data):
                raise ValueError("an array of objects that is not a list of values")
            value = np.empty(len(data), object)
            value[:] = data
        else:
            value = _read_numbers(dtype, data)
        self.value = value.reshape(
            shape
        )  # arrays here are one-dimensional; the order is irrelevant


def _read_numbers(dtype: _DType, data: bytes) -> NDArray[Any]:
    return np.frombuffer(bytes(data), (">" if dtype.swapped else "<") + dtype.code).copy()


def _make_array(*_arguments: object) -> _Array:
    """Stands in for NumPy's ``_reconstruct``."""
    return _Array()


def _read_scalar(dtype: _DType, data: bytes) -> Any:
    """Stands in for NumPy's ``scalar``."""
    return _read_numbers(dtype, data)[0].item()


def _make_dict(*_factory: object) -> dict[str, object]:
    """Stands in for ``collections.defaultdict``."""
    return {}


def _softplus() -> None:
    """Stands in for ``torch.nn.functional.softplus``; only its name is read."""


_STAND_INS: dict[str, Any] = {
    "collections.defaultdict": _make_dict,
    "builtins.dict": _make_dict,
    "builtins.bytes": bytes,
    "builtins.slice": slice,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    # NumPy 2, and 1
    "numpy._core.multiarray._reconstruct": _make_array,
    "numpy.core.multiarray._reconstruct": _make_array,
    "numpy._core.multiarray.scalar": _read_scalar,
    "numpy.core.multiarray.scalar": _read_scalar,
    "torch._C._nn.softplus": _softplus,
}


def is_scvi_tools(path: Path) -> bool:
    """Whether the folder holds a model that scvi-tools saved."""
    return (path / MODEL_PT).is_file() and not (path / "model.json").is_file()


def read_scvi_tools(path: Path) -> StoredModel:
    """Read the folder as a :class:`StoredModel`, as our own folders are read.

    Raises
    ------
    ModelFileError
        If the file is damaged, names code, has a legacy layout, or uses an option that vivace
        does not have; the message says which.
    """
    file = path / MODEL_PT
    contents = _load(file)
    try:
        registry, attributes = _split_layout(file, contents)
        name = registry.get("model_name")
        if name not in CLASSES:
            raise ModelFileError(
                f"{file} holds a model of class {brief(name)}; vivace reads {' and '.join(CLASSES)}."
            )
        config = _read_config(file, name, attributes["init_params_"])
        schema = _read_schema(file, registry, contents["var_names"])
        state = {k: v for k, v in contents["model_state_dict"].items() if isinstance(v, Tensor)}
        size_factor = schema.declarations.size_factor_key is not None
        weights = weights_from_scvi_tools(state, config, size_factor)
        unused = unused_in_scvi_tools(state, config, size_factor)
        training = _read_training(registry, attributes)
    except VivaceError:
        raise
    except Exception as error:  # a foreign file may raise anything
        raise ModelFileError(
            f"{file} does not have the layout of scvi-tools {TRIED} ({brief(error)}); load it with "
            f"scvi-tools {TRIED} and save it again."
        ) from error
    sections = {
        "class": name,
        "config": config.as_dict(),
        "schema": schema.as_dict(),
        "training": training,
        "seed": {"root": settings.seed, "used": 0},
    }
    kept = {UNUSED + k: v for k, v in unused.items()}
    return StoredModel(weights | kept, sections, pd.DataFrame())


def _load(file: Path) -> dict[str, Any]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        known: dict[str, Any] = {
            n: _Inert if n.startswith("pandas.") else _STAND_INS.get(n) for n in names
        }
        refused = sorted(n for n, stand_in in known.items() if stand_in is None)
        if refused:
            raise ModelFileError(
                f"{file} refers to code ({', '.join(refused[:3])}), which vivace does not run; if you "
                f"trust it, load it with scvi-tools {TRIED} and save it without that code."
            )
        with torch.serialization.safe_globals([(stand_in, n) for n, stand_in in known.items()]):
            contents = _unwrap(torch.load(file, map_location="cpu", weights_only=True))
    except ModelFileError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:120]
        raise ModelFileError(
            f"{file} cannot be read ({reason or type(error).__name__}); save the model again."
        ) from error
    if not isinstance(contents, dict):
        raise ModelFileError(f"{file} holds no model; check the path.")
    return contents


def _unwrap(value: Any, seen: Iterator[int] | None = None) -> Any:
    """The value with each stand-in replaced by its array, in containers of any depth.

    Lists that hold the same list several times are counted as often: a small file may else
    unfold into any size.
    """
    seen = seen or itertools.count()
    if next(seen) > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {k: _unwrap(v, seen) for k, v in value.items()}
    return [_unwrap(v, seen) for v in value] if isinstance(value, _CONTAINERS) else value


def _split_layout(file: Path, contents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The registry and the attributes; a legacy layout is refused."""
    missing = {"model_state_dict", "var_names", "attr_dict"} - set(contents)
    attributes = contents.get("attr_dict", {})
    if missing or "registry_" not in attributes:
        layout = "scvi_setup_dict_" if "scvi_setup_dict_" in attributes else "no registry"
        raise ModelFileError(
            f"{file} has a legacy layout ({layout}); load it with scvi-tools {TRIED} "
            "(SCVI.convert_legacy_save) and save it again."
        )
    registry = attributes["registry_"]
    if any(key.startswith(("latent_qz", "observed_lib")) for key in registry["field_registries"]):
        raise ModelFileError(
            f"{file} holds a minified model; save the model before minify_adata, with scvi-tools."
        )
    if registry.get("setup_method_name", "setup_anndata") != "setup_anndata":
        raise ModelFileError(
            f"{file} was set up with {brief(registry['setup_method_name'])}; vivace reads models that "
            "were set up with setup_anndata."
        )
    return registry, attributes


def _read_config(file: Path, name: str, given: dict[str, Any]) -> ModelConfig:
    """The constructor arguments as a :class:`ModelConfig`."""
    options = dict(given["non_kwargs"])
    for extra in given["kwargs"].values():
        options |= extra
    for ignored in _NOT_OPTIONS:
        options.pop(ignored, None)
    embedding = options.pop("batch_embedding_kwargs", None) or {}
    options |= {"batch_" + k: v for k, v in embedding.items()}
    activation = options.pop("var_activation", None)
    if activation is _softplus:
        options["var_activation"] = "softplus"
    if name == "LinearSCVI":
        for ignored in _IGNORED_BY_LINEAR:
            options.pop(ignored, None)
        options["linear_decoder"] = True
        normed = options.pop("use_batch_norm", True)
        options["use_batch_norm"] = "both" if normed else "encoder"
        if options.pop("bias", False):
            raise ModelFileError(
                f"{file} holds a LinearSCVI(bias=True), which vivace does not support; use the model "
                "with scvi-tools."
            )
    for option in ("extra_encoder_kwargs", "extra_decoder_kwargs"):
        if not options.get(option, True):
            options.pop(option)
    unknown = sorted(set(options) - set(ModelConfig.names()))
    if unknown:
        raise ModelFileError(
            f"{file} uses the option {brief(unknown[0])}, which vivace does not have; use the model with "
            "scvi-tools."
        )
    return ModelConfig(**options)


def _read_schema(file: Path, registry: dict[str, Any], var_names: Any) -> Schema:
    """Genes, columns and categories from the registry."""
    arguments = registry["setup_args"]
    known = {k: v for k, v in arguments.items() if v is not None}
    unknown = sorted(set(known) - {*Declarations.__dataclass_fields__})
    if unknown:
        raise ModelFileError(
            f"{file} was set up with {brief(unknown[0])}, which vivace does not have; use the model with "
            "scvi-tools."
        )
    for keys in ("categorical_covariate_keys", "continuous_covariate_keys"):
        if keys in known:
            known[keys] = tuple(known[keys])
    fields = registry["field_registries"]
    mappings = (
        fields.get("extra_categorical_covs", {}).get("state_registry", {}).get("mappings", {})
    )
    return Schema(
        # scvi-tools does not require integers
        declarations=Declarations(**known, allow_non_integer=True),
        genes=tuple(str(g) for g in var_names),
        batches=_read_categories(fields["batch"]["state_registry"]["categorical_mapping"]),
        labels=_read_categories(fields["labels"]["state_registry"]["categorical_mapping"]),
        categories=tuple(
            _read_categories(mappings[key]) for key in known.get("categorical_covariate_keys", ())
        ),
        # the weights are for covariates in their own unit
        scales=(NO_SCALE,) * len(known.get("continuous_covariate_keys", ())),
    )


def _read_categories(values: Any) -> tuple[Any, ...]:
    return tuple(plain_category(v) for v in np.asarray(values))


def _read_training(registry: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """The summary and the split, as our own folders store them."""
    rows = {
        part: [] if (indices := attributes.get(f"{part}_indices_")) is None else indices.tolist()
        for part in ("train", "validation")
    }
    summary = {
        "recipe": "scvi-tools",
        "epochs": 0,  # the history is not read
        "cells": int(registry["field_registries"]["X"]["state_registry"]["n_obs"]),
        "cell_names": None,
        "train_cells": len(rows["train"]),
        "validation_cells": len(rows["validation"]),
        "seconds": 0.0,
        "kl_weight": None,
        "scvi_tools": str(registry.get("scvi_version")),
    }
    if not attributes["is_trained_"]:
        return {"summary": {}, "train_rows": [], "validation_rows": []}
    return {
        "summary": summary,
        "train_rows": rows["train"],
        "validation_rows": rows["validation"],
    }
