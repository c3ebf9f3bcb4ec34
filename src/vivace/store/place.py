"""Where results are written: completely or not at all, and only over what may be replaced.

A result is written under a temporary name in the same folder, flushed to the disk, and renamed
when it is complete. What it replaces is exchanged with it in one step, where the system can do
that. Where it cannot, a process that is killed between two renames leaves the old folder as
``.NAME-*/old``, which :func:`find_left_behind` finds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

if sys.platform != "win32":
    import fcntl

from vivace.errors import OptionError, VivaceError, WriteError, one_line

_SYSTEM_FILES = {".DS_Store", ".localized", "Thumbs.db", "ehthumbs.db", "desktop.ini", ".directory"}
_ZARR = {".zgroup", ".zarray", ".zattrs", ".zmetadata", "zarr.json"}
_MANY_FILES = 1_000  # of which not each is flushed by itself
_FRESH = 60.0  # seconds in which a new scratch folder may not be locked yet
_CHUNK = re.compile(r"c|\d+(\.\d+)*")  # a chunk of a zarr array, or the folder of its chunks


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Refuse a path whose ending does not name one of the formats."""
    if path.suffix not in endings:
        named = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise OptionError(f"{path} must end in {named}, which sets the format.")


def check_free(path: Path, overwrite: bool | None = None) -> None:
    """Refuse a path that exists, unless it may be overwritten, or that cannot be written to.

    ``overwrite`` is None where there is no such option.
    """
    check_writable(path)
    if os.path.lexists(path):
        if not overwrite:
            what = "remove" if overwrite is None else "overwrite"
            option = "" if overwrite is None else " (overwrite=True, or --overwrite)"
            raise OptionError(f"{path} exists; {what} it{option} or choose another path.")
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


def check_separate(a: Path, b: Path) -> None:
    """Refuse two results of which one would be written over the other or into it."""
    if _holds(a, b) and _holds(b, a):
        raise OptionError(f"{a} is the path of two results of the command; choose two paths.")
    if _holds(a, b) or _holds(b, a):
        raise OptionError(
            f"{a} and {b}, two results of the command, lie one in the other; choose two paths apart."
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
    if path.is_dir():
        path = path.resolve()  # a link to a folder stays a link, to the new folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        with (
            TemporaryDirectory(
                prefix=_scratch_prefix(path), dir=path.parent, ignore_cleanup_errors=True
            ) as scratch,
            _locked(Path(scratch)),
        ):
            new = Path(scratch) / "new" / path.name
            new.parent.mkdir()
            yield new
            _use_umask(new)
            _flush(new)
            _move_into_place(new, path, Path(scratch) / "old")
            _flush_entry(path.parent)
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
    if os.path.lexists(path) and _exchange(new, path):
        return
    try:
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False if the system or file system cannot."""
    names = os.fsencode(a), os.fsencode(b)
    with suppress(AttributeError, OSError):  # no such function
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return int(libc.renamex_np(*names, 2)) == 0  # RENAME_SWAP
        if sys.platform == "linux":
            here = -100  # AT_FDCWD: paths are relative to the working directory
            return int(libc.renameat2(here, names[0], here, names[1], 2)) == 0  # RENAME_EXCHANGE
    return False


# ---- on the disk, also after a power cut ---------------------------------------------------


def _flush(new: Path) -> None:
    """Write a file, or all of a folder, from the system's memory to the disk."""
    places = [new, *new.rglob("*")]
    if len(places) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for place in places:
        _flush_entry(place)


def _flush_entry(place: Path) -> None:
    """Flush one file, or the names in one folder, where the system can do that."""
    if place.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(place, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems flush no folders
            raise
    finally:
        os.close(descriptor)


# ---- what killed processes left behind -----------------------------------------------------


def _scratch_prefix(path: Path) -> str:
    return f".{path.name[:40]}-"


def _scratch_folders(path: Path) -> list[Path]:
    """The temporary folders of writing to ``path``, of this and other processes."""
    name = re.compile(re.escape(_scratch_prefix(path)) + r"[a-z0-9_]{8}")  # as tempfile names them
    with suppress(OSError):
        return sorted(p for p in path.parent.iterdir() if name.fullmatch(p.name) and p.is_dir())
    return []


def find_left_behind(path: Path) -> Path | None:
    """What was at ``path`` before a process was killed while it replaced it; None if nothing."""
    if os.path.lexists(path):
        return None
    return next((p / "old" for p in _scratch_folders(path) if (p / "old").exists()), None)


def _remove_left_behind(path: Path) -> None:
    """Remove temporary folders of processes that were killed, but not the only old version."""
    for scratch in _scratch_folders(path):
        if (scratch / "old").exists() and not os.path.lexists(path):
            continue
        with suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _FRESH and not _is_locked(scratch):
                shutil.rmtree(scratch)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Show other processes that a temporary folder is in use."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path) -> bool:
    """Whether a process is using a temporary folder, as far as the system can tell."""
    if sys.platform == "win32":
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _not_written(path: Path, error: type[VivaceError], reason: Exception) -> VivaceError:
    text = getattr(reason, "strerror", None) or " ".join(str(reason).split())
    system = re.search(r"error message = '([^']*)'", text)  # among the details of HDF5
    text = one_line(system[1] if system else text, 120).rstrip(". ") or type(reason).__name__
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
