"""Results are written completely or not at all, and only over what may be replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from vivace import SCVI
from vivace.errors import ModelFileError, OptionError, WriteError
from vivace.store.arrays import write_anndata
from vivace.store.place import (
    check_apart,
    check_ending,
    check_free,
    check_writable,
    find_left_behind,
    written_whole,
)
from vivace.store.table import write_table


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- whole or not at all -----------------------------------------------------


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(28, "No space left on device", "somewhere"), "(No space left on device)"),
        (OSError("write failed: error message = 'No space left', buf = 0"), "(No space left)"),
        (OSError(), "(OSError)"),
    ],
    ids=["system", "HDF5", "silent"],
)
def test_a_failed_write_leaves_what_was_there(tmp_path, refused, existed, error, shown):
    path = tmp_path / "result.csv"
    if existed:
        path.write_text("before")
    with refused(WriteError, str(path), shown, "choose another path"), written_whole(path) as new:
        new.write_text("half")
        raise error
    assert names_in(tmp_path) == (["result.csv"] if existed else [])
    assert not existed or path.read_text() == "before"


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_other_ends_leave_what_was_there_and_are_raised(tmp_path, end):
    path = tmp_path / "result.csv"
    path.write_text("before")

    def write() -> None:
        with written_whole(path) as new:
            new.write_text("half")
            raise end

    with pytest.raises(end):
        write()
    assert names_in(tmp_path) == ["result.csv"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("name", ["new", "old", "probe", "a" * 255, "ä" * 127])
def test_any_name_can_be_written(tmp_path, name):
    for text in ("first", "second"):
        with written_whole(tmp_path / name) as new:
            new.write_text(text)
        assert names_in(tmp_path) == [name]
        assert (tmp_path / name).read_text() == text


def test_a_link_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with written_whole(tmp_path / "link") as new:
        new.write_text("ours")
    assert (tmp_path / "target").read_text() == "theirs"
    assert (tmp_path / "link").read_text() == "ours"


def test_a_link_to_a_folder_leads_to_the_new_folder(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with written_whole(tmp_path / "link") as new:
        new.mkdir()
        (new / "file").write_text("ours")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "file").read_text() == "ours"
    assert names_in(tmp_path) == ["link", "target"]


# ---- kills and power cuts ----------------------------------------------------------------------


def make_folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "file").write_text(text)


REPLACE = """
import os, signal, sys
from pathlib import Path
from vivace.store import place
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
{change}
with place.written_whole(Path(sys.argv[1])) as new:
    new.mkdir()
    (new / "file").write_text("after")
