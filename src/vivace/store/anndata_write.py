"""Writes an AnnData as h5ad or zarr; what the formats cannot hold is refused by name beforehand."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, write_elem

from vivace.errors import DataError, brief
from vivace.session import strings_as_written
from vivace.store.anndata_read import brief_reason

_NUMBERS = "biufc"
_REMEDIES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    (
        "{0}.map(bytes.decode, na_action='ignore')",
        lambda column: column.map(bytes.decode, na_action="ignore"),
    ),
    ("{0}.astype(str)", lambda column: column.astype(str)),
    ("{0}.astype(object).astype(str)", lambda column: column.astype(object).astype(str)),
    (
        "{0}.astype(str).where({0}.notna())",
        lambda column: column.astype(str).where(column.notna()),
    ),
    ("{0}.str.replace('\\0', '')", lambda column: column.astype(object).str.replace("\0", "")),
)


@strings_as_written()
def storable(
    adata: anndata.AnnData, alternative: str = "", *, zarr: bool = False
) -> anndata.AnnData:
    """The same data in a form that h5ad and zarr hold; matrices are shared, not copied.

    Text becomes categorical, as anndata's writers do it, but not in ``adata`` itself. Columns of
    objects that are all numbers or all True and False become numbers and booleans.

    Parameters
    ----------
    adata
        The data.
    alternative
        What to do instead of changing them; closes a message.
    zarr
        Whether they are for zarr, which holds no column with "/" in its name.

    Raises
    ------
    DataError
        If a column, or another element, would not be read back as it is; the message names it.
    """
    parts = {
        name: _plain(getattr(adata, name), f"adata.{name}")
        for name in ("X", "obs", "var", "uns", "layers", "obsm", "varm", "obsp", "varp")
    }
    raw = None
    if adata.raw is not None:
        raw = {
            name: _plain(getattr(adata.raw, name), f"adata.raw.{name}")
            for name in ("X", "var", "varm")
        }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique")  # it said so before
        copy = anndata.AnnData(**parts, raw=raw)
    copy.strings_to_categoricals()
    if copy.raw is not None:
        copy.strings_to_categoricals(copy.raw.var)
    slashes = _slashes({"adata": parts, "adata.raw": raw or {}}) if zarr else ()
    for name, refused in (*_refusals(copy, adata), *slashes):
        raise DataError(f"{name} {refused}{alternative}.")
    return copy


@strings_as_written()
def write_storable(
    adata: anndata.AnnData, file: h5py.File, compression: Mapping[str, Any] | None = None
) -> None:
    """Write what :func:`storable` returned.

    Parameters
    ----------
    adata
        The data.
    file
        Where, as :func:`new_hdf5` gives it.
    compression
        As :func:`read_compression` returns it; None for none.
    """
    with _slashes_allowed():
        write_elem(file, "/", adata, dataset_kwargs=dict(compression or {}))


@contextmanager
def _slashes_allowed() -> Iterator[None]:
    """Without anndata's warning that columns with "/" in their name may not be written one day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Forward slashes", FutureWarning)
        yield


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file. If it cannot be written, OSError is raised when the context ends.

    HDF5 does not survive a write that fails, for example on a full disk: it prints dozens of lines
    and ends the process with a segmentation fault. So it is not told.
    """
    with _Output(path, "w+") as output:
        try:
            with h5py.File(output, "w") as file:
                yield file
        finally:
            if output.failure is not None:
                raise output.failure


class _Output(io.FileIO):
    """A file whose writes seem to succeed; the first that did not is kept in ``failure``."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def readinto(self, buffer: Any) -> int:
        """As if what was not written were zero."""
        view = memoryview(buffer).cast("B")
        n_read = super().readinto(view) or 0
        if self.failure is not None:
            view[n_read:] = bytes(len(view) - n_read)
            n_read = len(view)
        return n_read


def read_compression(path: Path) -> dict[str, Any]:
    """How the counts in an h5ad file are compressed, as arguments of ``create_dataset``.

    Zarr stores, and filters that not every HDF5 has, are answered by gzip.
    """
    if path.is_dir():
        return {"compression": "gzip"}
    with h5py.File(path) as file:
        found = file.get("X", None)
        if found is None:
            found = next(iter(file.get("layers", {}).values()), None)
        if isinstance(found, h5py.Group):
            found = found.get("data", None)
        if not isinstance(found, h5py.Dataset):
            return {}
        if found.compression in ("gzip", "lzf"):
            options = {"compression_opts": found.compression_opts}
            return {"compression": found.compression} | (
                options if found.compression == "gzip" else {}
            )
        filters = found.id.get_create_plist()
        codes = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
        rearranging = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
        return {"compression": "gzip"} if codes - rearranging else {}


