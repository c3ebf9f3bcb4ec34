"""A model as a folder: ``weights.safetensors``, ``model.json``, ``history.csv``.

Loading executes no code from it. The folder is written completely or not at all
(:mod:`vivace.store.place`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from vivace.errors import ModelFileError, brief, one_line
from vivace.store.anndata_read import read_anndata
from vivace.store.anndata_write import new_hdf5, storable, write_storable
from vivace.store.place import (
    check_writable,
    find_left_behind,
    is_system_file,
    written_whole,
)

FORMAT_VERSION = 1
_WEIGHTS, _MODEL, _HISTORY, _ADATA = (
    "weights.safetensors",
    "model.json",
    "history.csv",
    "adata.h5ad",
)
WITHOUT_DATA = " before setup_anndata, or save the model without its data (save_anndata=False)"
_SECTIONS = ("class", "config", "schema", "training", "seed")


@dataclass(frozen=True)
class StoredModel:
    """The contents of a model folder.

    Parameters
    ----------
    weights
        Parameters and running statistics by name, and hashes of the names of the training cells.
    sections
        The contents of ``model.json``: class, config, schema, training, seed.
    history
        One row per epoch.
    changed
        A file that is not as it was saved; None if there is none, or if the folder does not
        tell.
    """

    weights: dict[str, Tensor]
    sections: dict[str, Any]
    history: pd.DataFrame
    changed: str | None = None


def write_folder(
    path: Path, model: StoredModel, adata: anndata.AnnData | None, overwrite: bool
) -> None:
    """Write the folder at ``path``, completely or not at all.

    Parameters
    ----------
    path
        The folder.
    model
        Its contents.
    adata
        Data to keep in the folder; None for none.
    overwrite
        Whether to replace a model folder.

    Raises
    ------
    ModelFileError
        If the path exists and ``overwrite`` is False, if it is not a model folder, or if it
        cannot be written.
    DataError
        If the data hold something that h5ad does not; the message names it.
    """
    check_place(path, overwrite)
    kept = None if adata is None else storable(adata, WITHOUT_DATA)
    with written_whole(path, ModelFileError, Exception) as new:
        new.mkdir()
        save_file({k: v.contiguous().cpu() for k, v in model.weights.items()}, new / _WEIGHTS)
        model.history.to_csv(new / _HISTORY)
        sections = {"format_version": FORMAT_VERSION, **model.sections, "versions": _versions()}
        text = json.dumps(sections | {"checksums": _checksums(new, sections)}, indent=1)
        (new / _MODEL).write_text(text, encoding="utf-8")
        if kept is not None:
            with new_hdf5(new / _ADATA) as file:
                write_storable(kept, file)


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists, unless it is a model folder and ``overwrite`` is True.

    A path that cannot be written to is refused too.
    """
    check_writable(path, ModelFileError)
    if os.path.lexists(path):
        if not overwrite:
            raise ModelFileError(
                f"{path} exists; overwrite it (overwrite=True, or --overwrite) or choose another "
                "path."
            )
        if not _only_ours(path):
            raise ModelFileError(
                f"{path} is not a model folder, or holds other files too, so it will not be "
                "overwritten; choose another path."
            )


def _only_ours(path: Path) -> bool:
    """Whether a folder is empty, or holds a model and nothing else but files of the system."""
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir() if not (is_system_file(p) and p.is_file())}
    is_model = _MODEL in names and names <= {_WEIGHTS, _MODEL, _HISTORY, _ADATA}
    return not names or is_model or {"model.pt"} <= names <= {"model.pt", _ADATA}


def read_folder(path: Path) -> StoredModel:
    """Read and check a model folder.

    Raises
    ------
    ModelFileError
        If the folder or a file in it is missing, damaged or of another format.
    """
    if path.is_file():
        raise ModelFileError(
            f"There is no model folder at {path}, which is a file; give the folder that holds it."
        )
    if not path.is_dir():
        if (left := find_left_behind(path)) is not None:
            raise ModelFileError(
                f"There is no model folder at {path}, because a process ended while it replaced the "
                f"model; the earlier one is at {left}, so rename that to {path}."
            )
        raise ModelFileError(f"There is no model folder at {path}; check the path.")
    sections = _read_json(path)
    for name in (_WEIGHTS, _HISTORY):
        if (path / name).exists() and not (path / name).is_file():
            raise _damaged(path, name, "not a file")
    try:
        weights = load_file(path / _WEIGHTS)
    except Exception as error:  # a damaged file may make safetensors raise anything
        raise _damaged(path, _WEIGHTS, error) from error
    history = _read_history(path)
    return StoredModel(weights, sections, history, _find_changed(path, sections))


