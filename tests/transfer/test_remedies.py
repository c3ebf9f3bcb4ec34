"""What a message about a query advises works, and odd AnnData get a message too."""

from __future__ import annotations

import re
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import SCVI
from vivace.errors import DataError

prepare = SCVI.prepare_query_anndata


def reference_of(genes: list[str]) -> SCVI:
    """A model that knows these genes; it need not be trained for its genes to be read."""
    adata = AnnData(np.ones((4, len(genes)), np.float32), var=pd.DataFrame(index=genes))
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=2, n_latent=2)


def query_of(genes: list[str]) -> AnnData:
    obs = pd.DataFrame(index=["c0", "c1"])
    return AnnData(np.ones((2, len(genes)), np.float32), obs=obs, var=pd.DataFrame(index=genes))


# ---- genes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_present", "n_genes"),
    [
        (1, 2),
        (10, 30),
        (20, 30),
        (1, 300),
    ],
)
def test_the_min_overlap_that_is_suggested_is_met_and_says_something(n_present, n_genes):
    genes = [f"g{i}" for i in range(n_genes)]
    adata = query_of(genes[:n_present])
    with pytest.raises(DataError, match="or pass min_overlap=") as caught:
        prepare(adata, reference_of(genes))
    suggested = float(str(caught.value).split("or pass min_overlap=")[1].split()[0])
    assert suggested > 0
    assert prepare(adata, reference_of(genes), min_overlap=suggested).present == n_present


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_many_genes_come_out_as_pandas_has_them(form, dtype):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (20, 40)).astype(dtype)
    ids = [f"gene{i}" for i in rng.integers(0, 30, 40)]
    genes = [f"gene{i}" for i in rng.permutation(25)]
    var = pd.DataFrame({"ids": ids}, index=[f"x{i}" for i in range(40)])
    adata = AnnData(form(counts), var=var)
    adata.layers["thrice"] = form(counts * 3)
    report = prepare(adata, reference_of(genes), gene_key="ids", min_overlap=0)
    expected = pd.DataFrame(counts.T).groupby(ids).sum().reindex(genes, fill_value=0).T
    np.testing.assert_array_equal(adata.to_df(), expected)
    np.testing.assert_array_equal(adata.to_df("thrice"), expected * 3)
    assert adata.X.dtype == adata.layers["thrice"].dtype == dtype
    assert report.present == len(set(ids) & set(genes))
    assert report.missing == tuple(g for g in genes if g not in ids)
    assert report.duplicated == tuple(g for g in genes if ids.count(g) > 1)
    of_reference = counts[:, np.isin(ids, genes)].sum()
    assert report.share_of_counts == pytest.approx(of_reference / counts.sum())


def test_a_query_without_cells_is_aligned():
    adata = query_of(["B", "A"])[:0].copy()
    report = prepare(adata, reference_of(["A", "B"]))
    assert adata.shape == (0, 2)
    assert adata.var_names.tolist() == ["A", "B"]
    assert report.share_of_counts == 0.0


def test_a_prepared_query_trains_as_one_with_zeros_written_out(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    reference = SCVI(adata, n_hidden=8, n_latent=3, encode_covariates=True)
    reference.train(max_epochs=1, progress=False)
    full = tiny(seed=3)
    full.obs["batch"] = "new"
    counts = full.X.toarray()
    counts[:, [4, 11]] = 0
    full.X = sp.csr_matrix(counts)
    part = full[:, [i for i in range(29, -1, -1) if i not in (4, 11)]].copy()
    assert prepare(part, reference).missing == ("gene4", "gene11")
    found = []
    for query in (full, part):
        model = SCVI.load_query_data(query, reference)
        model.train(max_epochs=1, seed=0, progress=False)
        found.append(model.get_latent_representation())
    np.testing.assert_array_equal(*found)


def test_a_column_of_var_whose_name_is_a_number_does_no_harm(refused):
    adata = query_of(["x", "y"])
    adata.var[0] = ["A", "B"]
    with refused(DataError, "none of the reference's 2 genes"):
        prepare(adata, reference_of(["A", "B"]))


def test_columns_of_var_with_one_name_do_no_harm(refused):
    adata = query_of(["x", "y"])
    adata.var = pd.DataFrame([["p", "q"]] * 2, columns=["id", "id"], index=["x", "y"])
    with refused(DataError, "none of the reference's 2 genes"):
        prepare(adata, reference_of(["A", "B"]))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix], ids=["dense", "CSR"])
