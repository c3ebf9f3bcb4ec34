"""Writes a model as a folder that scvi-tools 1.4.2 loads."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch

from vivace.config import ModelConfig
from vivace.data.schema import Schema
from vivace.errors import ModelFileError, OptionError
from vivace.nn import Dimensions
from vivace.store.anndata_write import new_hdf5, storable, write_storable
from vivace.store.folder import WITHOUT_DATA, StoredModel, check_place
from vivace.store.place import written_whole
from vivace.store.scvi_tools.read import MODEL_PT, TRIED, UNUSED
from vivace.store.scvi_tools.weights import weights_to_scvi_tools

# the parameters that scvi-tools' constructors name; the others are their keyword arguments
_NAMED = (
    "n_hidden",
    "n_latent",
    "n_layers",
    "dropout_rate",
    "dispersion",
    "gene_likelihood",
    "use_observed_lib_size",
    "latent_distribution",
)
# written in another form, or not at all
_SPECIAL = ("batch_embedding_dim", "var_activation", "linear_decoder")
_KEYWORDS = tuple(name for name in ModelConfig.names() if name not in (*_NAMED, *_SPECIAL))


def write_scvi_tools(
    path: Path,
    model: StoredModel,
    dims: Dimensions,
    adata: anndata.AnnData | None,
    overwrite: bool,
) -> None:
    """Write the folder, completely or not at all.

    Raises
    ------
    OptionError
        If scvi-tools' format cannot hold an option; the message names it.
    """
    check_place(path, overwrite)
    config = ModelConfig(**model.sections["config"])
    schema = Schema.from_dict(model.sections["schema"])
    _check_options(config, schema)
    unused = {k.removeprefix(UNUSED): v for k, v in model.weights.items() if k.startswith(UNUSED)}
    state: dict[str, Any] = dict(
        weights_to_scvi_tools(model.weights, config, dims, unused, schema.scales)
    )
    state["pyro_param_store"] = {"params": {}, "constraints": {}}
    contents = {
        "model_state_dict": state,
        "var_names": np.array(schema.genes, dtype=object),
        "attr_dict": _attributes(model, config, schema),
    }
    aligned = None
    if adata is not None:  # scvi-tools does not align genes
        aligned = storable(adata[:, list(schema.genes)].copy(), WITHOUT_DATA)
    with written_whole(path, ModelFileError, Exception) as new:
        new.mkdir()
        stored = io.BytesIO()  # torch hides why it could not write a file
        torch.save(contents, stored)
        (new / MODEL_PT).write_bytes(stored.getbuffer())
        if aligned is not None:
            with new_hdf5(new / "adata.h5ad") as file:
                write_storable(aligned, file)


def _check_options(config: ModelConfig, schema: Schema) -> None:
    """Refuse an option that scvi-tools' format cannot hold."""
    problem = None
    if config.var_activation != "exp":
        problem = f"var_activation={config.var_activation!r}, which it stores as code"
    if config.linear_decoder:
        d = schema.declarations
        unsupported = {
            "covariates": bool(d.categorical_covariate_keys or d.continuous_covariate_keys),
            "a size factor": d.size_factor_key is not None,
            "encode_covariates=True": config.encode_covariates,
            "batch_representation='embedding'": config.batch_representation == "embedding",
            f"dispersion={config.dispersion!r}": config.dispersion in ("gene-label", "gene-cell"),
            "gene_likelihood='normal'": config.gene_likelihood == "normal",
            f"use_layer_norm={config.use_layer_norm!r}": config.use_layer_norm != "none",
            f"use_batch_norm={config.use_batch_norm!r}": config.use_batch_norm
            not in ("both", "encoder"),
        }
        used = [option for option, is_used in unsupported.items() if is_used]
        problem = f"a LinearSCVI with {used[0]}" if used else None
    if problem is not None:
        raise OptionError(
            f"scvi-tools' format cannot hold {problem}; save the model with format='vivace'."
        )


def _attributes(model: StoredModel, config: ModelConfig, schema: Schema) -> dict[str, Any]:
    """The attributes of the model object, as scvi-tools stores them."""
    training = model.sections["training"]
    train = np.asarray(training["train_rows"], np.int64)
    validation = np.asarray(training["validation_rows"], np.int64)
    cells = training["summary"].get("cells", 0)
    return {
        "get_normalized_function_name_": "get_normalized_expression",
        "history_": {},
        "init_params_": _init_params(config),
        "is_trained_": bool(training["summary"]),
        "registry_": _registry(model.sections["class"], schema, cells),
        "run_id_": "",
        "run_name_": "",
        "test_indices_": np.setdiff1d(np.arange(cells), np.concatenate([train, validation])),
        "train_indices_": train,
        "validation_indices_": validation,
    }