def read_adata(path: Path) -> anndata.AnnData | None:
    """The data saved with the model; None if there are none."""
    return read_anndata(path / _ADATA, ModelFileError) if holds_data(path) else None


def holds_data(path: Path) -> bool:
    """Whether data were saved with the model in a folder."""
    return (path / _ADATA).is_file()


def _read_json(path: Path) -> dict[str, Any]:
    if not (path / _MODEL).is_file():
        names = {entry.name for entry in path.iterdir()}
        if any(name.endswith(("model_params.pt", "attr.pkl")) for name in names):
            raise ModelFileError(
                f"{path} holds a model of scvi-tools before 0.15, whose format is not read; open "
                f"it there, SCVI.convert_legacy_save({str(path)!r}, NEW_FOLDER), and load the "
                "result."
            )
        prefixed = sorted(p.name for p in path.glob("?*model.pt") if p.is_file())
        if prefixed:
            raise ModelFileError(
                f"{path} holds {prefixed[0]}, saved by scvi-tools under a prefix; rename it to "
                "model.pt."
            )
        raise ModelFileError(
            f"{path} holds no {_MODEL}, so it is not a vivace model folder; check the path."
        )
    try:
        sections = json.loads((path / _MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, _MODEL, error) from error
    if not isinstance(sections, dict):
        raise _damaged(path, _MODEL, "not a JSON object")
    version = sections.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {brief(version)}, but this vivace reads {FORMAT_VERSION}; "
            "open it with the version of vivace that wrote it."
        )
    missing = [name for name in _SECTIONS if name not in sections]
    if missing:
        raise _damaged(path, _MODEL, f"no {', '.join(missing)}")
    return sections


def _read_history(path: Path) -> pd.DataFrame:
    try:
        text = (path / _HISTORY).read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        frame = pd.read_csv(
            io.StringIO(text), index_col="epoch", dtype=float, float_precision="round_trip"
        )
        frame.index = frame.index.astype(int)
        return frame
    except (OSError, ValueError) as error:
        raise _damaged(path, _HISTORY, error) from error


def _checksums(folder: Path, sections: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each file of a folder; that of ``model.json`` is of its contents."""
    text = json.dumps(json.loads(json.dumps(sections)), sort_keys=True)
    sums = {_MODEL: hashlib.sha256(text.encode()).hexdigest()}
    for name in (_WEIGHTS, _HISTORY):
        with (folder / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _find_changed(folder: Path, sections: dict[str, Any]) -> str | None:
    """A file that is not as it was saved; folders of earlier versions do not tell."""
    expected = sections.pop("checksums", None)
    if expected is None:
        return None
    sums = _checksums(folder, sections)
    if not isinstance(expected, dict) or expected.keys() != sums.keys():
        return _MODEL
    return next((name for name, found in sums.items() if expected[name] != found), None)


def _damaged(path: Path, file: str, why: object) -> ModelFileError:
    return ModelFileError(f"{path / file} is damaged ({one_line(why)}); save the model again.")


def changed_file(path: Path, file: str) -> ModelFileError:
    """The error for a file that is not as it was saved, though it can be read."""
    return ModelFileError(
        f"{path / file} is not as it was saved, by its checksum; save the model again, or delete "
        f"'checksums' from {path / _MODEL} if you changed it on purpose."
    )


def damaged_data(path: Path, why: object) -> ModelFileError:
    """The error for data in the folder that are not those of the model."""
    return _damaged(path, _ADATA, why)


def damaged_model(path: Path, why: object) -> ModelFileError:
    """The error for inconsistent contents, in our format or in that of scvi-tools."""
    return _damaged(path, _MODEL if (path / _MODEL).is_file() else "model.pt", why)


def _versions() -> dict[str, str]:
    return {p: version(p) for p in ("vivace", "torch", "anndata", "numba", "lightning-fabric")}