def _plain(value: Any, place: str, holders: tuple[Any, ...] = ()) -> Any:
    """A value in the form that h5ad has for it, with the arrays in it on the same memory.

    ``holders`` are the mappings that it is in.
    """
    if any(value is holder for holder in holders):
        raise DataError(
            f"{place} is a dict that contains itself, which h5ad cannot hold; drop it, del {place}."
        )
    if isinstance(value, pd.DataFrame):
        return _plain_frame(value, place)
    if isinstance(value, Mapping):
        outer = (*holders, value)
        return {key: _plain(inner, f"{place}[{key!r}]", outer) for key, inner in value.items()}
    # NumPy's subclasses, such as a memory-mapped file
    is_subclass = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    return np.asarray(value) if is_subclass and value.dtype.names is None else value


def _plain_frame(frame: pd.DataFrame, place: str) -> pd.DataFrame:
    """A copy with columns of plain types; text with missing values becomes categorical."""
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(
            f"{place} has two columns named {brief(repeated[0])}, which h5ad cannot hold; keep one, "
            f"{place} = {place}.loc[:, ~{place}.columns.duplicated()]."
        )
    plain = frame.copy()
    for key in plain:
        column = plain[key]
        is_extension = not isinstance(column.dtype, np.dtype)
        if isinstance(column.dtype, pd.SparseDtype):
            plain[key] = column.sparse.to_dense()
        elif is_extension and pd.api.types.is_float_dtype(column.dtype):
            plain[key] = column.to_numpy(np.float64, na_value=np.nan)
        elif isinstance(column.dtype, pd.StringDtype) or column.dtype == object:
            column = column.astype(object)
            missing = column.isna()
            plain[key] = np.nan if missing.all() else column.infer_objects()
            if missing.any() and pd.api.types.infer_dtype(column, skipna=True) == "string":
                plain[key] = column.astype("category")
    return plain


def _refusals(copy: anndata.AnnData, adata: anndata.AnnData) -> Iterator[tuple[str, str]]:
    """Name and message of each element that is not read back as it was."""
    for name in ("obs", "var"):
        names = pd.Series(np.asarray(getattr(copy, f"{name}_names"), object))
        if (why := _column_loss(names)) is not None:
            yield f"adata.{name}_names", f"cannot be held by h5ad ({why}); rename them"
        yield from _refuse_frame(f"adata.{name}", getattr(copy, name), getattr(adata, name))
    if copy.raw is not None:
        yield from _refuse_frame("adata.raw.var", copy.raw.var, adata.raw.var)
        yield from _refuse_value("adata.raw.X", copy.raw.X)
    yield from _refuse_value("adata.X", copy.X)
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        for key, value in getattr(copy, name).items():
            yield from _refuse_key(f"adata.{name}", key)
            yield from _refuse_value(f"adata.{name}[{key!r}]", value)
    yield from _refuse_dict("adata.uns", copy.uns)


def _refuse_frame(
    name: str, frame: pd.DataFrame, original: pd.DataFrame | None = None
) -> Iterator[tuple[str, str]]:
    for key in frame:
        if not isinstance(key, str):
            yield (
                name,
                (
                    f"has a column named {brief(key)}, which is no text; rename it with "
                    f"{name}.columns = {name}.columns.astype(str)"
                ),
            )
            continue
        if key in ("", ".") or key.startswith("/") or "\0" in key:
            yield name, f"has a column named {brief(key)}, which h5ad cannot hold; rename it"
            continue
        why = _column_loss(frame[key])
        if why is not None:
            column = (frame if original is None else original)[key]
            yield f"{name}[{key!r}]", _remedy(f"{name}[{key!r}]", column, why)
    # names that go wrong together, such as "a" and "a/b"
    if (why := _loss(frame.iloc[:1])) is not None:
        yield name, f"cannot be held by h5ad ({why}); rename its index or columns"


