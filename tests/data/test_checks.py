from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem

from vivace.data import check_counts, count_matrix, read_cells
from vivace.data import checks as counts_module
from vivace.data.schema import Declarations, Schema
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError


def get_schema(adata, **declarations) -> Schema:
    return Schema.from_anndata(adata, Declarations(**declarations))


def check(adata, **declarations) -> None:
    read_cells(adata, get_schema(adata, **declarations))


FORMATS = {
    "CSR float32": lambda x: x,
    "CSR float64": lambda x: x.astype(np.float64),
    "CSR int64": lambda x: x.astype(np.int64),
    "CSR uint8": lambda x: x.astype(np.uint8),
    "CSR array": sp.csr_array,
    "CSC": lambda x: x.tocsc(),
    "CSC int32": lambda x: x.tocsc().astype(np.int32),
    "CSC array": sp.csc_array,
    "dense float64": lambda x: x.toarray().astype(np.float64),
    "dense float16": lambda x: x.toarray().astype(np.float16),
    "dense int": lambda x: x.toarray().astype(int),
    "dense, columns first": lambda x: np.asfortranarray(x.toarray()),
}


@pytest.mark.parametrize("convert", FORMATS.values(), ids=FORMATS.keys())
def test_every_format_becomes_the_same_csr(tiny, convert):
    adata = tiny()
    expected = adata.X.copy()
    adata.X = convert(adata.X)
    got = count_matrix(adata, None)
    assert isinstance(got, sp.csr_matrix)
    assert got.dtype == np.float32
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(got, part), getattr(expected, part))


def test_csr_float32_is_used_as_it_is(tiny):
    adata = tiny()
    assert np.shares_memory(count_matrix(adata, None).data, adata.X.data)


