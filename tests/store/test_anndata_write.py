"""What is written is read back as it was; the rest is refused by name, and the fix works."""

from __future__ import annotations

import datetime
import decimal
import re
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import vivace
from vivace import SCVI
from vivace.errors import DataError
from vivace.store.anndata_write import new_hdf5, read_compression, storable
from vivace.store.arrays import write_anndata

N = 60


def objects(*values: object) -> np.ndarray:
    """A column of N objects."""
    column = np.empty(N, object)
    for i in range(N):
        column[i] = values[i % len(values)]
    return column


HELD = {
    "text": objects("a", "b"),
    "text of NumPy": objects(np.str_("a"), "b"),
    "text with None": objects("a", None),
    "text with NaN": objects("a", np.nan),
    "text with NA": objects("a", pd.NA),
    "empty text": objects("", "b"),
    "umlauts": objects("größe", "λ", "🧬"),
    "nothing": objects(None),
    "integers as objects": objects(1, 2),
    "floats as objects": objects(1.5, None),
    "booleans as objects": objects(True, False),
    "pandas text": pd.array(objects("a", None), dtype="string"),
    "unique text": objects(*(f"barcode{i}" for i in range(N))),
    "unique pandas text": pd.array([None, *(f"t{i}" for i in range(1, N))], dtype="string"),
    "Int64": pd.array(objects(1, None), dtype="Int64"),
    "Float64": pd.array(objects(1.5, None), dtype="Float64"),
    "Float32": pd.array(objects(1.5, None), dtype="Float32"),
    "boolean": pd.array(objects(True, None), dtype="boolean"),
    "float16": np.full(N, 1.5, np.float16),
    "long double": np.full(N, 1.5, np.longdouble),
    "complex": np.full(N, 1j),
    "uint8": np.full(N, 255, np.uint8),
    "sparse": pd.arrays.SparseArray(np.arange(N) % 2),
    "categories": pd.Categorical(objects("a", None, "b"), categories=["b", "c", "a"]),
    "ordered": pd.Categorical(objects("a", "b"), categories=["b", "a"], ordered=True),
    "categories of integers": pd.Categorical(objects(1, 2)),
    "categories of floats": pd.Categorical(objects(1.5, np.nan)),
    "categories of booleans": pd.Categorical(objects(True, False)),
    "no categories": pd.Categorical(objects(None)),
}
REFUSED = {
    "bytes": objects(b"d0", b"d1"),
    "bytes with None": objects(b"d0", None),
    "categories of bytes": pd.Categorical(objects(b"d0", b"d1")),
    "tuples": objects(("a", 0), ("b", 1)),
    "categories of tuples": pd.Series(objects(("a", 0), ("b", 1))).astype("category"),
    "lists": objects([1], [2]),
    "sets": objects({1}),
    "dicts": objects({"a": 1}),
    "arrays": objects(np.ones(2)),
    "mixed": objects(1, "x"),
    "categories, mixed": pd.Categorical(objects(1, "x")),
    "dates": objects(datetime.date(2020, 1, 1)),
    "datetimes": pd.to_datetime(objects("2020-01-01", None)),
    "datetimes with a zone": pd.to_datetime(objects("2020-01-01"), utc=True),
    "categories of datetimes": pd.Categorical(pd.to_datetime(objects("2020-01-01"))),
    "timedeltas": pd.to_timedelta(np.arange(N), unit="s"),
    "periods": pd.period_range("2020", periods=N, freq="D"),
    "intervals": pd.cut(np.arange(N), 3),
    "interval array": pd.arrays.IntervalArray.from_breaks(np.arange(N + 1)),
    "decimals": objects(decimal.Decimal("1.5")),
    "paths": objects(Path("a")),
    "text with NUL": objects("a\0b", "b"),
    "text with NUL at the end": objects("a\0", "b"),
    "categories with NUL": pd.Categorical(objects("a\0b", "b")),
    "half a surrogate": objects("\ud800", "b"),
}


