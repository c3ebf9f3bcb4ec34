from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData, ImplicitModificationWarning

from vivace import SCVI
from vivace.data import MemorySource, read_cells
from vivace.data.fingerprint import EntryFingerprint, read_entries, spread_places
from vivace.data.schema import Declarations, Schema
from vivace.errors import DataError

N_CELLS = 1000
DECLARED = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "depth",
    "categorical_covariate_keys": ("donor",),
    "continuous_covariate_keys": ("age",),
}
FORMATS = {
    "CSR float32, shared": lambda x: x,
    "CSR float64": lambda x: x.astype(np.float64),
    "CSR int64": lambda x: x.astype(np.int64),
    "CSC": lambda x: x.tocsc(),
    "dense": lambda x: x.toarray(),
    "dense int, columns first": lambda x: np.asfortranarray(x.toarray().astype(int)),
}


def read(adata: AnnData, **declared) -> MemorySource:
    schema = Schema.from_anndata(adata, Declarations(**(DECLARED | declared)))
    return read_cells(adata, schema)


@pytest.fixture
def adata(tiny) -> AnnData:
    return tiny(n_cells=N_CELLS)


def unsorted(x: sp.csr_matrix) -> sp.csr_matrix:
    """Equal to ``x``, but with the entries of each cell in descending order."""
    order = np.concatenate(
        [np.arange(b, a, -1) - 1 for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)]
    )
    return sp.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)


def with_split_entries(x: sp.csr_matrix) -> sp.csr_matrix:
    """Equal to ``x``, but with each entry split into two stored entries."""
    two = np.repeat(x.data, 2)
    two[::2], two[1::2] = 1, x.data - 1
    return sp.csr_matrix((two, np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)


# ---- changes of the counts -------------------------------------------------------------


def log1p(adata):
    adata.X = adata.X.astype(np.float32)
    sc.pp.log1p(adata)


def log1p_in_place(adata):
    values = adata.X.data if sp.issparse(adata.X) else adata.X
    values[...] = np.log1p(values)


def double(adata):
    adata.X *= 2


def double_a_block_of_cells(adata):
    """A twentieth of the cells, in the middle."""
    cells = slice(400, 450)
    if not sp.issparse(adata.X):
        adata.X[cells] *= 2
        return
    x = adata.X.tocsr()
    x.data[x.indptr[400] : x.indptr[450]] *= 2
    adata.X = x.asformat(adata.X.format)


def replace_by_others(adata):
    adata.X = adata.X[::-1].copy()


def drop_cells_from_x(adata):
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)


def delete(adata):
    del adata.X


def put_elsewhere(adata):
    """Values that are never read."""
    adata.X = sp.csr_matrix(adata.X)
    adata._X = adata.X.tocoo()


CHANGES_OF_COUNTS = [
    log1p,
    log1p_in_place,
    lambda adata: sc.pp.normalize_total(adata, target_sum=1e4),
    double,
    double_a_block_of_cells,
    replace_by_others,
    drop_cells_from_x,
    delete,
    put_elsewhere,
]
NAMES = [
    "log1p",
    "log1p in place",
    "normalize_total",
    "double",
    "a block of 5 %",
    "other counts",
    "no counts",
    "deleted",
    "another format",
]


