"""``save`` and ``load`` of a model, whichever format its folder has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from anndata import AnnData

from vivace.config import ModelConfig
from vivace.core import Core, hash_names
from vivace.data.schema import Schema
from vivace.errors import ModelFileError, OptionError, warn
from vivace.nn import Surgery, freeze_network
from vivace.seeds import SeedStream, check_seed
from vivace.session import strings_as_written
from vivace.state import TrainState, verdict
from vivace.store.folder import (
    StoredModel,
    damaged_model,
    read_adata,
    read_folder,
    write_folder,
)
from vivace.store.scvi_tools import is_scvi_tools, read_scvi_tools, write_scvi_tools
from vivace.store.scvi_tools.read import UNUSED
from vivace.validate import Choice, checked, folder_path

Format = Literal["vivace", "scvi-tools"]
M = TypeVar("M", bound=Core)


@checked(format=Choice(Format))
@strings_as_written()
def save(
    self: Core,
    dir_path: str | Path,
    *,
    overwrite: bool = False,
    save_anndata: bool = False,
    format: Format = "vivace",
) -> None:
    """Write the model as a folder, completely or not at all.

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
        If the folder exists, or is something other than a model.
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
        answers about any AnnData that is passed to its methods. If the cells
        differ (by name or order) from those that the model was trained on, the
        next call of ``train`` makes a new split.

    Raises
    ------
    ModelFileError
        If the folder is missing, damaged or of another format.
    """
    path = folder_path(dir_path)
    return restore(cls, path, read_model(path), adata)


def read_model(path: Path) -> StoredModel:
    """The contents of a model folder, ours or scvi-tools'."""
    return read_scvi_tools(path) if is_scvi_tools(path) else read_folder(path)


def read_genes(path: Path) -> tuple[tuple[str, ...], str | None]:
    """The gene names of the model in a folder, and the layer of its counts."""
    try:
        schema = Schema.from_dict(read_model(path).sections["schema"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged_model(path, error) from error
    return schema.genes, schema.declarations.layer


def restore(cls: type[M], path: Path, stored: StoredModel, adata: AnnData | None) -> M:
    """The model with the contents that were read from ``path``."""
    sections = stored.sections
    if sections["class"] != cls.__name__:
        raise ModelFileError(
            f"{path} holds a model of class {sections['class']}, not {cls.__name__}; load it "
            f"with {sections['class']}.load, or vivace.model.load, which takes any."
        )
    model = cls.__new__(cls)
    try:
        root, used = sections["seed"]["root"], sections["seed"]["used"]
        seeds = SeedStream(check_seed(root), check_seed(used))
        config = ModelConfig(**sections["config"])
        model._build(config, Schema.from_dict(sections["schema"]), seeds, weights_seed=0)
        weights = {k: v for k, v in stored.weights.items() if not k.startswith(UNUSED)}
        model.module.load_state_dict(weights)
        model._unused = {k: v for k, v in stored.weights.items() if k not in weights}
        if "surgery" in sections:
            freeze_network(model.module, Surgery.from_dict(sections["surgery"]))
            model._origins = tuple(map(str, sections["origins"]))
        training = sections["training"]
        model._state = TrainState(
            train_rows=np.asarray(training["train_rows"], np.int64),
            validation_rows=np.asarray(training["validation_rows"], np.int64),
            history=stored.history.to_dict("records"),
            summary=training["summary"],
        )
        _check_training(model._state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged_model(path, error) from error
    data = read_adata(path) if adata is None else adata
    if data is not None:
        model._attach(data)
        if not _same_cells(data, model._state):
            model._state.train_rows = model._state.validation_rows = np.zeros(0, np.int64)
    return model


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


def _same_cells(adata: AnnData, state: TrainState) -> bool:
    """Whether the model was trained on these cells; scvi-tools stores only their number."""
    summary = state.summary
    if "scvi_tools" in summary and summary["cell_names"] is None:
        return bool(adata.n_obs == summary["cells"])
    return hash_names(adata) == summary.get("cell_names")
