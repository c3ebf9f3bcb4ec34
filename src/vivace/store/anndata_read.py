"""Reads an AnnData from an h5ad file or a zarr store; of anything else it says what it is."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import h5py

from vivace.errors import DataError, VivaceError, list_names, one_line, require_extra
from vivace.store.place import is_zarr

_MODEL_FILES = ("model.json", "model.pt", "model_params.pt")
_BEGINNINGS = {  # of files in other formats: what they are, and what to do
    b"\x1f\x8b": ("it is compressed by gzip", "unpack it with gunzip first"),
    b"PK\x03\x04": ("it is a zip archive", "unpack it first"),
    b"BZh": ("it is compressed by bzip2", "unpack it with bunzip2 first"),
    b"\xfd7zXZ": ("it is compressed by xz", "unpack it with unxz first"),
    b"\x28\xb5\x2f\xfd": ("it is compressed by zstd", "unpack it with unzstd first"),
    b"\x80": (
        "it looks like a pickle, which can run code",
        "open it where it was made, and write the AnnData with adata.write_h5ad",
    ),
    b"PAR1": (
        "it is a parquet table",
        "make an AnnData of it, anndata.AnnData(pandas.read_parquet(FILE)), and write that",
    ),
    b"\x93NUMPY": ("it is a NumPy array", "make an AnnData of it, and write that"),
}
_CONTAINERS = ("", "anndata", "raw", "dict", "dataframe")  # whose elements are read one by one
_NEEDED = ("", "X", "obs", "var", "obs/_index", "var/_index")
_R_ENDINGS = (".rds", ".rda", ".rdata", ".robj")
_R = ("it is an R object", "write it as h5ad in R, for example with zellkonverter::writeH5AD")


def read_anndata(path: Path, error: type[VivaceError] = DataError) -> anndata.AnnData:
    """The AnnData in an h5ad file or a zarr store.

    Parameters
    ----------
    path
        The file or folder.
    error
        Raised if it cannot be read; the message says what it is instead, or which element cannot
        be read, and what to do.
    """
    check_anndata(path, error)
    try:
        with warnings.catch_warnings():
            # files of old versions can still be read
            warnings.simplefilter("ignore", anndata.OldFormatWarning)
            return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
    except Exception as reason:  # a foreign file may make anndata raise anything
        raise error(_describe_failure(path, reason)) from reason


def check_anndata(path: Path, error: type[VivaceError] = DataError) -> None:
    """Refuse a path that is no AnnData, without reading all of it; the message says what it is."""
    try:
        what = _describe_other(path)
    except VivaceError:
        raise
    except Exception as reason:  # a damaged file, no permission
        raise error(_describe_failure(path, reason)) from reason
    if what is not None:
        raise error(f"{path} cannot be read as h5ad: {what[0]}; {what[1]}.")


def _describe_other(path: Path) -> tuple[str, str] | None:
    """What a path is if it is no AnnData, and what to do; None if it may be one."""
    if not path.exists():
        if path.is_symlink():
            return f"it is a link to {path.readlink()}, which does not exist", "check the link"
        return "there is no file of this name", "check the path"
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        return "it is not a regular file", "write it to disk first"
    if path.suffix.lower() in _R_ENDINGS:
        return _R
    if path.stat().st_size == 0:
        return "it is empty", "write it again, or check the path"
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            return _describe_store(file, path)
    with path.open("rb") as file:
        beginning = file.read(512)
    for start, what in _BEGINNINGS.items():
        if beginning.startswith(start):
            return what
    return None if b"\0" in beginning else _describe_text(path, beginning)


def _describe_text(path: Path, beginning: bytes) -> tuple[str, str]:
    if beginning.startswith(b"%%MatrixMarket"):
        return (
            "it is a matrix in text form (mtx)",
            "convert it, with the tables of genes and cells beside it, by "
            f"scanpy.read_10x_mtx({str(path.parent)!r}).write_h5ad(FILE)",
        )
    separator = ", delimiter='\\t'" if b"\t" in beginning.partition(b"\n")[0] else ""
    return (
        "it is a text file",
        "convert a table with a row per cell by "
        f"scanpy.read_csv({str(path)!r}{separator}).write_h5ad(FILE)",
    )


def _describe_folder(path: Path) -> tuple[str, str] | None:
    names = {entry.name for entry in path.iterdir()}
    if is_zarr(path):
        require_extra("zarr", "zarr", f"Reading {path} needs")
        import zarr

        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            return (
                f"it is a zarr array of shape {root.shape}, without names of cells and genes",
                f"make an AnnData of it, anndata.AnnData(zarr.open_array({str(path)!r})[:]), with "
                "their names, and write that",
            )
        return _describe_store(root, path)
    if names & set(_MODEL_FILES):
        return "it is the folder of a model", "give the file of the cells"
    if any(name.startswith("matrix.mtx") or "_matrix.mtx" in name for name in names):
        return (
            "it is a folder of 10x matrices",
            f"convert it with scanpy.read_10x_mtx({str(path)!r}).write_h5ad(FILE)",
        )
    if not names:
        return "it is an empty folder", "check the path"
    return "it is a folder", "give the h5ad file in it"


def _describe_store(root: Any, path: Path) -> tuple[str, str] | None:
    """What an HDF5 file or a zarr group holds if it is no AnnData, by the names in it."""
    names, attributes = set(root), root.attrs
    kind = attributes.get("encoding-type", "")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    quoted = repr(str(path))
    if "mod" in names or kind.lower() == "mudata":
        modalities = sorted(root["mod"]) if "mod" in names else []
        first = "rna" if "rna" in modalities or not modalities else modalities[0]
        listed = f" of {list_names(modalities)}" if modalities else ""
        read = "read_zarr" if path.is_dir() else "read_h5mu"
        return (
            f"it holds a MuData{listed}",
            f"write one modality, mdata = mudata.{read}({quoted}) and "
            f"mdata[{first!r}].write_h5ad(FILE), and give that",
        )
    if kind == "anndata" or {"obs", "var"} <= names:
        return None
    if "tables" in names:
        first = next(iter(sorted(root["tables"])), "table")
        return (
            "it holds a SpatialData",
            f"write one table, spatialdata.read_zarr({quoted})[{first!r}].write_h5ad(FILE), and "
            "give that",
        )
    if {"row_attrs", "col_attrs"} <= names:
        return "it is a loom file", f"convert it with scanpy.read_loom({quoted}).write_h5ad(FILE)"
    if kind in ("csr_matrix", "csc_matrix"):
        opened = f"zarr.open_group({quoted})" if path.is_dir() else f"h5py.File({quoted})"
        return (
            "it is a sparse matrix, without names of cells and genes",
            f"make an AnnData of it, anndata.AnnData(anndata.io.read_elem({opened})), with their "
            "names, and write that",
        )
    groups = [root[name] for name in names if hasattr(root[name], "keys")]
    groups = [group for group in groups if "encoding-type" not in group.attrs]
    if any({"data", "indices", "indptr"} <= set(group) for group in groups):
        return (
            "it looks like a 10x matrix",
            f"convert it with scanpy.read_10x_h5({quoted}).write_h5ad(FILE)",
        )
    if "assays" in names:
        return (
            "it is an h5Seurat file",
            f"convert it in R with SeuratDisk::Convert({quoted}, dest = 'h5ad')",
        )
    holds = f"no AnnData but {list_names(sorted(names))}" if names else "nothing"
    return f"it holds {holds}", "write an AnnData with adata.write_h5ad"


def _describe_failure(path: Path, reason: Exception) -> str:
    """Which element anndata could not read; only the reason if it cannot be found."""
    try:
        failing = _find_failing(path, reason)
    except Exception:  # the file is damaged
        failing = None
    if failing is None:
        if isinstance(reason, OSError) and reason.strerror:  # no permission, a name too long
            return f"{path} cannot be read ({reason.strerror}); check the path."
        said = brief_reason(reason)
        said = "cut off" if "truncated file" in said else f"damaged ({said})"
        return f"{path} cannot be read as h5ad: it is {said}; copy it or write it again."
    name, encoding, registered, cause = failing
    # an AnnData has these in any case, and raw is whole or missing
    dropped = "raw" if name.startswith("raw/") else name
    without = "" if name in _NEEDED else f", or write the file without {dropped}"
    name = name or "it"
    if registered:
        return (
            f"{path} cannot be read as h5ad: {name} is damaged ({brief_reason(cause)}); copy the file "
            f"or write the file again{without}."
        )
    return (
        f"{path} cannot be read as h5ad: {name} is of a kind ({encoding}) that anndata "
        f"{version('anndata')} cannot read; update anndata{without}."
    )


def _find_failing(path: Path, reason: Exception) -> tuple[str, str, bool, Exception]:
    """The smallest element that cannot be read: name, encoding, whether its kind is known, and why."""
    if path.is_dir():
        import zarr

        return _descend(zarr.open_group(str(path), mode="r"), "", reason)
    with h5py.File(path) as file:
        return _descend(file, "", reason)


def _descend(element: Any, name: str, cause: Exception) -> tuple[str, str, bool, Exception]:
    kind, number = (str(element.attrs.get(f"encoding-{part}", "")) for part in ("type", "version"))
    for key in element if kind in _CONTAINERS and hasattr(element, "keys") else ():
        inner = f"{name}/{key}" if name else key
        try:
            # a child without an encoding is an array of old versions, or a folder of elements
            anndata.io.read_elem(element[key])
        except Exception as reason:
            return _descend(element[key], inner, reason)
    registered = type(cause).__name__ != "IORegistryError"
    return name, f"{kind!r} {number}".strip(), registered, cause


def brief_reason(reason: Exception, most: int = 120) -> str:
    """What another library said, on one line and without a full stop."""
    first = re.split(r"\.\s+(?=[A-Z])", " ".join(str(reason).split()))[0]
    return one_line(first, most).rstrip(".") or type(reason).__name__
