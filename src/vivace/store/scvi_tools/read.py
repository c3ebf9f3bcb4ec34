"""A folder that scvi-tools saved, as one of ours; nothing in it is executed.

``model.pt`` is a pickle.  torch's restricted unpickler reads it: tensors, plain
containers and NumPy arrays, and nothing else.  What pandas wrote (the history)
is put into inert stand-ins and dropped; any other name is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vivace.config import ModelConfig, settings
from vivace.errors import ModelFileError, VivaceError
from vivace.setup import Declarations, Schema, plain_category
from vivace.store.folder import StoredModel
from vivace.store.scvi_tools.weights import unused_of_scvi_tools, weights_from_scvi_tools

MODEL_PT = "model.pt"
UNUSED = "unused."  # before the name of a tensor that is only kept
CLASSES = ("SCVI", "LinearSCVI")
TRIED = "1.4.2"
_NOT_OPTIONS = ("use_size_factor_key", "extra_payload_autotune")


class _Inert:
    """Takes the place of a foreign class: accepts whatever it is given, and does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*_factory: object) -> dict[str, object]:
    """For ``collections.defaultdict``."""
    return {}


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # NumPy's own function behind a pickled array
_ALLOWED: list[Any] = [
    (_plain_dict, "collections.defaultdict"),
    dict,
    bytes,
    slice,
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # NumPy 1
    np.ndarray,
    np.dtype,
    *(type(np.dtype(t)) for t in (object, "int64", "int32", "float32", "float64", "bool", "int8")),
]
_ALLOWED_NAMES = {
    "collections.defaultdict",
    "builtins.dict",
    "builtins.bytes",
    "builtins.slice",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}


def is_scvi_tools(path: Path) -> bool:
    """Whether the folder holds a model that scvi-tools saved."""
    return (path / MODEL_PT).is_file() and not (path / "model.json").is_file()


def read_scvi_tools(path: Path) -> StoredModel:
    """Read the folder; its parts are those that our own folder has.

    Raises
    ------
    ModelFileError
        If the file is damaged, names code, has a legacy layout, or uses an
        option that vivace does not have; the message says which.
    """
    file = path / MODEL_PT
    contents = _load(file)
    registry, attributes = _layout(file, contents)
    name = registry.get("model_name")
    if name not in CLASSES:
        raise ModelFileError(
            f"{file} holds a model of class {name!r}; vivace reads {' and '.join(CLASSES)}."
        )
    try:
        config = _config(file, name, attributes["init_params_"])
        schema = _schema(file, registry, contents["var_names"])
        state = {k: v for k, v in contents["model_state_dict"].items() if isinstance(v, Tensor)}
        size_factor = schema.declarations.size_factor_key is not None
        weights = weights_from_scvi_tools(state, config, size_factor)
        unused = unused_of_scvi_tools(state, config, size_factor)
        training = _training(registry, attributes)
    except VivaceError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{file} is not laid out as scvi-tools {TRIED} does it ({error!r}); load it with "
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
        stand_ins = [(_Inert, n) for n in names if n.startswith("pandas.")]
        refused = [
            n
            for n in names
            if not (n in _ALLOWED_NAMES or n.startswith(("pandas.", "numpy.dtypes.")))
        ]
        if refused:
            raise ModelFileError(
                f"{file} names code ({', '.join(sorted(refused)[:3])}), which vivace does not run; "
                f"load it with scvi-tools {TRIED}, if you trust it, and save plain options only."
            )
        with torch.serialization.safe_globals([*_ALLOWED, *stand_ins]):
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except VivaceError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:120]
        raise ModelFileError(f"{file} cannot be read ({reason}); save the model again.") from error
    if not isinstance(contents, dict):
        raise ModelFileError(f"{file} holds no model; check the path.")
    return contents


def _layout(file: Path, contents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The registry and the attributes, or a sentence about a layout from long ago."""
    missing = {"model_state_dict", "var_names", "attr_dict"} - set(contents)
    attributes = contents.get("attr_dict", {})
    if missing or "registry_" not in attributes:
        what = "scvi_setup_dict_" if "scvi_setup_dict_" in attributes else "no registry"
        raise ModelFileError(
            f"{file} has a legacy layout ({what}); load it with scvi-tools {TRIED} "
            "(SCVI.convert_legacy_save) and save it again."
        )
    registry = attributes["registry_"]
    if any(key.startswith(("latent_qz", "observed_lib")) for key in registry["field_registries"]):
        raise ModelFileError(f"{file} is a minified model; save the model before minify_adata.")
    if registry.get("setup_method_name", "setup_anndata") != "setup_anndata":
        raise ModelFileError(
            f"{file} was set up with {registry['setup_method_name']!r}; vivace reads models that "
            "were set up with setup_anndata."
        )
    return registry, attributes


def _config(file: Path, name: str, given: dict[str, Any]) -> ModelConfig:
    """The constructor arguments as our options."""
    options = dict(given["non_kwargs"])
    for extra in given["kwargs"].values():
        options |= extra
    for ignored in _NOT_OPTIONS:
        options.pop(ignored, None)
    embedding = options.pop("batch_embedding_kwargs", None) or {}
    options |= {"batch_" + k: v for k, v in embedding.items()}
    if options.get("var_activation", "") is None:
        options.pop("var_activation")
    if name == "LinearSCVI":
        options["linear_decoder"] = True
        normed = options.pop("use_batch_norm", True)
        options["use_batch_norm"] = "both" if normed else "encoder"
        if options.pop("bias", False):
            raise ModelFileError(f"{file} is a LinearSCVI with bias=True, which vivace has not.")
    for option in ("extra_encoder_kwargs", "extra_decoder_kwargs"):
        if not options.get(option, True):
            options.pop(option)
    unknown = sorted(set(options) - set(ModelConfig.names()))
    if unknown:
        raise ModelFileError(f"{file} uses the option {unknown[0]!r}, which vivace does not have.")
    return ModelConfig(**options)


def _schema(file: Path, registry: dict[str, Any], var_names: Any) -> Schema:
    arguments = registry["setup_args"]
    known = {k: v for k, v in arguments.items() if v is not None}
    unknown = sorted(set(known) - {*Declarations.__dataclass_fields__})
    if unknown:
        raise ModelFileError(f"{file} was set up with {unknown[0]!r}, which vivace does not have.")
    for keys in ("categorical_covariate_keys", "continuous_covariate_keys"):
        if keys in known:
            known[keys] = tuple(known[keys])
    fields = registry["field_registries"]
    mappings = (
        fields.get("extra_categorical_covs", {}).get("state_registry", {}).get("mappings", {})
    )
    return Schema(
        declarations=Declarations(**known),
        genes=tuple(str(g) for g in var_names),
        batches=_mapping(fields["batch"]["state_registry"]["categorical_mapping"]),
        labels=_mapping(fields["labels"]["state_registry"]["categorical_mapping"]),
        categories=tuple(
            _mapping(mappings[key]) for key in known.get("categorical_covariate_keys", ())
        ),
    )


def _mapping(values: Any) -> tuple[Any, ...]:
    return tuple(plain_category(v) for v in np.asarray(values))


def _training(registry: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    rows = {
        part: [] if (found := attributes.get(f"{part}_indices_")) is None else found.tolist()
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
    return {
        "summary": summary if attributes["is_trained_"] else {},
        "train_rows": rows["train"],
        "validation_rows": rows["validation"],
    }
