"""Results larger than memory: matrices on disk that are filled block by block.

A path becomes a zarr array, or a zarr group that AnnData reads as a sparse matrix. It is written
completely or not at all (:mod:`vivace.store.place`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from vivace.errors import ArgumentTypeError, OptionError, ShapeError, require_extra
from vivace.store.anndata_write import new_hdf5, storable, write_storable
from vivace.store.place import check_free, written_whole
from vivace.validate import usable_path

_CHUNK = 1 << 20  # numbers in a chunk: 4 MB in float32
_DENSE = {
    "encoding-type": "array",
    "encoding-version": "0.2.0",
}  # AnnData's attributes of a dense array
_ENTRIES = 1 << 22  # sparse entries to collect before they are written


def fill_dense(
    out: object,
    shape: tuple[int, ...],
    batch_size: int,
    write: Callable[[Any], None],
    cells_axis: int = -2,
) -> Any:
    """Fill a float32 array of ``shape`` with ``write``.

    Parameters
    ----------
    out
        None for an array in memory, a path for a zarr array, or an array of the right shape, in
        memory or on disk.
    shape
        Shape of the result.
    batch_size
        Number of cells that are written at a time, and of cells in a chunk.
    write
        Function that is called with the array and fills it.
    cells_axis
        Axis of the cells; that of the genes follows.

    Returns
    -------
    The array. If ``out`` is a path, it is open for reading.

    Raises
    ------
    ArgumentTypeError, ShapeError, OptionError
        If ``out`` cannot be filled, or the path exists.
    MissingExtraError
        If ``out`` is a path and zarr is not installed.
    """
    if out is None:
        held = np.empty(shape, np.float32)
        write(held)
        return held
    if isinstance(out, str | Path):
        import_zarr()
        import zarr

        chunks = _chunks(shape, batch_size, cells_axis % len(shape))
        path = _local(out)
        check_free(path)
        with written_whole(path) as new:
            array = zarr.create_array(store=str(new), shape=shape, chunks=chunks, dtype="float32")
            write(array)
        return zarr.open_array(str(path), mode="r")
    if not isinstance(getattr(out, "dtype", None), np.dtype) or not hasattr(out, "__setitem__"):
        raise ArgumentTypeError(
            f"out must be a path, or an array that can be written to, not {type(out).__name__}."
        )
    if tuple(out.shape) != shape:  # type: ignore[attr-defined]
        raise ShapeError(f"out has shape {tuple(out.shape)}, but the result has {shape}.")  # type: ignore[attr-defined]
    if np.dtype(out.dtype).kind != "f":  # type: ignore[attr-defined]
        raise OptionError(f"out has type {out.dtype}, which does not hold fractions; use float32.")  # type: ignore[attr-defined]
    if not _writeable(out):
        raise OptionError("out is read-only; open it for writing, or give a path.")
    write(out)
    return out


def _local(path: str | Path) -> Path:
    """Refuse a URL; return a local path."""
    if "://" in str(path):
        raise OptionError(f"{path} is not on this machine; write to a local path and copy it.")
    return usable_path(path, "out")


def _writeable(out: Any) -> bool:
    """Whether an array of NumPy, h5py or zarr can be written to."""
    if isinstance(out, np.ndarray):
        return bool(out.flags.writeable)
    if isinstance(out, h5py.Dataset):
        return bool(out.file.mode != "r")
    return not getattr(out, "read_only", False)


def fill_sparse(
    path: str | Path, n_genes: int, n_samples: int, blocks: Iterable[tuple[int, sp.csr_matrix]]
) -> Any:
    """Write one sparse matrix per sample to ``path``, from blocks of their rows in order.

    Parameters
    ----------
    path
        Where to write a zarr group.
    n_genes
        Number of columns.
    n_samples
        Number of samples.
    blocks
        Pairs of a sample's number and its next rows.

    Returns
    -------
    For one sample, AnnData's sparse dataset, open for reading; for several, a list of them, stored
    in the groups "0", "1" and so on.
    """
    if not isinstance(path, str | Path):
        raise ArgumentTypeError(
            f"out must be a path for sparse samples, not {type(path).__name__}; leave it None for a "
            "matrix in memory."
        )
    import_zarr()
    import zarr

    names = [str(i) for i in range(n_samples)]
    place = _local(path)
    check_free(place)
    with written_whole(place) as new:
        root = zarr.open_group(str(new.parent), mode="a", zarr_format=2)
        if n_samples > 1:
            root.create_group(new.name)
        groups = [f"{new.name}/{name}" for name in names] if n_samples > 1 else [new.name]
        for group in groups:
            empty = sp.csr_matrix((0, n_genes), dtype=np.int32)
            empty.indptr = empty.indptr.astype(np.int64)  # for more than 2**31 entries
            # an empty array would otherwise get chunks of one entry
            write_elem(root, group, empty, dataset_kwargs={"chunks": (_CHUNK,)})
        for sample, block in _larger(n_samples, blocks):
            sparse_dataset(root[groups[sample]]).append(block)
    written = zarr.open_group(str(place), mode="r")
    if n_samples == 1:
        return sparse_dataset(written)
    return [sparse_dataset(written[name]) for name in names]


def import_zarr() -> None:
    """Raise an error in one sentence if zarr is not installed."""
    require_extra("zarr", "zarr", "Writing to a path needs")


def _larger(
    n_samples: int, blocks: Iterable[tuple[int, sp.csr_matrix]]
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Collect rows into blocks of several million entries, because small writes are slow."""
    waiting: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    entries = [0] * n_samples
    for sample, block in blocks:
        waiting[sample].append(block)
        entries[sample] += block.nnz
        if sum(entries) >= _ENTRIES:  # over all samples, or memory would grow with their number
            for i in np.flatnonzero(entries):
                yield int(i), sp.vstack(waiting[i], format="csr")
                waiting[i], entries[i] = [], 0
    for sample, left in enumerate(waiting):
        if left:
            yield sample, sp.vstack(left, format="csr")