@pytest.mark.parametrize("convert", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("change", CHANGES_OF_COUNTS, ids=NAMES)
def test_changed_counts_are_noticed(adata, refused, convert, change):
    adata.X = convert(adata.X)
    source = read(adata)
    source.check_unchanged(adata)
    change(adata)
    with refused(DataError, "counts", "keep them in a layer", "create the model again"):
        source.check_unchanged(adata)


def test_counts_changed_in_place_are_noticed_without_the_anndata(adata, refused):
    source = read(adata)
    source.check_unchanged()
    adata.X.data *= 2
    with refused(DataError, "counts were changed in place", "keep them in a layer"):
        source.check_unchanged()


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_each_array_is_compared(adata, refused, part):
    source = read(adata)
    getattr(source.counts, part)[1:-1] += 1
    with refused(DataError, "counts were changed in place"):
        source.check_unchanged()


def test_counts_changed_before_x_was_replaced_are_noticed(adata, refused):
    source, old, new = read(adata), adata.X, adata.X.copy()
    old.data *= 2
    adata.X = new
    with refused(DataError, "counts were changed in place"):
        source.check_unchanged(adata)


def test_a_changed_layer_is_named(adata, refused):
    adata.layers["counts"] = adata.X.copy()
    source = read(adata, layer="counts")
    adata.layers["counts"] = adata.X * 2
    with refused(DataError, "layers['counts'] no longer holds", "restore layers['counts']"):
        source.check_unchanged(adata)
    del adata.layers["counts"]
    with refused(DataError, "layers['counts'] no longer holds"):
        source.check_unchanged(adata)


def test_an_entry_where_there_was_none_is_noticed(adata, refused):
    source, dense = read(adata), adata.X.toarray()
    adata.X = dense + (dense == 0)
    with refused(DataError, "X no longer holds"):
        source.check_unchanged(adata)


# ---- changes of cells and columns -------------------------------------------------------


def test_another_number_of_cells_is_noticed(adata, refused):
    source = read(adata)
    adata._inplace_subset_obs(np.arange(900))
    with refused(DataError, "900 cells now, but had 1,000", "pass adata="):
        source.check_unchanged(adata)


def test_another_number_of_genes_is_noticed(adata, refused):
    source = read(adata)
    adata._inplace_subset_var(np.arange(20))
    with refused(DataError, "20 genes now, but had 30"):
        source.check_unchanged(adata)


@pytest.mark.parametrize("order", ["sorted", "shuffled", "two halves swapped"])
def test_reordered_cells_are_noticed(adata, refused, order):
    source = read(adata)
    orders = {
        "sorted": np.argsort(adata.obs["age"].to_numpy()),
        "shuffled": np.random.default_rng(0).permutation(N_CELLS),
        "two halves swapped": np.roll(np.arange(N_CELLS), 500),
    }
    adata._inplace_subset_obs(orders[order])
    fix = "when the model read them; create the model again, or pass adata= to read them again."
    with refused(DataError, "The cells were reordered or renamed (cell '", "' was '", fix):
        source.check_unchanged(adata)


def test_renamed_cells_are_noticed(adata, refused):
    source = read(adata)
    adata.obs_names = [f"{name}-1" for name in adata.obs_names]
    with refused(DataError, "reordered or renamed", "'cell0-1' was 'cell0'"):
        source.check_unchanged(adata)


@pytest.mark.parametrize("key", ["batch", "cell_type", "donor", "age", "depth"])
@pytest.mark.parametrize("change", ["reversed", "removed", "missing", "a block of 5 %"])
def test_a_changed_column_is_named(adata, refused, key, change):
    source = read(adata)
    if change == "reversed":
        adata.obs[key] = adata.obs[key].to_numpy()[::-1]
    elif change == "removed":
        del adata.obs[key]
    elif change == "missing":
        adata.obs[key] = np.nan
    else:
        cells = adata.obs_names[400:450]
        adata.obs.loc[cells, key] = "other" if key not in ("age", "depth") else 99.0
    with refused(DataError, f"obs['{key}'] was changed", "restore it", "pass adata="):
        source.check_unchanged(adata)


def test_words_in_a_column_of_numbers_are_noticed(adata, refused):
    source = read(adata)
    adata.obs["age"] = "old"
    with refused(DataError, "obs['age'] was changed"):
        source.check_unchanged(adata)


def test_a_renamed_category_of_a_single_cell_is_noticed(adata, refused):
    kinds = adata.obs["cell_type"].to_numpy(object)
    places = read(adata).origin.places
    kinds[np.setdiff1d(np.arange(N_CELLS), places)[0]] = "rare"
    adata.obs["cell_type"] = pd.Categorical(kinds)
    source = read(adata)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"rare": "odd"})
    with refused(DataError, "obs['cell_type'] was changed"):
        source.check_unchanged(adata)


def test_questions_of_a_model_notice_changes_and_read_anew_on_request(tiny, refused):
    adata = tiny(n_cells=100)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, progress=False)
    expected = model.get_latent_representation(seed=1)
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
    for question in (model.train, model.get_elbo, model.get_latent_representation):
        with refused(DataError, "obs['batch'] was changed"):
            question()
    np.testing.assert_array_equal(model.get_latent_representation(adata, seed=1), expected)
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
    model.get_elbo()


# ---- what changes nothing ----------------------------------------------------------------


def add_to_obs(adata):
    adata.obs["leiden"] = "0"
    adata.obs.insert(0, "first", 1)


def add_elsewhere(adata):
    adata.obsm["X_scVI"] = np.zeros((adata.n_obs, 3))
    adata.uns["note"] = 1
    adata.layers["log"] = adata.X.copy()
    adata.var["symbol"] = adata.var_names
    adata.raw = adata