def same(a: pd.Series, b: pd.Series) -> bool:
    missing = a.isna().to_numpy()
    x, y = np.asarray(a, object), np.asarray(b, object)
    return bool((missing == b.isna()).all() and (x[~missing] == y[~missing]).all())


def check_read_back(before: pd.DataFrame, back: pd.DataFrame) -> None:
    assert list(back) == list(before)
    for key in before:
        assert same(before[key], back[key]), key
        if isinstance(before[key].dtype, pd.CategoricalDtype):
            assert list(back[key].cat.categories) == list(before[key].cat.categories)
            assert back[key].cat.ordered == before[key].cat.ordered


@pytest.mark.parametrize("kind", HELD)
def test_a_column_is_read_back_as_it_was(tiny, tmp_path, kind):
    adata = tiny()
    adata.obs["q"] = HELD[kind]
    before = adata.copy()
    write_anndata(adata, tmp_path / "cells.h5ad")
    check_read_back(before.obs, anndata.read_h5ad(tmp_path / "cells.h5ad").obs)
    pd.testing.assert_frame_equal(adata.obs, before.obs)  # the user's data do not change


def test_columns_are_read_back_from_zarr(tiny, tmp_path):
    adata = tiny()
    adata.obs = adata.obs.assign(**{k: v for k, v in HELD.items() if k != "long double"})
    write_anndata(adata, tmp_path / "cells.zarr")
    check_read_back(adata.obs, anndata.read_zarr(tmp_path / "cells.zarr").obs)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_column_that_cannot_be_held_is_refused_and_the_fix_works(
    tiny, saved, trained, tmp_path, refused, kind
):
    adata, path = tiny(), tmp_path / "cells.h5ad"
    adata.obs["q"] = REFUSED[kind]
    with refused(DataError, "adata.obs['q'] holds", "h5ad cannot hold"):
        write_anndata(adata, path)
    assert not path.exists()
    with pytest.raises(DataError) as caught:
        write_anndata(adata, path)
    fix = re.search(r"(adata\.obs\['q'\] = .*|del adata\.obs\['q'\])\.$", str(caught.value))
    assert fix is not None, caught.value
    exec(fix[1], {"adata": adata})
    write_anndata(adata, path)
    back = anndata.read_h5ad(path)
    assert ("q" in adata.obs) == ("q" in back.obs) == (kind != "half a surrogate")
    if "q" in adata.obs:
        assert same(adata.obs["q"], back.obs["q"])


@pytest.mark.parametrize("style", ["vivace", "scvi-tools"])
@pytest.mark.parametrize("kind", ["bytes", "tuples", "datetimes", "text with NUL", "mixed"])
def test_a_model_refuses_to_be_saved_with_such_a_column(tiny, tmp_path, refused, kind, style):
    adata, path = tiny(), tmp_path / "model"
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=4)
    model.train(1, progress=False)
    model.save(path, save_anndata=True, format=style)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    adata.obs["q"] = REFUSED[kind]
    parts = ("adata.obs['q']", "before setup_anndata", "save_anndata=False")
    with refused(DataError, *parts):
        model.save(path, save_anndata=True, overwrite=True, format=style)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    model.save(path, save_anndata=False, overwrite=True, format=style)
    adata.obs["q"] = adata.obs["q"].map(str).str.replace("\0", "")
    model.save(path, save_anndata=True, overwrite=True, format=style)
    assert same(SCVI.load(path).adata.obs["q"], adata.obs["q"])


def cell_named(adata):
    adata.obs_names = ["a\0", *adata.obs_names[1:]]


def repeat_column(adata):
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)


def name_index(adata):
    adata.obs.index.name = "batch"