def _slashes(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Name and message of each frame with a column that zarr cannot hold."""
    for owner, elements in parts.items():
        for name, element in elements.items():
            for place, frame in _frames(element, f"{owner}.{name}"):
                for key in frame:
                    if "/" in str(key):
                        said = f"has a column named {brief(key)}, which zarr cannot hold"
                        yield place, f"{said}; rename it, or write h5ad"


def _frames(value: Any, place: str) -> Iterator[tuple[str, pd.DataFrame]]:
    if isinstance(value, pd.DataFrame):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _frames(inner, f"{place}[{key!r}]")


def _remedy(place: str, column: pd.Series[Any], why: str) -> str:
    """The message for a column: why it is refused, and a line that makes it storable."""
    kinds = sorted({type(value).__name__ for value in column[~column.isna()]})
    if kinds == ["str"]:
        said = f"holds text that h5ad cannot hold ({why}); "
    else:
        types = " and ".join(kinds[:2]) + " and others" * (len(kinds) > 2)
        said = f"holds values of type {types or column.dtype}, which h5ad cannot hold; "
    for text, change in _REMEDIES:
        try:
            changed = change(column)
            if changed.isna().equals(column.isna()) and _column_loss(_categorical(changed)) is None:
                return f"{said}replace it, {place} = {text.format(place)}"
        except Exception:  # this one does not apply
            continue
    return f"{said}drop it, del {place}"


def _refuse_dict(name: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        place = f"{name}[{key!r}]"
        if not isinstance(key, str):
            yield place, f"has a name that is no text; rename it, or drop it, del {place}"
            continue
        yield from _refuse_key(name, key)
        if isinstance(value, Mapping):
            yield from _refuse_dict(place, value)
        else:
            yield from _refuse_value(place, value)


def _refuse_key(name: str, key: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(key, str) or not key or "/" in key or "\0" in key or key == ".":
        yield (
            name,
            (
                f"has the key {brief(key)}, which h5ad cannot hold (keys are text without '/'); "
                "rename it"
            ),
        )


def _refuse_value(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, pd.DataFrame):
        yield from _refuse_frame(name, value)
        return
    is_array = isinstance(value, np.ndarray) or hasattr(value, "tocsr")
    if is_array and value.ndim and value.dtype.kind in _NUMBERS and not sp.issparse(value):
        value = value[:1]  # the values of an array of numbers do not matter
    elif sp.issparse(value) and value.format in ("csr", "csc"):
        value = value[:1]
    why = _loss(value)
    if why is not None:
        reason = "" if why.startswith("No method registered") else f" ({why})"
        yield (
            name,
            (
                f"is of type {type(value).__name__} and cannot be held by h5ad{reason}; drop it, "
                f"del {name}"
            ),
        )


def _column_loss(column: pd.Series[Any]) -> str | None:
    """Why a column is not read back as it is; None if it is."""
    frame = _sample(column).to_frame("column")
    frame.index = frame.index.astype(str)
    return _loss(frame)


def _sample(column: pd.Series[Any]) -> pd.Series[Any]:
    """As much of a column as shows whether it can be held."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        codes = np.arange(-1, len(categories))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=column.dtype))
    is_number = isinstance(column.dtype, np.dtype) and column.dtype.kind in _NUMBERS
    is_plain = is_number or (column.dtype == object and _is_plain_text(column))
    return (column.iloc[:1] if is_plain else column).reset_index(drop=True)


def _is_plain_text(column: pd.Series[Any]) -> bool:
    """Whether all values are text that HDF5 holds; much faster than to write and read them."""
    if pd.api.types.infer_dtype(column, skipna=False) != "string":
        return False
    text = "".join(column)
    try:
        return "\0" not in text and (text.isascii() or bool(text.encode()))
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _categorical(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.astype("category") if column.dtype == object else column


def _loss(value: Any) -> str | None:
    """Why a value is not read back as it is; None if it is."""
    try:
        back = _write_and_read(value)
    except Exception as reason:  # anndata, h5py and pandas have many ways to refuse
        return brief_reason(reason)
    try:
        return None if _same(value, back) else "it would be read back differently"
    except Exception:  # no comparison of such values
        return None


def _write_and_read(value: Any) -> Any:
    with h5py.File(io.BytesIO(), "w") as file, _slashes_allowed():
        write_elem(file, "value", value)
        return read_elem(file["value"])


def _same(value: Any, back: Any) -> bool:
    if isinstance(value, pd.DataFrame):
        return list(value) == list(back) and all(
            _same_column(value[key], back[key]) for key in value
        )
    if isinstance(value, list | tuple):
        value = np.asarray([np.asarray(v, object) for v in value], object)
    if isinstance(value, np.ndarray) and value.dtype.names is None:
        if value.dtype.kind in "iufc":
            return bool(np.array_equal(value, back, equal_nan=True))
        return bool(np.array_equal(value.astype(object), np.asarray(back, object)))
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return bool(value == back or (value != value and back != back))
    return True


def _same_column(column: pd.Series[Any], back: pd.Series[Any]) -> bool:
    a, b, missing = np.asarray(column, object), np.asarray(back, object), column.isna().to_numpy()
    return bool((missing == back.isna().to_numpy()).all() and (a[~missing] == b[~missing]).all())
