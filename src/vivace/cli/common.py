"""Options and helpers that several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vivace.config import settings
from vivace.errors import DataError

Keys = list[str] | None
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads; as many as the machine has free cores if not given."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def use_threads(threads: int | None) -> None:
    """Fix the number of threads, if one is given."""
    if threads is not None:
        settings.num_threads = threads


def bound_waiting() -> None:
    """Let a thread that waits for another fall asleep after a while, in this process of ours.

    GNU's OpenMP spins for some milliseconds otherwise: nothing is gained by that on an idle
    machine, and on a busy one it is four times as slow until the number of threads has followed.
    It is read where torch is imported; who has set how threads wait is obeyed.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


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