ELEMENTS = {
    "a column that is a number": (
        lambda a: a.obs.insert(0, 3, 1),
        "adata.obs has a column named 3",
    ),
    "a column that is a path": (
        lambda a: a.obs.insert(0, "/X", 1),
        "adata.obs has a column named '/X'",
    ),
    "a column that is a dot": (
        lambda a: a.obs.insert(0, ".", 1),
        "adata.obs has a column named '.'",
    ),
    "a column without a name": (
        lambda a: a.obs.insert(0, "", 1),
        "adata.obs has a column named ''",
    ),
    "columns within columns": (
        lambda a: [a.obs.insert(0, name, 1.0) for name in ("a", "a/b")],
        "rename its index or columns",
    ),
    "a reserved column": (lambda a: a.obs.insert(0, "_index", 1), "'_index' is a reserved name"),
    "two columns of a name": (repeat_column, "adata.obs has two columns named 'batch'"),
    "an index named as a column": (name_index, "rename its index or columns"),
    "a cell with NUL": (cell_named, "adata.obs_names cannot be held"),
    "var": (
        lambda a: a.var.insert(0, "q", [(1,)] * 30),
        "adata.var['q'] holds values of type tuple",
    ),
    "uns": (lambda a: a.uns.update(x={"y": {1, 2}}), "adata.uns['x']['y'] is of type set"),
    "a key of uns": (lambda a: a.uns.update(x={1: 2}), "adata.uns['x'][1] has a name"),
    "a slash in uns": (lambda a: a.uns.update({"a/b": 1}), "adata.uns has the key 'a/b'"),
    "a slash in layers": (
        lambda a: a.layers.update({"a/b": a.X.copy()}),
        "adata.layers has the key 'a/b'",
    ),
    "a mixed list": (lambda a: a.uns.update(x=[1, "a"]), "adata.uns['x'] is of type list"),
    "a frame in uns": (
        lambda a: a.uns.update(x=pd.DataFrame({"q": [(1,)]})),
        "adata.uns['x']['q'] holds values of type tuple",
    ),
    "obsm": (
        lambda a: a.obsm.update(x=pd.DataFrame({"q": [(1,)] * N}, index=a.obs_names)),
        "adata.obsm['x']['q'] holds values of type tuple",
    ),
    "dates in obsm": (
        lambda a: a.obsm.update(x=np.full((N, 2), np.datetime64("2020"))),
        "adata.obsm['x'] is of type ndarray",
    ),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_an_element_that_cannot_be_held_is_named(tiny, tmp_path, refused, kind):
    change, part = ELEMENTS[kind]
    adata = tiny()
    change(adata)
    with refused(DataError, part):
        write_anndata(adata, tmp_path / "cells.h5ad")
    assert not any(tmp_path.iterdir())


def test_columns_with_a_slash_are_held(tiny, tmp_path, refused):
    adata = tiny()
    adata.obs["CD4/CD8"] = objects("a", "b")
    adata.var["log1p/mean"] = 1.5
    adata.obsm["x"] = pd.DataFrame({"a/b": np.arange(N)}, index=adata.obs_names)
    adata.raw = adata
    write_anndata(adata, tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    check_read_back(adata.obs, back.obs)
    check_read_back(adata.var, back.var)
    check_read_back(adata.raw.var, back.raw.var)
    check_read_back(adata.obsm["x"], back.obsm["x"])
    for place, frame in (
        ("adata.obs", adata.obs),
        ("adata.var", adata.var),
        ("adata.obsm['x']", adata.obsm["x"]),
        ("adata.raw.var", adata.raw.var),
    ):
        with refused(DataError, f"{place} has a column named", "zarr cannot hold; rename it"):
            write_anndata(adata, tmp_path / "cells.zarr")
        frame.rename(columns=lambda name: name.replace("/", " per "), inplace=True)
    write_anndata(adata, tmp_path / "cells.zarr")
    check_read_back(adata.obs, anndata.read_zarr(tmp_path / "cells.zarr").obs)


def test_a_dict_that_contains_itself_is_refused_and_the_fix_works(tiny, tmp_path):
    adata = tiny()
    inner = {"b": {}}
    inner["b"]["c"] = inner
    adata.uns["a"] = inner
    adata.uns["twice"] = {"x": (shared := {"y": 1}), "z": shared}
    with pytest.raises(DataError, match="is a dict that contains itself") as caught:
        write_anndata(adata, tmp_path / "cells.h5ad")
    exec(re.search(r"del adata\.uns\S*(?=\.$)", str(caught.value))[0], {"adata": adata})
    write_anndata(adata, tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert back.uns["a"] == {"b": {}}
    assert back.uns["twice"]["z"] == {"y": 1}


def test_two_columns_of_a_name_are_made_one_as_the_message_says(tiny, tmp_path):
    adata = tiny()
    repeat_column(adata)
    with pytest.raises(DataError) as caught:
        write_anndata(adata, tmp_path / "cells.h5ad")
    fix = re.search(r"(adata\.obs = .*)\.$", str(caught.value))
    assert fix is not None
    exec(fix[1], {"adata": adata})
    write_anndata(adata, tmp_path / "cells.h5ad")


def test_what_scanpy_writes_is_held(tmp_path):
    import scanpy as sc

    adata = vivace.datasets.pbmc3k()[:300].copy()
    adata.raw = adata.copy()
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=5)
    sc.pp.neighbors(adata)
    sc.tl.rank_genes_groups(adata, "cell_type")
    adata.uns["none"], adata.uns["deep"] = None, {"list": ["a", "b"], "empty": {}, "nan": np.nan}
    adata.uns["view"] = adata.X[:3]
    adata.obsm["frame"] = pd.DataFrame({"a": ["x", None] * 150}, index=adata.obs_names)
    write_anndata(adata, tmp_path / "ours.h5ad")
    ours, plain = anndata.read_h5ad(tmp_path / "ours.h5ad"), adata.copy()
    plain.obsm["frame"]["a"] = plain.obsm["frame"]["a"].astype("category")
    plain.write_h5ad(tmp_path / "plain.h5ad")
    theirs = anndata.read_h5ad(tmp_path / "plain.h5ad")
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("obsm", "varm", "obsp", "layers", "uns"):
        assert getattr(ours, name).keys() == getattr(theirs, name).keys()
    assert (ours.raw.X != theirs.raw.X).nnz == 0
    with h5py.File(tmp_path / "ours.h5ad") as a, h5py.File(tmp_path / "plain.h5ad") as b:
        assert dict(a.attrs) == dict(b.attrs)
        assert visit(a) == visit(b)


def visit(file: h5py.File) -> dict[str, dict[str, str]]:
    found = {}
    file.visititems(
        lambda name, item: found.update({name: {k: str(v) for k, v in item.attrs.items()}})
    )
    return found


def test_matrices_are_shared_and_memory_maps_written(tiny, tmp_path):
    adata = tiny()
    adata.X = np.memmap(tmp_path / "x", np.float32, "w+", shape=(N, 30))
    adata.X[:, 0] = 1.0
    adata.layers["sparse"] = sp.csr_matrix(adata.X)
    held = storable(adata)
    assert np.shares_memory(held.X, adata.X)
    assert np.shares_memory(held.layers["sparse"].data, adata.layers["sparse"].data)
    write_anndata(adata, tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "cells.h5ad").X, adata.X)


def test_a_view_is_written(tiny, tmp_path):
    write_anndata(tiny()[5:20, :7], tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.X != tiny()[5:20, :7].X).nnz == 0


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf"}])
def test_compression_is_read(tiny, tmp_path, options):
    adata = tiny()
    adata.write_h5ad(tmp_path / "a.h5ad", **options)
    assert read_compression(tmp_path / "a.h5ad").get("compression") == options.get("compression")
    adata.layers["counts"] = adata.X
    adata.X = None
    adata.write_h5ad(tmp_path / "b.h5ad", **options)
    assert read_compression(tmp_path / "b.h5ad").get("compression") == options.get("compression")


def test_a_hdf5_file_is_written_in_pieces_and_read_while_it_is_open(tmp_path):
    with new_hdf5(tmp_path / "file.h5") as file:
        x = file.create_dataset("x", (40, 30), "f4", chunks=(7, 30), compression="gzip")
        for i in range(40):
            x[i] = i
        np.testing.assert_array_equal(x[:, 3], np.arange(40))
    with h5py.File(tmp_path / "file.h5") as file:
        np.testing.assert_array_equal(file["x"][:, 3], np.arange(40))
