"""The advice in an error message works: after following it, the query can be mapped."""

from __future__ import annotations

import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mapping_cases import trained_on, with_lane

from vivace import SCVI
from vivace.errors import DataError, MissingColumnError

prepare = SCVI.prepare_query_anndata
STATEMENT = re.compile(r"with (query\.obs\[.+?\] = .+?)(?:, else|; |\.$)")


def follow(said: list[str], query: AnnData) -> None:
    """Run the line of code that a message gives."""
    exec(STATEMENT.search(said[0])[1], {"query": query})


# ---- columns -----------------------------------------------------------------


def test_the_batch_that_is_advised_is_taken(reference, query, refused_whole):
    query.obs = query.obs.rename(columns={"batch": "batches"})
    with refused_whole(query, MissingColumnError, "no column 'batch'", "'batches'?") as said:
        SCVI.load_query_data(query, reference("seeing"))
    follow(said, query)
    model = SCVI.load_query_data(query, reference("seeing"))
    assert model.schema.batches == ("b0", "b1", "query")


def test_the_label_that_is_advised_is_taken(reference, query, refused_whole):
    del query.obs["cell_type"]
    with refused_whole(query, MissingColumnError, "no column 'cell_type'", "dispersions") as said:
        SCVI.load_query_data(query, reference("gene-label"))
    follow(said, query)
    model = SCVI.load_query_data(query, reference("gene-label"))
    assert model.schema.labels == ("B", "NK", "T", "Unknown")
    model.train(max_steps=2, progress=False)
    assert np.isfinite(model.get_elbo(seed=0))


@pytest.mark.parametrize("column", ["batch", "donor"])
@pytest.mark.parametrize(
    ("known", "given", "new"),
    [
        ([1, 2], ["01", "02", "03"], (3,)),
        ([1.0, 2.0], ["01", "02", "03"], (3.0,)),
        ([1, 2], ["1.00", "2.00"], ()),
        ([1.5, 2.5], ["1.50", "2.50"], ()),
        ([0, 1], [False, True], ()),
        ([0.0, 1.0], [False, True], ()),
        (["0", "1"], [False, True], ()),
        (["0.0", "1.0"], [False, True], ()),
        ([False, True], [0, 1], ()),
        ([False, True], [0.0, 1.0], ()),
        ([False, True], ["0", "1"], ()),
    ],
    ids=str,
)
def test_the_type_that_is_advised_makes_categories_those_of_the_reference(
    tiny, refused_whole, column, known, given, new
):
    """Such columns arise from reading text with missing values."""
    adata, query = tiny(), tiny(seed=2)
    adata.obs[column] = np.repeat(np.array(known), 30)
    trained = trained_on(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    query.obs[column] = np.resize(np.array(given), 60)
    parts = (f"obs['{column}']", repr(given[0]), "may be the", repr(known[0]), "rename it")
    with refused_whole(query, DataError, *parts) as said:
        SCVI.load_query_data(query, trained)
    follow(said, query)
    schema = SCVI.load_query_data(query, trained).schema
    result = schema.batches if column == "batch" else schema.categories[0]
    assert result == (*known, *new)
    assert [type(value) for value in result] == [type(known[0])] * len(result)
    places = np.arange(60) % len(given)
    assert [result[place] for place in places] == query.obs[column].tolist()


# ---- genes -------------------------------------------------------------------


def get_reference(genes: list[str]) -> SCVI:
    """A model that knows these genes; it need not be trained for its genes to be read."""
    adata = AnnData(np.ones((4, len(genes)), np.float32), var=pd.DataFrame(index=genes))
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=2, n_latent=2)


