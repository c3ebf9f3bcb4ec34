"""``save`` and ``load`` of a model, whichever format its folder has."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from vivace.config import ModelConfig
from vivace.core import Core, network_dimensions
from vivace.data.schema import Schema
from vivace.errors import (
    ModelFileError,
    OptionError,
    VivaceError,
    brief,
    list_names,
    one_line,
    warn,
)
from vivace.nn import VAE, Surgery, freeze_network
from vivace.seeds import SeedStream, check_seed
from vivace.split import Split
from vivace.state import COLUMNS, TrainState, verdict
from vivace.store.folder import (
    StoredModel,
    changed_file,
    damaged_data,
    damaged_model,
    read_adata,
    read_folder,
    write_folder,
)
from vivace.store.scvi_tools import is_scvi_tools, read_scvi_tools, write_scvi_tools
from vivace.store.scvi_tools.read import UNUSED
from vivace.summary import summarise
from vivace.validate import Choice, checked, folder_path

Format = Literal["vivace", "scvi-tools"]
M = TypeVar("M", bound=Core)
# beside the weights: hashes of names
_NAMES = "training.name_hashes"
_EARLIER = ("training.earlier_train", "training.earlier_validation")


@checked(format=Choice(Format))
def save(
    self: Core,
    dir_path: str | Path,
    *,
    overwrite: bool = False,
    save_anndata: bool = False,
    format: Format = "vivace",
) -> None:
    """Write the model as a folder, completely or not at all.

    If a folder is replaced and the writing fails, the old one stays. Files get the permissions
    that the umask gives.

    Parameters
    ----------
    dir_path
        The folder.
    overwrite
        Replace an existing model folder.
    save_anndata
        Keep the data in the folder too, as ``adata.h5ad``; minified data are always kept.
    format
        "vivace", or "scvi-tools" for a folder that scvi-tools 1.4.2 loads; it
        holds no history.

    Raises
    ------
    ModelFileError
        If the folder exists, is something other than a model, or cannot be written.
    DataError
        If the data to keep hold something that h5ad does not, such as a column of tuples; the
        message names it, and nothing is written.
    OptionError
        If scvi-tools' format cannot hold an option of the model.
    """
    path = folder_path(dir_path)
    state, minified = self._state, self.minified_data_type is not None
    surgery = self.module.surgery
    sections = {
        "class": type(self).__name__,
        "config": self.config.as_dict(),
        "schema": self.schema.as_dict(),
        "training": {
            "summary": state.summary,
            "train_rows": state.train_rows.tolist(),
            "validation_rows": state.validation_rows.tolist(),
        },
        "seed": {"root": self._seeds.root, "used": self._seeds.used},
    }
    if surgery is not None:
        sections["surgery"] = surgery.as_dict()
        sections["origins"] = list(self._origins)
    adata = self._own_adata() if save_anndata or minified else None
    weights = dict(self.module.state_dict()) | self._unused
    contents = StoredModel(weights, sections, state.frame())
    if format == "vivace":
        if state.name_hashes is not None:
            hashes = zip((_NAMES, *_EARLIER), (state.name_hashes, *state.earlier), strict=True)
            weights |= {name: torch.from_numpy(h.view(np.int64)) for name, h in hashes if len(h)}
        write_folder(path, contents, adata, overwrite)
        return
    if minified:
        raise OptionError(
            "scvi-tools' format has its own form of minified data, which is not written; "
            "save the model from before minify_adata."
        )
    if surgery is not None and not surgery.unfrozen:
        warn(
            "scvi-tools' format does not record which weights of a query's model are frozen; "
            "training it there would change the reference."
        )
    write_scvi_tools(path, contents, self.module.dims, adata, overwrite)


@checked()
def load(cls: type[M], dir_path: str | Path, adata: AnnData | None = None) -> M:
    """Read a model that :meth:`save` or scvi-tools wrote; nothing in it is executed.

    Parameters
    ----------
    dir_path
        The folder; one with a ``model.pt`` is read as scvi-tools' (1.4.2 is
        tested; its history is not read).
    adata
        Data to continue with, checked and aligned by the model's schema. None
        takes those saved with the model, if any; without data the model
        answers about any AnnData that is passed to its methods. The cells that the model was
        trained on are found in them by name; the next call of ``train`` splits new cells only.

    Raises
    ------
    ModelFileError
        If the folder is missing, damaged or of another format.
    """
    path = folder_path(dir_path)
    return restore(cls, path, read_model(path), adata)


def read_model(path: Path) -> StoredModel:
    """The contents of a model folder, ours or scvi-tools'."""
    try:
        return read_scvi_tools(path) if is_scvi_tools(path) else read_folder(path)
    except VivaceError:
        raise
    except OSError as error:  # no permission, a name too long
        raise ModelFileError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions."
        ) from error


def read_genes(path: Path) -> tuple[tuple[str, ...], str | None]:
    """The gene names of the model in a folder, and the layer of its counts."""
    try:
        schema = Schema.from_dict(read_model(path).sections["schema"])
    except Exception as error:  # a damaged or foreign file
        raise damaged_model(path, error) from error
    return schema.genes, schema.declarations.layer