def make_strings_categorical(adata):
    adata.strings_to_categoricals()
    assert isinstance(adata.obs["batch"].dtype, pd.CategoricalDtype)


def add_and_reorder_categories(adata):
    column = adata.obs["batch"].astype("category")
    adata.obs["batch"] = column.cat.set_categories(["b9", "b1", "b0"])


def declare_anew(adata):
    SCVI.setup_anndata(adata, batch_key="donor")


def assign(convert):
    def change(adata):
        adata.X = convert(adata.X)

    return change


HARMLESS = {
    "columns of obs": add_to_obs,
    "obsm, uns, layers, var, raw": add_elsewhere,
    "strings to categorical": make_strings_categorical,
    "more categories, in another order": add_and_reorder_categories,
    "other declarations": declare_anew,
    "numbers of another type": lambda adata: adata.obs.update(
        {"age": adata.obs["age"].astype(np.float32)}
    ),
    "a copy of obs": lambda adata: setattr(adata, "obs", adata.obs.copy()),
    "a copy of X": assign(lambda x: x.copy()),
    "X as int64": assign(lambda x: x.astype(np.int64)),
    "X as CSC": assign(sp.csc_matrix),
    "X as a CSR array": assign(sp.csr_array),
    "X dense": assign(lambda x: sp.csr_matrix(x).toarray()),
    "X unsorted": assign(lambda x: unsorted(sp.csr_matrix(x))),
    "X as unsorted CSC": assign(lambda x: unsorted(sp.csr_matrix(x).T.tocsr()).T),
    "X in parts": assign(lambda x: with_split_entries(sp.csr_matrix(x))),
    "X with zeros stored": assign(lambda x: x + 0),
}


@pytest.mark.parametrize("convert", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_harmless_changes_are_silent(adata, convert, change):
    adata.X = convert(adata.X)
    source = read(adata)
    change(adata)
    source.check_unchanged(adata)


def test_writing_the_data_is_silent(adata, tmp_path):
    source = read(adata)
    adata.write_h5ad(tmp_path / "data.h5ad")
    source.check_unchanged(adata)


def test_a_change_of_x_beside_the_layer_is_silent(adata):
    adata.layers["counts"] = adata.X.copy()
    source = read(adata, layer="counts")
    sc.pp.log1p(adata)
    source.check_unchanged(adata)


def test_a_view_is_read_once_and_may_become_a_copy(adata):
    view = adata[100:700]
    source = read(view)
    source.check_unchanged(view)
    with pytest.warns(ImplicitModificationWarning):
        view.obs["note"] = 1  # makes a copy of the view
    assert not view.is_view
    source.check_unchanged(view)


def test_genes_of_the_model_are_found_where_they_are_in_the_data(adata, refused):
    schema = Schema.from_anndata(adata[:, ["gene9", "gene4", "gene20"]], Declarations())
    adata = adata[adata[:, list(schema.genes)].X.sum(1).A1 > 0].copy()
    source = read_cells(adata, schema)
    source.check_unchanged(adata)
    adata.X = adata.X.toarray()
    source.check_unchanged(adata)
    adata.X[:, 20] += 1
    with refused(DataError, "X no longer holds"):
        source.check_unchanged(adata)


def test_a_model_without_an_anndata_checks_its_counts_alone(adata):
    source = read(adata)
    other = MemorySource(
        source.counts, source.library, source.batch, source.labels, source.categorical,
        source.continuous,
    )  # fmt: skip
    other.check_unchanged(adata[:10])


# ---- cost --------------------------------------------------------------------------------


class Counted(np.ndarray):
    """An array that counts how many of its values are read."""

    touched = 0

    def __getitem__(self, key):
        part = super().__getitem__(key)
        # a slice is a view, whose numbers count when they are used
        Counted.touched += 0 if isinstance(key, slice) else part.size
        return part if isinstance(key, slice) else np.asarray(part)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counted.touched += sum(x.size for x in inputs if isinstance(x, Counted))
        plain = [np.asarray(x) if isinstance(x, Counted) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        Counted.touched += sum(x.size for x in args if isinstance(x, Counted))
        plain = [np.asarray(x) if isinstance(x, Counted) else x for x in args]
        return function(*plain, **kwargs)

    def astype(self, *args, **kwargs):
        Counted.touched += self.size
        return np.asarray(self).astype(*args, **kwargs)

    def copy(self, *args, **kwargs):
        Counted.touched += self.size
        return np.asarray(self).copy(*args, **kwargs)


def count(matrix: sp.csr_matrix) -> None:
    for part in ("data", "indices", "indptr"):
        setattr(matrix, part, getattr(matrix, part).view(Counted))


@pytest.mark.parametrize("convert", ["shared", "copied", "CSC", "dense"])
def test_the_numbers_touched_do_not_grow_with_the_cells(tiny, convert):
    touched = {}
    for n_cells in (4_000, 40_000):
        adata = tiny(n_cells=n_cells)
        if convert == "dense":
            adata.X = adata.X.toarray()
        elif convert == "CSC":
            adata.X = adata.X.tocsc()
        elif convert == "copied":
            adata.X = adata.X.astype(np.float64)
        source = read(adata)
        if convert == "dense":
            adata._X = adata.X.view(Counted)
        else:
            count(adata.X)
        if convert == "shared":
            for part in ("data", "indices", "indptr"):
                setattr(source.counts, part, getattr(adata.X, part))
        else:
            count(source.counts)
        Counted.touched = 0
        source.check_unchanged(adata)
        touched[n_cells] = Counted.touched
        Counted.touched = 0
        assert float(source.counts.data.sum()) > 0
        assert Counted.touched == source.counts.nnz  # a pass is counted
    # a binary search takes a few steps more
    assert 0 < touched[40_000] <= 1.3 * touched[4_000]
    assert touched[40_000] < 60_000


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_places_are_inside_and_reach_both_ends(n):
    places = spread_places(n, 8)
    assert len(places) == min(n, 8)
    assert ((places >= 0) & (places < n)).all()
    if n:
        assert (places.min(), places.max()) == (0, n - 1)


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix])
def test_entries_are_those_of_the_matrix(adata, convert):
    rng = np.random.default_rng(0)
    cells, genes = rng.integers(0, N_CELLS, 500), rng.integers(0, 30, 500)
    expected = adata.X.toarray()[cells, genes]
    np.testing.assert_array_equal(read_entries(convert(adata.X), cells, genes), expected)
    empty = convert((N_CELLS, 30), dtype=np.float32)
    np.testing.assert_array_equal(read_entries(empty, cells, genes), 0)


