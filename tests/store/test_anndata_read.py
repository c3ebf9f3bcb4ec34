"""What is no AnnData is named, and the fix that the message recommends works."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
import torch
import zarr
from anndata.io import write_elem

from vivace import SCVI
from vivace.errors import DataError, ModelFileError
from vivace.store.anndata_read import brief_reason, read_anndata


@pytest.fixture
def h5ad(tiny, tmp_path) -> Path:
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def write_zarr(adata: anndata.AnnData, path: Path) -> None:
    write_elem(zarr.open_group(path, mode="w", zarr_format=2), "/", adata)


def follow(message: str, folder: Path, **names: object) -> None:
    """Run the code between the semicolon and the end of a message; FILE is ``folder/fixed.h5ad``."""
    code = re.search(r"(scanpy\..*?write_h5ad\(FILE\))", message)
    assert code is not None, message
    exec(code[1], {"scanpy": scanpy, "FILE": folder / "fixed.h5ad", **names})


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.h5", "CELLS", "cells.zarr", "store"])
def test_an_anndata_is_read_whatever_its_name(tiny, tmp_path, name):
    adata, path = tiny(), tmp_path / name
    write_zarr(adata, path) if name in ("cells.zarr", "store") else adata.write_h5ad(path)
    assert (read_anndata(path).X != adata.X).nnz == 0


# ---- elements that anndata cannot read ------------------------------------------------


def add_future(group: h5py.Group, name: str) -> None:
    group[name] = 1
    group[name].attrs["encoding-type"] = "future"
    group[name].attrs["encoding-version"] = "7.0"


@pytest.mark.parametrize("place", ["uns/a", "uns/nested/deep/a", "layers/a", "obsm/a", "obsp/a"])
def test_an_element_of_a_newer_anndata_is_named(h5ad, refused, place):
    parent, _, name = place.rpartition("/")
    with h5py.File(h5ad, "r+") as file:
        group = file["uns"] if parent.startswith("uns") else file[parent]
        for part in parent.split("/")[1:]:
            group = group.create_group(part)
            group.attrs["encoding-type"], group.attrs["encoding-version"] = "dict", "0.1.0"
        add_future(group, name)
    version = anndata.__dict__.get("__version__", "0.")
    parts = (
        f"{place} is of a kind ('future' 7.0)",
        version[:2],
        "update anndata",
        f"without {place}.",
    )
    with refused(DataError, str(h5ad), *parts):
        read_anndata(h5ad)
    with h5py.File(h5ad, "r+") as file:
        del file[place]
    assert read_anndata(h5ad).shape == (60, 30)


@pytest.mark.parametrize("place", ["X", "obs", "obs/age", "var/_index"])
def test_an_element_with_a_newer_encoding_is_named(h5ad, refused, place):
    with h5py.File(h5ad, "r+") as file:
        file[place].attrs["encoding-type"] = "future"
    with pytest.raises(DataError, match="is of a kind \\('future'") as caught:
        read_anndata(h5ad)
    assert str(h5ad) in str(caught.value)
    assert f" {place} is of a kind" in str(caught.value)
    # an AnnData cannot be without counts and names
    assert ("write the file without" in str(caught.value)) == (place == "obs/age")


@pytest.mark.parametrize("place", ["raw/X", "raw/var"])
def test_a_damaged_raw_is_dropped_as_the_message_says(tiny, tmp_path, refused, place):
    adata, path = tiny(), tmp_path / "cells.h5ad"
    adata.raw = adata
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file[place].attrs["encoding-type"] = "future"
    with refused(DataError, f"{place} is of a kind", "or write the file without raw."):
        read_anndata(path)
    with h5py.File(path, "r+") as file:
        del file["raw"]
    assert read_anndata(path).shape == (60, 30)


def test_a_file_of_a_newer_anndata_is_said_to_be_so(h5ad, refused):
    with h5py.File(h5ad, "r+") as file:
        file.attrs["encoding-version"] = "9.0"
    with refused(DataError, "it is of a kind ('anndata' 9.0)", "update anndata."):
        read_anndata(h5ad)


@pytest.mark.parametrize("place", ["X/indptr", "X/data", "obs/donor/codes", "var/_index"])
def test_an_element_that_is_damaged_is_named(tiny, tmp_path, refused, place):
    adata, path = tiny(), tmp_path / "cells.h5ad"
    adata.strings_to_categoricals()
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file[place]
    with refused(DataError, str(path), place.rpartition("/")[0], "is damaged"):
        read_anndata(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_said_to_be_so(h5ad, refused, share):
    whole = h5ad.read_bytes()
    h5ad.write_bytes(whole[: int(share * len(whole))])
    with refused(DataError, str(h5ad), "it is cut off; copy it or write it again"):
        read_anndata(h5ad)


def test_a_zarr_store_with_a_newer_element_is_named(tiny, tmp_path, refused):
    path = tmp_path / "cells.zarr"
    adata = tiny()
    adata.uns["numbers"] = np.arange(3)
    write_zarr(adata, path)
    root = zarr.open_group(path, mode="r+")
    root["uns/numbers"].attrs["encoding-type"] = "future"
    with refused(DataError, "uns/numbers is of a kind ('future'", "update anndata"):
        read_anndata(path)


# ---- other files ----------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [(), ("prot", "rna"), ("atac", "prot")])
@pytest.mark.parametrize("kind", ["h5mu", "zarr"])
def test_a_mudata_is_told_to_give_one_modality(tiny, tmp_path, refused, modalities, kind):
    path = tmp_path / f"cells.{kind}"
    root = (
        h5py.File(path, "w") if kind == "h5mu" else zarr.open_group(path, mode="w", zarr_format=2)
    )
    root.attrs["encoding-type"] = "MuData"
    group = root.create_group("mod")
    for name in modalities:
        write_elem(group, name, tiny())
    if kind == "h5mu":
        root.close()
    first = "rna" if "rna" in modalities else [*modalities, "rna"][0]
    with refused(DataError, str(path), "holds a MuData", f"mdata[{first!r}].write_h5ad(FILE)"):
        read_anndata(path)


def write_10x(path: Path, adata: anndata.AnnData, version: int) -> None:
    """A file as 10x's Cell Ranger writes it."""
    counts = adata.X.astype(np.int32)
    names = np.array(list(adata.var_names), "S")
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"], group["indices"], group["indptr"] = (
            counts.data,
            counts.indices,
            counts.indptr,
        )
        group["shape"] = counts.shape[::-1]
        group["barcodes"] = np.array(list(adata.obs_names), "S")
        if version == 2:
            group["genes"] = group["gene_names"] = names
            return
        features = group.create_group("features")
        features["id"] = features["name"] = names
        features["feature_type"] = np.array([b"Gene Expression"] * len(names))
        features["genome"] = np.array([b"GRCh38"] * len(names))