def restore(cls: type[M], path: Path, stored: StoredModel, adata: AnnData | None) -> M:
    """The model with the contents that were read from ``path``."""
    sections = stored.sections
    if sections["class"] != cls.__name__:
        name = one_line(sections["class"], 60)
        raise ModelFileError(
            f"{path} holds a model of class {name}, not {cls.__name__}; load it with {name}.load, or vivace.model.load, which takes any."
        )
    model = cls.__new__(cls)
    try:
        root, used = sections["seed"]["root"], sections["seed"]["used"]
        seeds = SeedStream(check_seed(root), check_seed(used))
        config = ModelConfig(**sections["config"])
        schema = Schema.from_dict(sections["schema"])
        tensors = dict(stored.weights)
        names, train, validation = (
            None if (tensor := tensors.pop(name, None)) is None else _read_hashes(tensor)
            for name in (_NAMES, *_EARLIER)
        )
        nothing = np.zeros(0, np.uint64)
        weights = {k: v for k, v in tensors.items() if not k.startswith(UNUSED)}
        _check_weights(weights, config, schema)
        model._build(config, schema, seeds, weights_seed=0)
        model.module.load_state_dict(weights)
        model._unused = {k: v for k, v in tensors.items() if k not in weights}
        if "surgery" in sections:
            freeze_network(model.module, Surgery.from_dict(sections["surgery"]))
            model._origins = tuple(map(str, sections["origins"]))
        training = sections["training"]
        model._state = TrainState(
            train_rows=np.asarray(training["train_rows"], np.int64),
            validation_rows=np.asarray(training["validation_rows"], np.int64),
            history=stored.history.to_dict("records"),
            summary=training["summary"],
            name_hashes=names,
            earlier=(
                nothing if train is None else train,
                nothing if validation is None else validation,
            ),
        )
        _check_training(model._state)
        _check_names(model)
    except Exception as error:  # a damaged or foreign file may make anything of it fail
        raise damaged_model(path, error) from error
    if stored.changed is not None:  # last, because other messages say what is wrong
        raise changed_file(path, stored.changed)
    data = read_adata(path) if adata is None else adata
    if data is not None:
        try:
            model._attach(data)
        except VivaceError as error:
            if adata is not None or is_scvi_tools(path):
                raise
            raise damaged_data(path, error) from error  # they fitted when they were saved
    library_n = None if model._source is None else model._source.library
    model._split = Split.from_state(model._state, data, library_n)
    return model


def _check_weights(weights: Mapping[str, Tensor], config: ModelConfig, schema: Schema) -> None:
    """Refuse weights that do not fit the options, before a network of that size is made."""
    if config.n_layers > len(weights):
        raise ValueError(f"{config.n_layers} layers, but {len(weights)} weights")
    with torch.device("meta"):  # shapes without memory
        network = VAE(config, network_dimensions(schema))
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if differing := expected.keys() ^ weights.keys():
        raise ValueError(f"weights are missing or unknown: {list_names(sorted(differing))}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name]:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name])}"
            raise ValueError(f"the shape of {name} is {shapes}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
        if name.endswith(("running_var", "library_variance")) and (tensor < 0).any():
            raise ValueError(f"{name} holds negative variances")


def _check_names(model: Core) -> None:
    """Refuse names and categories that are no text or numbers, and what cannot be summarised."""
    schema = model.schema
    if not all(isinstance(gene, str) for gene in schema.genes):
        raise ValueError("a gene has a name that is no text")
    for category in (*schema.batches, *schema.labels, *chain(*schema.categories)):
        if not isinstance(category, str | int | float):
            raise ValueError(f"a category is {brief(category)}")
    missing = set(COLUMNS) - {"compile_seconds"} - set(*model._state.history[:1])
    if model._state.history and missing:
        raise ValueError(f"history.csv has no column {min(missing)!r}")
    summarise("", model.config, schema, model._state, None, None)


def _read_hashes(tensor: Tensor) -> NDArray[np.uint64]:
    if tensor.dtype != torch.int64 or tensor.ndim != 1:
        raise ValueError("hashes of names are not 64-bit integers")
    return tensor.numpy().view(np.uint64)


def _check_training(state: TrainState) -> None:
    """Refuse a summary that is damaged or inconsistent with history and split."""
    verdict(state.summary)  # raises if its parts do not fit together
    epochs = state.summary.get("epochs", 0)
    if len(state.history) != epochs:
        raise ValueError(f"history.csv has {len(state.history)} epochs of {epochs}")
    if not state.trained:  # a split without an epoch: a new one is made
        state.train_rows, state.validation_rows = np.zeros((2, 0), np.int64)
    used = np.concatenate([state.train_rows, state.validation_rows])
    if used.min(initial=0) < 0 or used.max(initial=-1) >= state.summary.get("cells", 0):
        raise ValueError("the split names cells that the data did not have")
    if state.name_hashes is not None and state.name_hashes.shape != (state.summary.get("cells"),):
        raise ValueError("the names are not those of the data")