@contextmanager
def dense_file(
    path: Path,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    batch_size: int,
    compression: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """An empty float32 X, cells x genes, of a file (.h5ad) or folder (.zarr) that AnnData reads.

    ``path`` is replaced, and only after the context has ended without an error.
    """
    shape, is_zarr = (len(obs), len(var)), path.suffix == ".zarr"
    frame = storable(anndata.AnnData(obs=obs, var=var), zarr=is_zarr)
    chunks = _chunks(shape, batch_size, 0)
    with written_whole(path) as new:
        if is_zarr:
            root = _zarr_group(new, frame)
            x = root.create_array("X", shape=shape, chunks=chunks, dtype="float32")
            x.attrs.update(_DENSE)
            yield x
        else:
            with new_hdf5(new) as file:
                write_storable(frame, file, compression)
                file.pop("X", None)
                options = {"chunks": chunks, **(compression or {})} if all(shape) else {}
                x = file.create_dataset("X", shape, "float32", **options)
                x.attrs.update(_DENSE)
                yield x


def write_anndata(
    adata: anndata.AnnData, path: Path, compression: Mapping[str, Any] | None = None
) -> None:
    """Write a file (.h5ad) or folder (.zarr), completely or not at all; what is there is replaced.

    Raises
    ------
    DataError
        If the data hold something that the format does not; the message names it.
    WriteError
        If the path cannot be written.
    """
    is_zarr = path.suffix == ".zarr"
    kept = storable(adata, zarr=is_zarr)
    with written_whole(path, failures=Exception) as new:
        if is_zarr:
            _zarr_group(new, kept)
        else:
            with new_hdf5(new) as file:
                write_storable(kept, file, compression)


def _zarr_group(path: Path, adata: anndata.AnnData) -> Any:
    """Write ``adata`` as a zarr group, still open for writing, without consolidated metadata."""
    import_zarr()
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    anndata.io.write_elem(root, "/", adata)
    return root


def _chunks(shape: tuple[int, ...], batch_size: int, cells_axis: int) -> tuple[int, ...]:
    """Chunks with the cells of one write, and with about a million numbers."""
    chunks = [1] * len(shape)
    chunks[cells_axis] = max(1, min(batch_size, shape[cells_axis]))
    most = max(1, _CHUNK // chunks[cells_axis])
    chunks[cells_axis + 1] = max(1, min(shape[cells_axis + 1], most))
    return tuple(chunks)