def test_a_query_on_disk_is_to_be_read_first(tmp_path, refused, form):
    written = query_of(["A", "B"])
    written.X = form(written.X)
    written.write_h5ad(tmp_path / "query.h5ad")
    adata = anndata.read_h5ad(tmp_path / "query.h5ad", backed="r")
    with refused(DataError, "on disk", "to_memory()"):
        prepare(adata, reference_of(["A", "B"]))


# ---- categories --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "given"),
    [
        ([1, 2], ["1", "2"]),
        (["1", "2"], [1, 2]),
        ([1, 2], [1.0, 2.0]),
        ([1.0, 2.0], [1, 2]),
        ([1.5, 2.5], ["1.5", "2.5"]),
        ([1, 2], ["01", "02"]),
        ([0, 1], [False, True]),
        (["False", "True"], [False, True]),
        ([False, True], ["False", "True"]),
        (["0", "1"], [False, True]),
        (["1", "2"], [1.0, 2.0]),
    ],
    ids=str,
)
def test_the_type_that_is_advised_makes_the_batches_those_of_the_reference(tiny, known, given):
    """Columns that had a missing value once, and were read from text, differ so."""
    adata = tiny()
    adata.obs["batch"] = np.resize(np.array(known), 60)
    SCVI.setup_anndata(adata, batch_key="batch")
    reference = SCVI(adata, n_hidden=8, n_latent=3, encode_covariates=True)
    reference.train(max_steps=1, progress=False)
    query = tiny(seed=2)
    query.obs["batch"] = np.resize(np.array(given), 60)
    with pytest.raises(DataError, match="which may be the") as caught:
        SCVI.load_query_data(query, reference)
    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    for advised in re.findall(r"\.astype\((\w+)\)", str(caught.value)):
        query.obs["batch"] = query.obs["batch"].astype(kinds[advised])
    if ".eq('True')" in str(caught.value):
        query.obs["batch"] = query.obs["batch"].eq("True")
    model = SCVI.load_query_data(query, reference)
    assert model.schema.batches == tuple(known)
    np.testing.assert_array_equal(model._own_source().batch, np.arange(60) % 2)


def with_dispersions_of_labels(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    reference = SCVI(adata, n_hidden=8, n_latent=3, preset="mapping", dispersion="gene-label")
    reference.train(max_steps=1, progress=False)
    return reference


def test_the_label_that_is_advised_is_taken(tiny):
    reference = with_dispersions_of_labels(tiny)
    query = tiny(seed=2)
    query.obs["batch"] = "new"
    del query.obs["cell_type"]
    with pytest.raises(DataError, match=r"query\.obs\['cell_type'\] = 'Unknown'"):
        SCVI.load_query_data(query, reference)
    query.obs["cell_type"] = "Unknown"
    model = SCVI.load_query_data(query, reference)
    model.train(max_steps=2, progress=False)
    assert np.isfinite(model.get_elbo(seed=0))


def test_an_encoder_that_sees_is_not_called_blind_because_of_a_label(tiny):
    """Nor is the preset advised that the reference was made with."""
    reference = with_dispersions_of_labels(tiny)
    query = tiny(seed=2)
    query.obs["cell_type"] = "Unknown"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SCVI.load_query_data(query, reference)
    assert model.schema.labels[3:] == ("Unknown",)
    assert not any("does not see batch" in str(w.message) for w in caught)
