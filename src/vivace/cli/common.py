"""Options and helpers that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vivace.errors import DataError

Keys = list[str] | None
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def read(path: Path):  # type: ignore[no-untyped-def]  # anndata is imported late
    """The AnnData in the h5ad file ``path``."""
    import warnings

    from anndata import OldFormatWarning, read_h5ad

    from vivace.store.folder import UNREADABLE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OldFormatWarning)  # it is read all the same
            return read_h5ad(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; check the path.") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as h5ad ({error}); check the file.") from error