def test_truth_values_count_as_ones(tiny):
    adata = tiny()
    seen = adata.X.toarray() > 0
    adata.X = seen
    np.testing.assert_array_equal(count_matrix(adata, None).toarray(), seen.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("wrap", [sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_unsorted_and_duplicate_entries_leave_the_users_matrix_alone(dtype, wrap):
    # entries (0, 3) twice and out of order, (1, 2) before (1, 0)
    data = np.array([1, 5, 2, 4, 7], dtype)
    matrix = wrap((data, np.array([3, 1, 3, 2, 0]), np.array([0, 3, 5, 5, 5])), shape=(4, 4))
    adata = AnnData(matrix)
    before = [getattr(adata.X, part).copy() for part in ("data", "indices", "indptr")]
    got = count_matrix(adata, None)
    for part, then in zip(("data", "indices", "indptr"), before, strict=True):
        np.testing.assert_array_equal(getattr(adata.X, part), then)
    assert got.has_canonical_format
    expected = np.zeros((4, 4))
    expected[0, 3], expected[0, 1], expected[1, 2], expected[1, 0] = 3, 5, 4, 7
    np.testing.assert_array_equal(got.toarray(), expected.T if wrap is sp.csc_matrix else expected)


def test_a_layer_is_read_in_place_of_x(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X * 2
    np.testing.assert_array_equal(
        count_matrix(adata, "counts").toarray(), 2 * count_matrix(adata, None).toarray()
    )


def test_an_unknown_layer_is_refused_with_a_near_match(tiny, refused):
    adata = tiny()
    adata.layers["counts"] = adata.X
    with refused(MissingColumnError, "layers", "'count'", "did you mean 'counts'?"):
        count_matrix(adata, "count")


def test_data_without_x_are_refused(tiny, refused):
    adata = tiny()
    del adata.X
    with refused(DataError, "no X", "layer="):
        count_matrix(adata, None)


def test_counts_on_disk_are_refused_with_the_way_to_read_them(tiny, refused, tmp_path):
    adata = tiny()
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        write_elem(file, "counts", adata.X)
        adata.layers["disk"] = sparse_dataset(file["counts"])
        with refused(DataError, "layers['disk']", "not held in memory", "to_memory()"):
            count_matrix(adata, "disk")


def test_values_that_are_no_numbers_are_refused(tiny, refused):
    adata = tiny()
    adata.X = adata.X.toarray().astype(complex)
    with refused(DataError, "X", "complex128", "raw counts"):
        count_matrix(adata, None)


def test_cells_are_read_with_their_library_and_codes(tiny):
    adata = tiny()
    source = read_cells(adata, get_schema(adata, batch_key="batch"))
    np.testing.assert_array_equal(source.counts.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(source.library, adata.X.toarray().sum(1))
    assert source.library.dtype == np.float32
    assert source.batch.tolist() == [0, 1] * 30


def test_a_library_of_many_molecules_is_summed_exactly():
    x = np.ones((2, 3), np.float32)
    x[0] = [1, 2**24 - 3, 1]  # up to 2**24 float32 holds every integer
    adata = AnnData(sp.csr_matrix(x))
    assert read_cells(adata, get_schema(adata)).library[0] == 2**24 - 1


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_one_pass_gives_the_numbers_that_scipy_gives(tiny, monkeypatch, block):
    monkeypatch.setattr(counts_module, "_BLOCK", block)
    counts = tiny(n_cells=300).X
    counts.data = np.random.default_rng(0).normal(40.0, 20.0, counts.nnz).astype(np.float32)
    counts = sp.vstack([counts, counts[:5] * 0], format="csr")  # the last cells store zeros
    counts.data[-counts[300:].nnz :] = 0.5
    adata = AnnData(counts)
    schema = get_schema(adata, allow_non_integer=True)
    totals = check_counts(adata, counts, schema, allow_negative=True)
    expected = counts.sum(axis=1, dtype=np.float64).A1.astype(np.float32)
    np.testing.assert_array_equal(totals.library, expected)
    assert totals.library.dtype == np.float32
    assert totals.smallest == counts.data.min() < 0
    counts.data = np.abs(counts.data)
    assert check_counts(adata, counts, schema).smallest == 0


def test_genes_are_aligned_by_name_and_others_ignored(tiny):
    adata = tiny()
    known = ["gene9", "gene4", "gene20"]
    schema = get_schema(adata[:, known].copy())
    x = adata.X.toarray()
    x[:, 0] = -1  # gene0 is not a gene of the model
    x[:, 4] += 1
    other = AnnData(sp.csr_matrix(x), obs=adata.obs, var=adata.var)
    shuffled = other[:, np.random.default_rng(0).permutation(30)].copy()
    source = read_cells(shuffled, schema)
    np.testing.assert_array_equal(source.counts.toarray(), other[:, known].X.toarray())
    assert source.counts.has_canonical_format


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("value", [-3.0, np.nan, 0.5])
@pytest.mark.parametrize(("cell", "gene"), [(0, 0), (41, 0), (41, 17), (59, 29)])
def test_the_cell_and_gene_are_named_wherever_the_value_is(
    tiny, refused, monkeypatch, block, value, cell, gene
):
    monkeypatch.setattr(counts_module, "_BLOCK", block)
    adata = tiny()
    x = adata.X.toarray()
    x[cell, gene] = value
    adata.X = sp.csr_matrix(x)
    with refused(DataError, "X", f"{value:g}", f"'cell{cell}'", f"'gene{gene}'"):
        check(adata)


def test_the_cell_and_gene_are_named_after_alignment_too(tiny, refused):
    schema = get_schema(tiny())
    adata = tiny()
    x = adata.X.toarray()
    x[41, 17] = -3
    adata.X = sp.csr_matrix(x)
    with refused(DataError, "-3", "'cell41'", "'gene17'"):
        read_cells(adata[:, ::-1].copy(), schema)


def normalised(x: sp.csr_matrix, target: float = 1e4) -> sp.csr_matrix:
    scaled = sp.csr_matrix(x.multiply(target / x.sum(1)))
    return sp.csr_matrix(np.log1p(scaled), dtype=np.float32)


@pytest.mark.parametrize("target", [1e4, 37.5])
def test_log1p_normalised_values_are_recognised(tiny, refused, target):
    adata = tiny()
    adata.X = normalised(adata.X, target)
    with refused(DataError, "X looks log1p-normalised", "before sc.pp.normalize_total"):
        check(adata)


def test_log1p_is_recognised_when_some_cells_lack_a_count_of_one(tiny, refused):
    adata = tiny()
    x = adata.X.toarray()
    x[:15] = 0
    x[:15, :4] = [2, 3, 5, 7]
    adata.X = normalised(sp.csr_matrix(x))
    with refused(DataError, "X looks log1p-normalised"):
        check(adata)


def test_counts_after_ambient_removal_are_not_called_log1p(tiny, refused):
    adata = tiny()
    adata.X.data *= np.random.default_rng(0).uniform(0.8, 1.0, adata.X.nnz).astype(np.float32)
    with refused(DataError, "not an integer", "allow_non_integer=True"):
        check(adata)


def test_the_suggested_layer_holds_counts(tiny, refused):
    adata = tiny()
    raw = adata.X.copy()
    adata.X = normalised(raw)
    adata.layers["scaled"] = raw.toarray() - 1.5
    adata.layers["ambient"] = raw * 0.9
    adata.layers["counts"] = raw
    with refused(DataError, "adata.layers['counts'] holds integers", "layer='counts'"):
        check(adata)


def test_x_is_suggested_where_a_wrong_layer_was_named(tiny, refused):
    adata = tiny()
    adata.layers["log"] = normalised(adata.X)
    with refused(DataError, "layers['log'] looks log1p", "X holds integers", "leave out layer="):
        check(adata, layer="log")


def test_every_cell_without_counts_is_counted(tiny, refused):
    adata = tiny()
    x = adata.X.toarray()
    x[[11, 30]] = 0
    adata.X = sp.csr_matrix(x)
    start, stop = adata.X.indptr[[4, 5]]
    adata.X.data[start:stop] = 0  # zeros that are stored
    with refused(DataError, "3 of 60 cells have no counts", "'cell4'", "drop them with adata = "):
        check(adata)


def test_cells_are_counted_over_the_genes_of_the_model(tiny, refused):
    adata = tiny()
    schema = get_schema(adata[:, :29].copy())
    x = adata.X.toarray()
    x[8] = 0
    x[8, 29] = 5
    adata.X = sp.csr_matrix(x)
    with refused(DataError, "1 of 60 cells", "29 genes", "'cell8'"):
        read_cells(adata, schema)


def test_data_without_cells_are_refused(tiny, refused):
    with refused(DataError, "no cells", "selection"):
        check(tiny()[:0].copy())


def test_data_without_genes_are_refused(tiny, refused):
    with refused(DataError, "no genes", "selection"):
        check(tiny()[:, :0].copy())


def test_only_an_anndata_is_read(tiny, refused):
    with refused(ArgumentTypeError, "AnnData", "str", "read_h5ad"):
        read_cells("cells.h5ad", get_schema(tiny()))