@pytest.mark.parametrize("version", [2, 3])
def test_a_10x_file_is_converted_as_the_message_says(tiny, tmp_path, refused, version):
    adata, path = tiny(), tmp_path / "filtered.h5ad"
    write_10x(path, adata, version)
    with refused(DataError, str(path), "looks like a 10x matrix", "scanpy.read_10x_h5"):
        read_anndata(path)
    with pytest.raises(DataError) as caught:
        read_anndata(path)
    follow(str(caught.value), tmp_path)
    assert (read_anndata(tmp_path / "fixed.h5ad").X != adata.X).nnz == 0


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_10x_folder_is_converted_as_the_message_says(tiny, tmp_path, given):
    adata, folder = tiny(), tmp_path / "filtered"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.astype(np.int32))
    genes = pd.DataFrame(
        {"id": adata.var_names, "name": adata.var_names, "type": "Gene Expression"}
    )
    for name, table in (("features.tsv", genes), ("barcodes.tsv", pd.DataFrame(adata.obs_names))):
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            table.to_csv(file, sep="\t", header=False, index=False)
    path = folder if given == "folder" else folder / "matrix.mtx"
    with pytest.raises(DataError, match=r"10x matrices|\(mtx\)") as caught:
        read_anndata(path)
    with (
        (folder / "matrix.mtx").open("rb") as plain,
        gzip.open(folder / "matrix.mtx.gz", "wb") as to,
    ):
        shutil.copyfileobj(plain, to)  # scanpy reads the packed form of version 3 only
    follow(str(caught.value), tmp_path)
    assert (read_anndata(tmp_path / "fixed.h5ad").X != adata.X).nnz == 0


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_table_is_converted_as_the_message_says(tiny, tmp_path, separator):
    adata, path = tiny(), tmp_path / "counts.txt"
    adata.to_df().to_csv(path, sep=separator)
    with pytest.raises(DataError, match="is a text file") as caught:
        read_anndata(path)
    follow(str(caught.value), tmp_path)
    np.testing.assert_array_equal(read_anndata(tmp_path / "fixed.h5ad").X, adata.X.toarray())


