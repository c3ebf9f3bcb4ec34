"""Where results are written: completely or not at all, and only over what may be replaced.

A result is written under a temporary name in the same folder and renamed when it is complete. A
file is replaced in one step. If a folder is replaced and the process is killed between the two
renames that this takes, the old one is left as ``.NAME-*/old``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vivace.errors import OptionError, VivaceError, WriteError

_SYSTEM_FILES = {".DS_Store", ".localized", "Thumbs.db", "ehthumbs.db", "desktop.ini", ".directory"}
_ZARR = {".zgroup", ".zarray", ".zattrs", ".zmetadata", "zarr.json"}
_CHUNK = re.compile(r"c|\d+(\.\d+)*")  # a chunk of a zarr array, or the folder of its chunks


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Refuse a path whose ending does not name one of the formats."""
    if path.suffix not in endings:
        named = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise OptionError(f"{path} must end in {named}, which sets the format.")


def check_free(path: Path, overwrite: bool = False) -> None:
    """Refuse a path that exists, unless it may be overwritten, or that cannot be written to."""
    check_writable(path)
    if os.path.lexists(path):
        if not overwrite:
            raise OptionError(f"{path} exists; remove it or choose another path.")
        if path.is_dir() and not is_zarr(path):
            raise OptionError(
                f"{path} is a folder without a zarr store, so it will not be overwritten; choose "
                "another path."
            )
        foreign = _foreign_file(path) if path.is_dir() else None
        if foreign is not None:
            raise OptionError(
                f"{path} holds a file that is no part of a zarr store ({foreign.name}), so it will "
                "not be overwritten; choose another path."
            )
        if path.exists() and not path.is_dir() and not path.is_file():
            raise OptionError(f"{path} is a device, not a file; choose another path.")


def check_apart(path: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse to write onto an input, into it, or onto a folder that holds it."""
    for other in inputs:
        if other is None:
            continue
        lies, holds = _holds(other, path), _holds(path, other)
        if lies and holds:
            same = "" if str(path) == str(other) else f", {other}"
            raise OptionError(f"{path} is an input of the command{same}; choose another path.")
        if lies or holds:
            raise OptionError(
                f"{path} {'lies in' if lies else 'holds'} {other}, which the command reads; choose "
                "another path."
            )


def _holds(folder: Path, path: Path) -> bool:
    """Whether ``path`` is ``folder`` or within it, also through links."""
    if not folder.exists():
        return folder.resolve() in (path.resolve(), *path.resolve().parents)
    places = (path, *path.resolve().parents)
    return any(place.exists() and place.samefile(folder) for place in places)


def check_writable(path: Path, error: type[VivaceError] = WriteError) -> None:
    """Refuse a path that cannot be written to, by a try; nothing is left of it."""
    try:
        folder = next(place for place in path.absolute().parents if place.exists())
        with TemporaryDirectory(prefix=".vivace-", dir=folder) as scratch:
            (Path(scratch) / path.name).touch()
    except OSError as reason:
        raise _not_written(path, error, reason) from reason


@contextmanager
def written_whole(
    path: Path,
    error: type[VivaceError] = WriteError,
    failures: type[Exception] = OSError,
) -> Iterator[Path]:
    """A temporary path of the same name, moved to ``path`` if the context ends without an error.

    Parameters
    ----------
    path
        The file or folder. Folders above it are made; what is there is replaced.
    error
        Raised if it cannot be written.
    failures
        What the context may raise if it cannot; Exception where the context does nothing but write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=f".{path.name[:40]}-", dir=path.parent, ignore_cleanup_errors=True
        ) as scratch:
            new = Path(scratch) / "new" / path.name
            new.parent.mkdir()
            yield new
            _use_umask(new)
            _move_into_place(new, path, Path(scratch) / "old")
    except VivaceError:
        raise
    except failures as reason:
        raise _not_written(path, error, reason) from reason


def _use_umask(new: Path) -> None:
    """Give each file the permissions of a new one; some libraries write theirs for one user."""
    probe = new.parent.parent / "probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in (new, *new.rglob("*")):
        if file.is_file() and file.stat().st_mode != mode:
            file.chmod(mode)


def _move_into_place(new: Path, path: Path, old: Path) -> None:
    """Rename ``new`` to ``path``; if that fails, what was at ``path`` stays."""
    if new.is_file() and not path.is_dir():
        new.replace(path)
        return
    try:
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise


def _not_written(path: Path, error: type[VivaceError], reason: Exception) -> VivaceError:
    text = getattr(reason, "strerror", None) or " ".join(str(reason).split())
    system = re.search(r"error message = '([^']*)'", text)  # among the details of HDF5
    text = (system[1] if system else text)[:120].rstrip(". ") or type(reason).__name__
    return error(
        f"{path} could not be written ({text}); check the space and the permissions there, or "
        "choose another path."
    )


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in _ZARR)


def is_system_file(path: Path) -> bool:
    """Whether a file was put there by the file manager of an operating system."""
    return path.name in _SYSTEM_FILES or path.name.startswith("._")


def _foreign_file(folder: Path) -> Path | None:
    """A file in a zarr store that is no part of it; None if there is none."""
    if not is_zarr(folder):
        return folder
    for entry in folder.iterdir():
        if entry.name in _ZARR or _CHUNK.fullmatch(entry.name) or is_system_file(entry):
            continue
        foreign = _foreign_file(entry) if entry.is_dir() else entry
        if foreign is not None:
            return foreign
    return None
