"""Every command that writes: endings, what exists, inputs, compression, odd data."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

from vivace import SCVI
from vivace.store import place
from vivace.store.arrays import write_anndata

ANNDATA = ("embed", "express", "sample", "map")
TABLE = ("de",)
MODEL = ("train", "convert")


@pytest.fixture
def command(cells, fitted):
    """The words of a command, with its inputs."""

    def words(name: str, data: Path = cells) -> tuple[object, ...]:
        if name == "train":
            return (name, data, "--max-epochs", "1", "--quiet")
        if name == "convert":
            return (name, fitted)
        if name == "embed":
            return (name, fitted, data)
        more = {"de": ("--groupby", "cell_type"), "map": ("--max-epochs", "1", "--unfrozen")}
        return (name, fitted, data, *more.get(name, ()), "--quiet")

    return words


def get_name(command: str) -> str:
    """A name that the command writes to."""
    return {"de": "out.csv", "train": "out", "convert": "out"}.get(command, "out.h5ad")


def get_contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE])
@pytest.mark.parametrize("ending", [".txt", "", ".h5", ".H5AD", ".h5ad.gz", ".xlsx"])
def test_an_ending_that_names_no_format_is_refused(vivace_refuses, command, tmp_path, name, ending):
    before = get_contents(tmp_path)
    allowed = ".csv or .tsv" if name in TABLE else ".h5ad or .zarr"
    vivace_refuses((*command(name), "-o", tmp_path / f"out{ending}"), f"must end in {allowed}")
    assert get_contents(tmp_path) == before


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE, *MODEL])
def test_what_exists_is_kept(vivace_refuses, command, tmp_path, name):
    out = tmp_path / get_name(name)
    out.write_text("years of work")
    before = get_contents(tmp_path)
    vivace_refuses((*command(name), "-o", out), str(out), "exists")
    assert get_contents(tmp_path) == before


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE])
def test_a_file_is_replaced_on_request(vivace_says, command, tmp_path, name):
    out = tmp_path / ("out.csv" if name in TABLE else "out.h5ad")
    out.write_text("old")
    code, _, err = vivace_says(*command(name), "-o", out, "--overwrite")
    assert (code, err) == (0, "")
    read = pd.read_csv if name in TABLE else anndata.read_h5ad
    assert len(read(out)) in (30, 60, 90)


@pytest.mark.parametrize("name", MODEL)
def test_a_file_is_not_replaced_by_a_model(vivace_refuses, command, tmp_path, name):
    (tmp_path / "out").write_text("years of work")
    vivace_refuses((*command(name), "-o", tmp_path / "out", "--overwrite"), "not a model folder")
    assert (tmp_path / "out").read_text() == "years of work"


@pytest.mark.parametrize("link", ["itself", "soft", "hard", "relative"])
@pytest.mark.parametrize("name", [*ANNDATA, "train"])
def test_the_input_is_never_replaced(
    vivace_refuses, command, cells, tmp_path, name, link, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.h5ad"
    if link == "soft":
        out.symlink_to(cells)
    elif link == "hard":
        os.link(cells, out)
    else:
        out = cells if link == "itself" else Path("cells.h5ad")
    before = get_contents(tmp_path)
    vivace_refuses((*command(name), "-o", out, "--overwrite"), "is an input of the command")
    assert get_contents(tmp_path) == before


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE])
def test_nothing_is_written_into_the_model(vivace_refuses, command, fitted, name):
    before = get_contents(fitted)
    out = fitted / ("out.csv" if name in TABLE else "adata.h5ad")
    vivace_refuses((*command(name), "-o", out), "lies in", str(fitted))
    assert get_contents(fitted) == before


@pytest.mark.parametrize("ending", [".h5ad", ".zarr", ".csv"])
def test_a_model_does_not_get_the_ending_of_a_file(vivace_refuses, command, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    for words in (
        (*command("train"), "-o", out),
        (*command("convert"), "-o", out),
        (*command("map"), "-o", tmp_path / "mapped.h5ad", "--save-model", out),
    ):
        vivace_refuses(words, f"{out} would be the folder of a model, not a {ending} file")


def test_a_model_is_not_converted_onto_itself(vivace_refuses, command, fitted):
    before = get_contents(fitted)
    vivace_refuses((*command("convert"), "-o", fitted, "--overwrite"), "is an input")
    assert get_contents(fitted) == before


def test_a_figure_is_written_like_the_rest(vivace_refuses, vivace_says, command, tmp_path):
    table, figure = tmp_path / "out.csv", tmp_path / "volcano.png"
    words = (*command("de"), "-o", table, "--volcano")
    vivace_refuses((*words, tmp_path / "volcano.jpg"), "must end in .png, .pdf or .svg")
    figure.write_text("mine")
    vivace_refuses((*words, figure), "volcano.png exists")
    assert figure.read_text() == "mine"
    assert not table.exists()
    assert vivace_says(*words, figure, "--overwrite")[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_two_outputs_of_map_are_apart(vivace_refuses, command, tmp_path):
    out = tmp_path / "x.h5ad"
    words = (*command("map"), "-o", out, "--save-model")
    vivace_refuses((*words, out), f"{out} is the path of two results", "choose two paths")
    vivace_refuses((*words, tmp_path), f"{out} and {tmp_path}, two results", "one in the other")


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE, *MODEL])
def test_a_place_that_cannot_be_is_refused_before_reading(
    vivace_refuses, command, tmp_path, name, monkeypatch
):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / get_name(name)
    monkeypatch.setattr("vivace.store.anndata_read.anndata.read_h5ad", None)
    vivace_refuses((*command(name), "-o", out), str(out), "could not be written")


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE, "train"])
@pytest.mark.parametrize("data", ["", "nowhere.h5ad"])
def test_an_input_is_named_before_the_output(vivace_refuses, command, tmp_path, name, data):
    out = tmp_path / get_name(name)
    out.write_text("mine")
    said = "it is a folder" if not data else "there is no file of this name"
    vivace_refuses((*command(name, data), "-o", out), f"{data or '.'} cannot be read", said)
    if name != "train":
        words = (name, tmp_path / "nothing", *command(name)[2:])
        vivace_refuses((*words, "-o", out), f"no model folder at {tmp_path / 'nothing'}")


@pytest.mark.parametrize("name", ANNDATA)
def test_columns_with_a_slash_are_written_to_h5ad_only(
    vivace_refuses, vivace_says, command, tiny, tmp_path, name
):
    adata, path = tiny(), tmp_path / "in.h5ad"
    adata.obs["CD4/CD8"] = 1.5
    with pytest.warns(FutureWarning, match="Forward slashes"):
        adata.write_h5ad(path)
    said = "adata.obs has a column named 'CD4/CD8', which zarr cannot hold; rename it, or write"
    vivace_refuses((*command(name, path), "-o", tmp_path / "out.zarr"), said)
    assert vivace_says(*command(name, path), "-o", tmp_path / "out.h5ad")[::2] == (0, "")
    back = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert (back.obs["CD4/CD8"] == 1.5).all()


@pytest.mark.parametrize("name", ANNDATA)
def test_data_that_cannot_be_written_are_refused_before_computing(
    vivace_refuses, command, tiny, tmp_path, name, monkeypatch
):
    adata = tiny()
    adata.obs["when"] = [(1,)] * adata.n_obs
    monkeypatch.setattr("vivace.store.anndata_read.anndata.read_h5ad", lambda _: adata)
    for method in (
        "get_latent_representation",
        "get_normalized_expression",
        "posterior_predictive_sample",
        "load_query_data",
    ):
        monkeypatch.setattr(SCVI, method, None)
    out = tmp_path / "out.h5ad"
    vivace_refuses((*command(name), "-o", out), "adata.obs['when'] holds values of type tuple")
    assert not out.exists()


@pytest.mark.parametrize("key", ["", ".", "a/b"])
def test_a_key_that_h5ad_cannot_hold_is_refused(vivace_refuses, command, tmp_path, key):
    for name in ("embed", "map"):
        words = (*command(name), "-o", tmp_path / "x.h5ad", "--key-added", key)
        vivace_refuses(words, "--key-added must be a name without '/'")


def test_the_demonstration_keeps_what_exists(vivace_refuses, tmp_path):
    for name in ("pbmc3k.h5ad", "model", "overview.png"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        vivace_refuses(("demo", "-o", folder), name, "exists")
        assert (folder / name).read_text() == "mine"


# ---- compression -----------------------------------------------------------------------


def compression_of(path: Path) -> tuple[str | None, int | None]:
    with h5py.File(path) as file:
        x = file["X"]["data"] if isinstance(file["X"], h5py.Group) else file["X"]
        return x.compression, x.compression_opts


@pytest.mark.parametrize("name", ANNDATA)
@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "compression_opts": 7}, {"compression": "lzf"}]
)
@pytest.mark.parametrize("dense", [True, False])
def test_output_is_compressed_as_the_input_is(
    vivace_says, command, tiny, tmp_path, name, options, dense
):
    adata, path, out = tiny(), tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    adata.X = adata.X.toarray() if dense else adata.X
    adata.write_h5ad(path, **options)
    code, _, err = vivace_says(*command(name, path), "-o", out)
    assert (code, err) == (0, "")
    assert compression_of(out) == compression_of(path)
    assert compression_of(out)[0] == options.get("compression")


def test_a_filter_of_others_and_zarr_become_gzip(vivace_says, command, tiny, tmp_path):
    path, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    adata = tiny()
    adata.X = adata.X.toarray()
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        # n-bit, which h5py has no name for, stands in for the filters of hdf5plugin
        file.create_dataset("X", data=adata.X, chunks=(60, 30), scaleoffset=0)
        file["X"].attrs.update(attributes)
    assert vivace_says(*command("embed", path), "-o", out)[0] == 0
    assert compression_of(out)[0] == "gzip"
    write_anndata(adata, tmp_path / "in.zarr")
    assert vivace_says(*command("embed", tmp_path / "in.zarr"), "-o", out, "--overwrite")[0] == 0
    assert compression_of(out)[0] == "gzip"


# ---- zarr ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ANNDATA, *TABLE, "train"])
def test_a_zarr_store_is_read_as_an_h5ad_is(vivace_says, command, cells, tmp_path, name):
    adata = anndata.read_h5ad(cells)
    write_anndata(adata, tmp_path / "cells.zarr")
    out = tmp_path / ("out.zarr" if name in ANNDATA else get_name(name))
    code, _, err = vivace_says(*command(name, tmp_path / "cells.zarr"), "-o", out)
    assert (code, err) == (0, "")
    if name == "embed":
        written = anndata.read_zarr(tmp_path / "out.zarr")
        model = SCVI.load(tmp_path / "fitted")
        np.testing.assert_array_equal(
            written.obsm["X_scVI"], model.get_latent_representation(adata)
        )
        assert (written.X != adata.X).nnz == 0


# ---- odd data --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANNDATA)
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_columns_that_anndata_reads_are_written_back(
    vivace_says, command, tiny, tmp_path, name, suffix
):
    adata = tiny()
    n = adata.n_obs
    adata.obs["unique"] = [f"barcode{i}" for i in range(n)]
    adata.obs["integer"] = pd.array([None, *range(1, n)], dtype="Int64")
    adata.obs["flag"] = pd.array([None, *([True] * (n - 1))], dtype="boolean")
    adata.obs["empty"] = pd.Categorical([None] * n, categories=["a"])
    path, out = tmp_path / "in.h5ad", tmp_path / f"out{suffix}"
    adata.write_h5ad(path)
    with (
        anndata.settings.override(allow_write_nullable_strings=True),
        h5py.File(path, "r+") as file,
    ):
        del file["obs"]
        adata.obs["text"] = pd.array([None, *(f"t{i}" for i in range(1, n))], dtype="string")
        write_elem(file, "obs", adata.obs)
    code, _, err = vivace_says(*command(name, path), "-o", out)
    assert (code, err) == (0, "")
    written = anndata.read_zarr(out) if suffix == ".zarr" else anndata.read_h5ad(out)
    read = anndata.read_h5ad(path)
    for key in read.obs:
        a, b = np.asarray(read.obs[key], object), np.asarray(written.obs[key], object)
        missing = read.obs[key].isna().to_numpy()
        np.testing.assert_array_equal(missing, written.obs[key].isna().to_numpy())
        np.testing.assert_array_equal(a[~missing], b[~missing])


def test_a_trained_model_that_cannot_be_saved_is_saved_elsewhere(
    vivace_refuses, cells, tmp_path, monkeypatch
):
    temporary, out = tmp_path / "temporary", tmp_path / "model"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    real = place._flush

    def fail(new):  # as on a disk that is full
        if new.name == "model" and temporary not in new.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(new)

    monkeypatch.setattr(place, "_flush", fail)
    arguments = ["train", cells, "-o", out, "--max-epochs", "1", "--quiet"]
    vivace_refuses(arguments, "(No space left on device)", f"was saved as {temporary}")
    assert not out.exists()
    (copy,) = temporary.glob("*/model")
    assert SCVI.load(copy).is_trained

    monkeypatch.setattr(place, "_flush", lambda _: fail(out / "model"))
    vivace_refuses(arguments, f"{out} could not be written (No space left on device)")
    assert list(temporary.glob("vivace-*")) == [copy.parent]