def test_zeros_that_are_stored_count_as_zeros(adata):
    entries = EntryFingerprint.from_counts(adata.X, None)
    wide = adata.X.copy()
    wide.data[:5] = 0
    assert not entries.matches(wide)
    wide = sp.csr_matrix(adata.X.toarray() + 1)
    wide.data -= 1  # every entry is stored
    assert wide.nnz == N_CELLS * 30
    assert entries.matches(wide)


def test_labels_that_the_network_does_not_read_may_be_edited(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata, labels_key="cell_type")
    models = {d: SCVI(adata, n_hidden=8, dispersion=d) for d in ("gene", "gene-label")}
    for model in models.values():
        model.train(max_epochs=1, progress=False)
    adata.obs["cell_type"] = adata.obs["cell_type"].replace("NK", "natural killer")
    assert len(models["gene"].get_latent_representation()) == adata.n_obs
    with refused(DataError, "obs['cell_type'] was changed"):
        models["gene-label"].get_latent_representation()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1], [0.0, 1.0]),
        ([0, 1], ["0", "1"]),
        ([0.0, 1.0], [0, 1]),
        (["0", "1"], [0.0, 1.0]),
        ([False, True], ["False", "True"]),
    ],
    ids=str,
)
def test_another_type_of_the_same_categories_is_no_change(adata, before, after):
    adata.obs["batch"] = np.array(before)[np.arange(N_CELLS) % 2]
    source = read(adata)
    adata.obs["batch"] = np.array(after)[np.arange(N_CELLS) % 2]
    source.check_unchanged(adata)
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    source.check_unchanged(adata)
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
    with pytest.raises(DataError, match=r"obs\['batch'\] was changed"):
        source.check_unchanged(adata)


@pytest.mark.parametrize("key", ["batch", "cell_type", "depth", "donor", "age"])
def test_a_declared_column_that_comes_twice_is_refused(adata, refused, key):
    source = read(adata)
    adata.obs = pd.concat([adata.obs, adata.obs[[key]]], axis=1)
    with refused(DataError, f"obs has 2 columns named {key!r} (declared at set-up)"):
        source.check_unchanged(adata)


def test_no_column_is_read_whole(trained, tiny, monkeypatch):
    adata = tiny()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    SCVI.setup_anndata(adata, batch_key="batch")
    source = SCVI(adata)._own_source()

    def refuse(*_args, **_named):
        raise AssertionError("all cells were read")

    monkeypatch.setattr(pd.Series, "isna", refuse)
    source.check_unchanged(adata)