def _init_params(config: ModelConfig) -> dict[str, Any]:
    """The constructor arguments, as scvi-tools stores them."""
    if config.linear_decoder:
        extra: dict[str, Any] = {"use_batch_norm": config.use_batch_norm == "both"}
        extra |= {} if config.log_variational else {"log_variational": False}
    else:
        extra = {name: getattr(config, name) for name in _KEYWORDS}
        if config.batch_representation == "embedding":
            extra["batch_embedding_kwargs"] = {"embedding_dim": config.batch_embedding_dim}
    group = "model_kwargs" if config.linear_decoder else "kwargs"
    return {
        "kwargs": {group: extra},
        "non_kwargs": {name: getattr(config, name) for name in _NAMED},
    }


def _registry(class_name: str, schema: Schema, cells: int) -> dict[str, Any]:
    """The declarations and categories, in the form of scvi-tools' data manager."""
    d = schema.declarations
    setup: dict[str, Any] = {
        "layer": d.layer,
        "batch_key": d.batch_key,
        "labels_key": d.labels_key,
    }
    n_genes = len(schema.genes)
    counts = {
        "data_registry": {
            "attr_name": "X" if d.layer is None else "layers",
            "attr_key": d.layer,
        },
        "state_registry": {
            "n_obs": cells,
            "n_vars": n_genes,
            "column_names": np.array(schema.genes, dtype=object),
        },
        "summary_stats": {"n_vars": n_genes, "n_cells": cells},
    }
    fields: dict[str, Any] = {
        "X": counts,
        "batch": _column("batch", d.batch_key, schema.batches),
        "labels": _column("labels", d.labels_key, schema.labels),
    }
    if class_name == "SCVI":
        setup |= {
            "size_factor_key": d.size_factor_key,
            "categorical_covariate_keys": list(d.categorical_covariate_keys) or None,
            "continuous_covariate_keys": list(d.continuous_covariate_keys) or None,
        }
        fields |= _covariate_fields(schema)
    return {
        "scvi_version": TRIED,
        "model_name": class_name,
        "setup_args": setup,
        "field_registries": fields,
        "setup_method_name": "setup_anndata",
        "_scvi_uuid": str(uuid.uuid4()),
    }


def _column(name: str, key: str | None, categories: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "data_registry": {"attr_name": "obs", "attr_key": f"_scvi_{name}"},
        "state_registry": {
            "categorical_mapping": _as_array(categories),
            "original_key": key or f"_scvi_{name}",
        },
        "summary_stats": {f"n_{name}": len(categories)},
    }


def _covariate_fields(schema: Schema) -> dict[str, Any]:
    """Entries of the size factor and the covariates; empty if there are none."""
    d = schema.declarations
    empty: dict[str, Any] = {"data_registry": {}, "state_registry": {}, "summary_stats": {}}
    size_factor, categorical, continuous = ({**empty} for _ in range(3))
    if d.size_factor_key is not None:
        size_factor["data_registry"] = {"attr_name": "obs", "attr_key": d.size_factor_key}
    keys = list(d.categorical_covariate_keys)
    if keys:
        categorical["data_registry"] = {
            "attr_name": "obsm",
            "attr_key": "_scvi_extra_categorical_covs",
        }
        categorical["state_registry"] = {
            "mappings": {k: _as_array(c) for k, c in zip(keys, schema.categories, strict=True)},
            "field_keys": keys,
            "n_cats_per_key": [len(c) for c in schema.categories],
        }
    categorical["summary_stats"] = {"n_extra_categorical_covs": len(keys)}
    columns = list(d.continuous_covariate_keys)
    if columns:
        continuous["data_registry"] = {
            "attr_name": "obsm",
            "attr_key": "_scvi_extra_continuous_covs",
        }
        continuous["state_registry"] = {"columns": np.array(columns, dtype=object)}
    continuous["summary_stats"] = {"n_extra_continuous_covs": len(columns)}
    return {
        "size_factor": size_factor,
        "extra_categorical_covs": categorical,
        "extra_continuous_covs": continuous,
    }


def _as_array(categories: tuple[Any, ...]) -> np.ndarray:
    text = any(isinstance(c, str) for c in categories)
    return np.array(categories, dtype=object if text else None)