"""
KILLS = {
    "before the exchange": ("place._exchange = kill", "before"),
    "after the exchange": ("place._flush_entry = lambda p: p.name == 'here' and kill()", "after"),
    "before two renames": ("place._exchange = lambda *_: False\nPath.rename = kill", "before"),
    "between two renames": (
        "place._exchange = lambda *_: False\nreal = Path.rename\n"
        "Path.rename = lambda a, b: real(a, b) if b.name == 'old' else kill()",
        None,
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on this system")
@pytest.mark.parametrize(("change", "expected"), KILLS.values(), ids=KILLS)
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(tmp_path, change, expected):
    here = tmp_path / "here"
    here.mkdir()
    path = here / "result"
    make_folder(path, "before")
    done = subprocess.run([sys.executable, "-c", REPLACE.format(change=change), str(path)])
    assert done.returncode == -9
    left = find_left_behind(path)
    if expected is None:
        assert left is not None
        assert not path.exists()
        left.rename(path)
        expected = "before"
    else:
        assert left is None
    assert (path / "file").read_text() == expected
    age(here)
    with written_whole(path) as new:
        make_folder(new, "next")
    assert names_in(here) == ["result"]
    assert (path / "file").read_text() == "next"


def age(folder: Path) -> None:
    """Let the temporary folders look older than those that are not locked yet."""
    for scratch in folder.glob(".*"):
        os.utime(scratch, (0, 0))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders on this system")
def test_the_temporary_folder_of_a_running_process_stays(tmp_path):
    path = tmp_path / "result"
    with written_whole(path) as first:
        first.write_text("first")
        age(tmp_path)
        with written_whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names_in(tmp_path) == ["result"]


def test_folders_of_others_and_the_only_old_version_stay(tmp_path):
    for name in (".result-notes", ".result-abcdefgh.txt", ".other-abcdefgh", ".results-abcdefgh"):
        make_folder(tmp_path / name, "theirs")
    (tmp_path / ".result-ab3defg_").mkdir()
    make_folder(tmp_path / ".result-ab3defg_" / "old", "before")
    age(tmp_path)
    before = names_in(tmp_path)
    with written_whole(tmp_path / "result") as new:
        new.write_text("ours")
    assert names_in(tmp_path) == [*before, "result"]


def test_everything_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    path, flushed = tmp_path / "result", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(path) as new:
        make_folder(new, "ours")
    *inside, parent = flushed
    assert set(inside) == {(p.stat().st_ino, False) for p in (path, path / "file")}
    assert parent == (tmp_path.stat().st_ino, True)


def test_a_model_whose_replacement_was_killed_is_named_by_load(saved, refused):
    scratch = saved.parent / f".{saved.name}-ab3defg_"
    scratch.mkdir()
    saved.rename(scratch / "old")
    with refused(ModelFileError, f"the earlier one is at {scratch / 'old'}", "rename that to"):
        SCVI.load(saved)
    (scratch / "old").rename(saved)
    assert SCVI.load(saved).is_trained


def test_a_full_disk_is_one_sentence_whatever_is_written(trained, tiny, tmp_path, refused):
    """A limit on the size of files stands in for the full disk, in a process of its own."""
    adata, script = tmp_path / "cells.h5ad", tmp_path / "script.py"
    tiny(400, 300).write_h5ad(adata)
    script.write_text(
        "import resource, signal, sys, anndata, vivace\n"
        "from pathlib import Path\n"
        "from vivace.errors import ModelFileError, WriteError\n"
        "from vivace.store.arrays import dense_file, write_anndata\n"
        "adata = anndata.read_h5ad(sys.argv[1])\n"
        "vivace.SCVI.setup_anndata(adata)\n"
        "model = vivace.SCVI(adata, n_hidden=64)\n"
        "model.save('model')\n"
        "before = Path('model/weights.safetensors').read_bytes()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)\n"
        "def dense():\n"
        "    with dense_file(Path('e.h5ad'), adata.obs, adata.var, 100) as x:\n"
        "        x[:] = 1.0\n"
        "for kind, action in [\n"
        "    (ModelFileError, lambda: model.save('model', overwrite=True)),\n"
        "    (ModelFileError, lambda: model.save('theirs', format='scvi-tools')),\n"
        "    (ModelFileError, lambda: model.save('data', save_anndata=True)),\n"
        "    (WriteError, lambda: write_anndata(adata, Path('x.h5ad'))),\n"
        "    (WriteError, dense),\n"
        "]:\n"
        "    try:\n"
        "        action()\n"
        "    except kind as error:\n"
        "        assert 'could not be written' in str(error) and '\\n' not in str(error), error\n"
        "        assert isinstance(error, OSError)\n"
        "    else:\n"
        "        raise SystemExit('written')\n"
        "assert Path('model/weights.safetensors').read_bytes() == before\n"
        "print(sorted(path.name for path in Path().iterdir()))\n"
    )
    done = run_python(tmp_path, str(script), str(adata))
    assert done == "['cells.h5ad', 'model', 'script.py']\n"


def run_python(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---- permissions -------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_everything_has_the_permissions_of_the_umask(trained, tiny, tmp_path, mask):
    before = os.umask(mask)
    try:
        trained.save(tmp_path / "above" / "model", save_anndata=True)
        trained.save(tmp_path / "theirs", format="scvi-tools")
        write_anndata(tiny(), tmp_path / "cells.h5ad")
        write_anndata(tiny(), tmp_path / "cells.zarr")
        write_table(trained.history, tmp_path / "table.csv", "epoch")
        trained.get_normalized_expression(out=tmp_path / "expression.zarr")
    finally:
        os.umask(before)
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.rglob("*")}
    assert modes == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}


# ---- what may be replaced ----------------------------------------------------

SYSTEM_FILES = [".DS_Store", "Thumbs.db", "desktop.ini", "._model.json", ".localized", ".directory"]


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_files_of_the_system_do_not_keep_a_model_from_being_replaced(saved, trained, name):
    (saved / name).write_text("")
    trained.save(saved, overwrite=True)
    assert names_in(saved) == ["history.csv", "model.json", "weights.safetensors"]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "DS_Store", "figures/", ".DS_Store/"])
def test_files_of_others_keep_a_model_from_being_replaced(saved, trained, refused, name):
    theirs = saved / name
    theirs.mkdir() if name.endswith("/") else theirs.write_text("precious")
    before = names_in(saved)
    with refused(ModelFileError, str(saved), "holds other files", "choose another path"):
        trained.save(saved, overwrite=True)
    assert names_in(saved) == before


@pytest.fixture
def store(tiny, tmp_path):
    """A zarr store of an AnnData."""
    adata = tiny()
    adata.uns["numbers"] = np.arange(3)
    write_anndata(adata, tmp_path / "cells.zarr")
    return tmp_path / "cells.zarr"


def test_a_zarr_store_is_replaced_on_request(store, tiny, refused):
    with refused(OptionError, f"{store} exists; remove it or choose another path."):
        check_free(store)
    with refused(OptionError, f"{store} exists; overwrite it (overwrite=True, or --overwrite) or"):
        check_free(store, overwrite=False)
    (store / ".DS_Store").write_text("")
    check_free(store, overwrite=True)
    write_anndata(tiny(30), store)
    assert zarr.open_group(store, mode="r")["X"].attrs["shape"] == [30, 30]


@pytest.mark.parametrize("place", ["notes.txt", "obs/notes.txt", "uns/folder/notes.txt"])
def test_files_of_others_keep_a_zarr_store_from_being_replaced(store, refused, place):
    (store / place).parent.mkdir(exist_ok=True)
    (store / place).write_text("precious")
    with refused(OptionError, str(store), "no part of a zarr store"):
        check_free(store, overwrite=True)


def test_an_array_of_zarr_is_replaced_on_request(tmp_path, refused):
    for version in (2, 3):
        array = zarr.create_array(
            tmp_path / f"{version}.zarr",
            shape=(9, 9),
            chunks=(2, 2),
            dtype="f4",
            zarr_format=version,
        )
        array[:] = 1.0
        check_free(tmp_path / f"{version}.zarr", overwrite=True)


def test_a_dangling_link_and_a_device_are_not_free(tmp_path, refused):
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    with refused(OptionError, "link.csv exists"):
        check_free(tmp_path / "link.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with refused(OptionError, "pipe.csv is a device"):
        check_free(tmp_path / "pipe.csv", overwrite=True)


def test_an_ending_names_the_format(refused):
    check_ending(Path("a.b.csv"), [".csv", ".tsv"])
    for name in ("a", "a.h5ad", "a.CSV", ".csv"):
        with refused(OptionError, f"{name} must end in .csv or .tsv"):
            check_ending(Path(name), [".csv", ".tsv"])
    with refused(OptionError, "a must end in .png, .pdf or .svg"):
        check_ending(Path("a"), [".png", ".pdf", ".svg"])


@pytest.mark.parametrize("error", [WriteError, ModelFileError])
def test_a_place_that_cannot_be_written_to_is_refused_beforehand(tmp_path, refused, error):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "model", tmp_path / "a" / ("x" * 300)):
        with refused(error, str(path), "could not be written"):
            check_writable(path, error)
    check_writable(tmp_path / "a" / "b" / "c")
    assert names_in(tmp_path) == ["file"]


# ---- inputs ------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    """A file and a folder, each also under other names."""
    (tmp_path / "in.h5ad").write_text("cells")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adata.h5ad").write_text("cells")
    (tmp_path / "soft.h5ad").symlink_to(tmp_path / "in.h5ad")
    os.link(tmp_path / "in.h5ad", tmp_path / "hard.h5ad")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("name", ["in.h5ad", "soft.h5ad", "hard.h5ad", "model/../in.h5ad"])
def test_an_input_is_not_written_onto(places, refused, name):
    with refused(OptionError, name, "is an input of the command"):
        check_apart(places / name, [None, places / "model", places / "in.h5ad"])


@pytest.mark.parametrize(
    ("name", "relation"),
    [
        ("model/adata.h5ad", "lies in"),
        ("model/new/out.h5ad", "lies in"),
        ("link/out.h5ad", "lies in"),
        (".", "holds"),
    ],
)
def test_an_input_is_not_written_into(places, refused, name, relation):
    with refused(OptionError, relation, "which the command reads"):
        check_apart(places / name, [places / "model"])


def test_other_paths_are_apart(places):
    for name in ("out.h5ad", "model2", "modelx/out.h5ad", "new/in.h5ad"):
        check_apart(places / name, [places / "in.h5ad", places / "model", places / "nowhere"])


def test_a_relative_path_is_compared_too(places, refused, monkeypatch):
    monkeypatch.chdir(places)
    with refused(OptionError, "is an input of the command"):
        check_apart(Path("in.h5ad"), [places / "in.h5ad"])
    with refused(OptionError, "is an input of the command"):
        check_apart(Path("new.h5ad"), [Path("./new.h5ad")])