def test_the_gene_key_that_is_advised_makes_the_query_one_that_is_mapped(
    reference, query, refused_whole
):
    query.var["gene_ids"] = query.var_names
    query.var_names = list(query.var["symbol"])
    with refused_whole(query, DataError, "lacks 30 of", "prepare_query_anndata"):
        SCVI.load_query_data(query, reference("seeing"))
    with refused_whole(query, DataError, "30 in var['gene_ids']", "gene_key='gene_ids'"):
        prepare(query, reference("seeing"))
    prepare(query, reference("seeing"), gene_key="gene_ids")
    schema = SCVI.load_query_data(query, reference("seeing")).schema
    assert schema.batches == ("b0", "b1", "a8", "a9")


@pytest.mark.parametrize(("n_present", "n_genes"), [(1, 2), (10, 30), (20, 30), (1, 300)])
def test_the_min_overlap_that_is_suggested_is_met_and_says_something(n_present, n_genes):
    genes = [f"g{i}" for i in range(n_genes)]
    adata = AnnData(np.ones((2, n_present), np.float32), var=pd.DataFrame(index=genes[:n_present]))
    with pytest.raises(DataError, match="or pass min_overlap=") as caught:
        prepare(adata, get_reference(genes))
    suggested = float(str(caught.value).split("or pass min_overlap=")[1].split()[0])
    assert suggested > 0
    assert prepare(adata, get_reference(genes), min_overlap=suggested).present == n_present


def test_a_prepared_query_trains_as_one_with_zeros_written_out(reference, tiny):
    full = with_lane(tiny(seed=3))
    full.obs["batch"] = "new"
    counts = full.X.toarray()
    counts[:, [4, 11]] = 0
    full.X = sp.csr_matrix(counts)
    part = full[:, [i for i in range(29, -1, -1) if i not in (4, 11)]].copy()
    assert prepare(part, reference("seeing")).missing == ("gene4", "gene11")
    result = []
    for query in (full, part):
        model = SCVI.load_query_data(query, reference("seeing"))
        model.train(max_epochs=1, seed=0, progress=False)
        result.append(model.get_latent_representation())
    np.testing.assert_array_equal(*result)


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_many_prepared_genes_are_as_pandas_has_them(form, dtype):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (20, 40)).astype(dtype)
    ids = [f"gene{i}" for i in rng.integers(0, 30, 40)]
    genes = [f"gene{i}" for i in rng.permutation(25)]
    var = pd.DataFrame({"ids": ids}, index=[f"x{i}" for i in range(40)])
    adata = AnnData(form(counts), var=var)
    adata.layers["thrice"] = form(counts * 3)
    report = prepare(adata, get_reference(genes), gene_key="ids", min_overlap=0)
    expected = pd.DataFrame(counts.T).groupby(ids).sum().reindex(genes, fill_value=0).T
    np.testing.assert_array_equal(adata.to_df(), expected)
    np.testing.assert_array_equal(adata.to_df("thrice"), expected * 3)
    assert adata.X.dtype == adata.layers["thrice"].dtype == dtype
    assert report.present == len(set(ids) & set(genes))
    assert report.missing == tuple(g for g in genes if g not in ids)
    assert report.duplicated == tuple(g for g in genes if ids.count(g) > 1)
    matched = counts[:, np.isin(ids, genes)].sum()
    assert report.share_of_counts == pytest.approx(matched / counts.sum())


# ---- files -------------------------------------------------------------------


@pytest.mark.parametrize("form", [sp.csr_matrix.toarray, sp.csr_matrix], ids=["dense", "CSR"])
@pytest.mark.parametrize("ask", [SCVI.load_query_data, prepare], ids=["load", "prepare"])
def test_a_query_on_disk_is_taken_once_it_is_read(reference, query, refused, tmp_path, form, ask):
    query.X = form(query.X)
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = anndata.read_h5ad(tmp_path / "query.h5ad", backed="r")
    try:
        with refused(DataError, "X is on disk (backed)", "adata = adata.to_memory()"):
            ask(backed, reference("seeing"))
        ask(backed.to_memory(), reference("seeing"))
    finally:
        backed.file.close()
