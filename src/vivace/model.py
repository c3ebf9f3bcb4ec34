"""The model classes under the name that scvi-tools' users know: ``vivace.model.SCVI``."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from vivace.linear import LinearSCVI
from vivace.scvi import SCVI
from vivace.store import read_model
from vivace.validate import folder

__all__ = ["SCVI", "LinearSCVI", "load"]


def load(dir_path: str | Path, adata: AnnData | None = None) -> SCVI | LinearSCVI:
    """Read a model folder, ours or scvi-tools', of whichever class.

    Parameters
    ----------
    dir_path
        The folder.
    adata
        Data to go on with, as in :meth:`vivace.SCVI.load`.

    Raises
    ------
    ModelFileError
        If the folder is missing, damaged or of another format.
    """
    path = folder(dir_path)
    stored = read_model(path)
    cls = LinearSCVI if stored.sections["class"] == "LinearSCVI" else SCVI
    return cls._restore(path, stored, adata)