def make_loom(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = np.ones((3, 4))
        file.create_group("row_attrs"), file.create_group("col_attrs")


def make_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["table"] = [1, 2]


def make_seurat(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("assays"), file.create_group("cell.names")


def make_spatial(path: Path) -> None:
    zarr.open_group(path, mode="w").create_group("tables").create_group("cells")


def make_gzip(path: Path) -> None:
    with gzip.open(path, "w") as file:
        file.write(b"a,b\n1,2\n")


def save_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


OTHERS = {
    "loom": (make_loom, ("it is a loom file", "scanpy.read_loom")),
    "h5": (make_h5, ("holds no AnnData but 'table'",)),
    "h5 without a name": (lambda p: h5py.File(p, "w").close(), ("it holds nothing",)),
    "h5Seurat": (make_seurat, ("h5Seurat", "SeuratDisk::Convert")),
    "SpatialData": (make_spatial, ("SpatialData", "['cells'].write_h5ad(FILE)")),
    "empty zarr": (lambda p: zarr.open_group(p, mode="w"), ("it holds nothing",)),
    "gz": (make_gzip, ("compressed by gzip", "gunzip")),
    "empty": (Path.touch, ("it is empty",)),
    "empty folder": (Path.mkdir, ("it is an empty folder",)),
    "link": (lambda p: p.symlink_to("nowhere"), ("a link to nowhere, which does not exist",)),
    "pipe": (os.mkfifo, ("not a regular file",)),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), ("pickle", "adata.write_h5ad")),
    "torch": (lambda p: torch.save({}, p), ("zip archive",)),
    "npy": (lambda p: save_array(p), ("a NumPy array",)),
    "bytes": (lambda p: p.write_bytes(bytes(range(256))), ("it is damaged",)),
    "missing": (lambda p: None, ("there is no file of this name", "check the path")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_anndata_is_named(tmp_path, refused, kind):
    make, parts = OTHERS[kind]
    path = tmp_path / "in.h5ad"
    make(path)
    with refused(DataError, f"{path} cannot be read as h5ad: ", *parts):
        read_anndata(path)


def test_a_gz_is_unpacked_as_the_message_says(h5ad, tmp_path, refused):
    packed = tmp_path / "cells.h5ad.gz"
    packed.write_bytes(gzip.compress(h5ad.read_bytes()))
    with refused(DataError, "unpack it with gunzip first"):
        read_anndata(packed)
    h5ad.write_bytes(gzip.decompress(packed.read_bytes()))
    assert read_anndata(h5ad).shape == (60, 30)


def test_an_array_of_zarr_is_made_an_anndata_as_the_message_says(tmp_path):
    path = tmp_path / "expression.zarr"
    zarr.create_array(path, shape=(4, 3), dtype="float32", chunks=(2, 3))[:] = 2.0
    with pytest.raises(DataError, match="it is a zarr array of shape \\(4, 3\\)") as caught:
        read_anndata(path)
    code = re.search(r"anndata\.AnnData\(.*\)(?=, with)", str(caught.value))[0]
    adata = eval(code, {"anndata": anndata, "zarr": zarr})
    np.testing.assert_array_equal(adata.X, np.full((4, 3), 2.0))


@pytest.mark.parametrize("n_samples", [1, 2])
def test_sampled_counts_on_disk_are_named(trained, tmp_path, refused, n_samples):
    path = tmp_path / "counts.zarr"
    trained.posterior_predictive_sample(n_samples=n_samples, out=path)
    if n_samples == 2:
        with refused(DataError, "it holds no AnnData but '0', '1'"):
            read_anndata(path)
        return
    with pytest.raises(DataError, match="it is a sparse matrix") as caught:
        read_anndata(path)
    code = re.search(r"anndata\.AnnData\(.*\)(?=, with)", str(caught.value))[0]
    assert eval(code, {"anndata": anndata, "zarr": zarr}).shape == trained.adata.shape


def test_a_reason_ends_before_the_next_sentence_only():
    said = "Observations annot. `obs` must have 3 rows, not 4.\nCheck the data."
    assert brief_reason(ValueError(said)) == "Observations annot. `obs` must have 3 rows, not 4"
    assert brief_reason(KeyError()) == "KeyError"
    assert len(brief_reason(ValueError("x " * 500))) == 120


def test_a_model_folder_and_an_r_file_are_named(saved, tmp_path, refused):
    with refused(DataError, str(saved), "the folder of a model"):
        read_anndata(saved)
    (tmp_path / "seurat.RDS").write_bytes(b"\x1f\x8b")
    with refused(DataError, "an R object", "zellkonverter::writeH5AD"):
        read_anndata(tmp_path / "seurat.RDS")


@pytest.mark.parametrize("name", ["x" * 300, "in.h5ad/inner.h5ad", "nul\0"])
def test_a_path_that_cannot_be_is_refused(tmp_path, refused, name):
    (tmp_path / "in.h5ad").touch()
    with refused(DataError, "cannot be read", "check the path"):
        read_anndata(tmp_path / name)


# ---- the data and the folder of a model -------------------------------------------------


def test_data_saved_with_a_model_are_named_by_their_path(trained, tmp_path, refused):
    trained.save(tmp_path / "model", save_anndata=True)
    with h5py.File(tmp_path / "model" / "adata.h5ad", "r+") as file:
        add_future(file["uns"], "thing")
    with refused(ModelFileError, "model/adata.h5ad", "uns/thing is of a kind", "update anndata"):
        SCVI.load(tmp_path / "model")
    with h5py.File(tmp_path / "model" / "adata.h5ad", "r+") as file:
        del file["uns/thing"]
    assert SCVI.load(tmp_path / "model").adata.shape == (60, 30)


@pytest.mark.parametrize("prefix", ["", "day1_"])
@pytest.mark.parametrize("names", [("model_params.pt", "attr.pkl", "var_names.csv"), ("attr.pkl",)])
def test_a_model_of_old_scvi_tools_is_named(tmp_path, refused, prefix, names):
    for name in names:
        (tmp_path / f"{prefix}{name}").write_bytes(pickle.dumps({}))
    said = ("scvi-tools before 0.15", "not read", f"SCVI.convert_legacy_save({str(tmp_path)!r}")
    with refused(ModelFileError, str(tmp_path), *said, "load the result"):
        SCVI.load(tmp_path)
