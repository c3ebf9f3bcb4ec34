"""Aligning the genes of a query with a reference, and the report about it."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import SCVI, LinearSCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    ModelFileError,
    OptionError,
)
from vivace.transfer.genes import GeneReport, align_genes

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = {
    "dense": np.asarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
}


def data(genes, rows=((1, 2, 3), (4, 5, 6)), form=sp.csr_matrix, dtype=np.float32) -> AnnData:
    """A few cells with explicit counts."""
    counts = np.array([row[: len(genes)] for row in rows], dtype)
    var = pd.DataFrame(index=pd.Index(list(genes), dtype=object))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(rows))])
    with pytest.MonkeyPatch.context() as patch:  # anndata warns of names that come twice
        patch.setattr(AnnData, "_check_uniqueness", lambda self: None)
        return AnnData(form(counts), obs=obs, var=var)


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def reference(genes, layer=None) -> SCVI:
    """An untrained model with these genes."""
    adata = data(genes, np.ones((4, len(genes))))
    if layer is not None:
        adata.layers[layer] = adata.X.copy()
    SCVI.setup_anndata(adata, layer=layer)
    return SCVI(adata, n_hidden=8, n_latent=3)


def unchanged(before: AnnData, after: AnnData) -> None:
    """Check that nothing in an AnnData has changed."""
    np.testing.assert_array_equal(dense(after.X), dense(before.X))
    assert type(after.X) is type(before.X)
    assert after.X.dtype == before.X.dtype
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert dict(after.uns) == dict(before.uns)
    assert set(after.layers) == set(before.layers)
    for key in before.layers:
        np.testing.assert_array_equal(dense(after.layers[key]), dense(before.layers[key]))
    for part in ("obsm", "varm", "obsp", "varp"):
        assert set(getattr(after, part)) == set(getattr(before, part))


# ---- counts ------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("dtype", "wider"), [(np.uint8, np.int64), (np.int16, np.int16)])
def test_sums_that_the_type_of_the_counts_cannot_hold_are_kept(form, dtype, wider):
    adata = data("aab", ((200, 200, 1), (5, 0, 255)), form, dtype)
    result, _ = align_genes(adata, ("a", "b"), None, 0.8, None)
    np.testing.assert_array_equal(dense(result.X), [[400, 1], [5, 255]])
    assert result.X.dtype == wider


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("form", FORMS)
def test_genes_come_in_the_order_of_the_reference_padded_with_zeros(form, dtype):
    query = data(["C", "X", "A"], form=FORMS[form], dtype=dtype)
    new, _ = align_genes(query, ("A", "B", "C", "D"), min_overlap=0.5)
    assert list(new.var_names) == ["A", "B", "C", "D"]
    np.testing.assert_array_equal(dense(new.X), [[3, 0, 1, 0], [6, 0, 4, 0]])
    assert new.X.dtype == dtype
    assert sp.issparse(new.X) == (form != "dense")


@pytest.mark.parametrize("form", FORMS)
def test_counts_of_genes_with_one_name_are_added_up_in_every_matrix(form):
    query = data(["A", "B", "A"], form=FORMS[form])
    query.layers["twice"] = FORMS[form](2 * dense(query.X))
    new, report = align_genes(query, ("B", "A"))
    np.testing.assert_array_equal(dense(new.X), [[2, 4], [5, 10]])
    np.testing.assert_array_equal(dense(new.layers["twice"]), [[4, 8], [10, 20]])
    assert report.duplicated == ("A",)


def test_large_counts_are_added_up_exactly():
    query = data(["A", "A"], [(2**24, 1), (2**40, 3)], dtype=np.int64)
    new, _ = align_genes(query, ("A",))
    np.testing.assert_array_equal(dense(new.X), [[2**24 + 1], [2**40 + 3]])


def test_data_with_a_layer_only_are_aligned():
    query = AnnData(
        obs=pd.DataFrame(index=["c0", "c1"]),
        var=pd.DataFrame(index=["B", "A"]),
        layers={"counts": np.array([[1, 2], [3, 4]])},
    )
    new, report = align_genes(query, ("A", "B"), layer="counts")
    assert new.X is None
    np.testing.assert_array_equal(new.layers["counts"], [[2, 1], [4, 3]])
    assert report.share_of_counts == 1.0


def test_what_is_aligned_can_be_asked_about(tiny, trained):
    query = tiny(seed=3)
    expected = trained.get_latent_representation(query)
    shuffled = query[:, np.random.default_rng(0).permutation(30)].copy()
    SCVI.prepare_query_anndata(shuffled, trained)
    np.testing.assert_array_equal(trained.get_latent_representation(shuffled), expected)
    fewer = query[:, :25].copy()
    SCVI.prepare_query_anndata(fewer, trained)
    query.X = query.X.multiply(np.arange(30) < 25).tocsr()
    np.testing.assert_array_equal(
        trained.get_latent_representation(fewer), trained.get_latent_representation(query)
    )


# ---- names -------------------------------------------------------------------

GENE1, GENE2, GENE3 = "ENSG00000000001", "ENSG00000000002", "ENSMUSG00000000003"


@pytest.mark.parametrize(
    ("genes", "names", "result"),
    [
        ((f"{GENE1}.3", GENE2), (GENE1, f"{GENE2}.12"), (0, 1)),
        ((f"{GENE1}.3", f"{GENE2}.1"), (f"{GENE1}.4", f"{GENE2}.2"), (0, 1)),
        ((GENE1, GENE3), (f"{GENE3}.7", GENE1), (1, 0)),
        (("CD4.1", "CD8.1"), ("CD4.1", "CD8"), (0, None)),  # no version of an identifier
        (("RP11-34.5", GENE1), ("RP11-34", GENE1), (None, 1)),
        ((f"{GENE1}.3", f"{GENE1}.3_PAR_Y"), (f"{GENE1}.9", f"{GENE1}.9_PAR_Y"), (0, None)),
        ((f"{GENE1}.3_PAR_Y", f"{GENE1}.3"), (f"{GENE1}.3", f"{GENE1}.3_PAR_Y"), (1, 0)),
        # ambiguous
        ((f"{GENE1}.1", f"{GENE1}.2", GENE2), (f"{GENE1}.2", GENE1, GENE2), (1, None, 2)),
        ((GENE1, f"{GENE1}.2"), (f"{GENE1}.2", f"{GENE1}.3", GENE1), (1, None, 0)),
        (("a", "B"), ("A", "B"), (None, 1)),  # case matters
    ],
)
def test_a_name_is_matched_as_it_is_or_without_its_version(genes, names, result):
    """``result``: which gene of the reference each gene of the query is."""
    new, report = align_genes(data(names), genes, min_overlap=0.1)
    expected = np.zeros((2, len(genes)))
    for at, place in enumerate(result):
        if place is not None:
            expected[:, place] += [1 + at, 4 + at]
    np.testing.assert_array_equal(dense(new.X), expected)
    assert report.present == len({place for place in result if place is not None})


def test_identifiers_that_several_genes_share_are_reported():
    _, report = align_genes(data([GENE2]), (f"{GENE1}.1", f"{GENE1}.2", GENE2), min_overlap=0.1)
    assert report.ambiguous == (GENE1,)
    assert report.missing == (f"{GENE1}.1", f"{GENE1}.2")


def test_versions_of_one_gene_of_the_query_are_added_up():
    new, report = align_genes(data([f"{GENE1}.1", GENE2, GENE1]), (f"{GENE1}.5", GENE2))
    np.testing.assert_array_equal(dense(new.X), [[4, 2], [10, 5]])
    assert report.duplicated == (f"{GENE1}.5",)


def test_genes_are_matched_by_a_column_of_var():
    query = data(["a", "b", "c"])
    query.var["ensembl"] = pd.Categorical([f"{GENE2}.4", None, GENE1])
    new, report = align_genes(query, (GENE1, GENE2), gene_key="ensembl")
    np.testing.assert_array_equal(dense(new.X), [[3, 1], [6, 4]])
    assert report.share_of_counts == pytest.approx((1 + 3 + 4 + 6) / 21)
    assert list(new.var["ensembl"]) == [GENE1, f"{GENE2}.4"]


# ---- the report --------------------------------------------------------------


def test_every_number_of_the_report_is_that_of_a_case_by_hand():
    genes = ("A", "B", f"{GENE1}.1", f"{GENE1}.2", "C")
    query = data(["B", "other", "A", "B"], [(1, 10, 2, 3), (4, 20, 5, 6)])
    _, report = align_genes(query, genes, min_overlap=0.4)
    assert report == GeneReport(
        n_genes=5,
        present=2,
        missing=(f"{GENE1}.1", f"{GENE1}.2", "C"),
        duplicated=("B",),
        ambiguous=(GENE1,),
        share_of_counts=(1 + 2 + 3 + 4 + 5 + 6) / 51,
    )
    assert report.share == 0.4
    assert repr(report) == (
        "2 of 5 genes of the reference are in the query, with 41.2 % of its counts; missing: "
        f"'{GENE1}.1', '{GENE1}.2', 'C'; counts added up: 'B'; ambiguous: '{GENE1}'"
    )


def test_the_share_of_counts_is_that_of_the_layer_of_the_reference():
    query = data(["A", "B"])
    query.layers["counts"] = np.array([[3, 1], [0, 4]])
    new = SCVI.prepare_query_anndata(
        query, reference(["A"], "counts"), inplace=False, min_overlap=1
    )
    assert new.uns["query_genes"]["share_of_counts"] == 3 / 8


def test_long_lists_of_genes_are_cut_short_in_words():
    genes = tuple(f"g{i}" for i in range(10))
    _, report = align_genes(data(["g0", "g1"]), genes, min_overlap=0)
    assert repr(report).endswith("missing: 'g2', 'g3', 'g4', 'g5', 'g6', ...")
    assert len(report.missing) == 8


def test_the_report_outlives_a_file(tmp_path):
    query = data(["C", "A", "A"])
    report = SCVI.prepare_query_anndata(query, reference(["A", "B", "C"]), min_overlap=0.5)
    query.write_h5ad(tmp_path / "query.h5ad")
    result = anndata.read_h5ad(tmp_path / "query.h5ad").uns["query_genes"]
    assert result["n_genes"] == 3
    assert result["present"] == 2
    assert list(result["missing"]) == ["B"]
    assert list(result["duplicated"]) == ["A"]
    assert list(result["ambiguous"]) == []
    assert result["share_of_counts"] == report.share_of_counts == 1.0


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        [1, 2, 3],
        ["x", "y", "z"],
        [0.5, 1.5, 2.5],
        pd.Categorical(["u", "v", "u"]),
    ],
    ids=["bool", "int", "str", "float", "category"],
)
def test_a_query_with_padded_genes_can_be_written(tmp_path, values):
    query = data(["C", "A", "D"])
    query.var["column"] = values
    SCVI.prepare_query_anndata(query, reference(["A", "B", "C", "D"]), min_overlap=0.5)
    query.write_h5ad(tmp_path / "query.h5ad")
    again = anndata.read_h5ad(tmp_path / "query.h5ad")
    assert pd.isna(again.var["column"]["B"])
    assert again.var["column"]["A"] == values[1]


# ---- what else an AnnData holds ------------------------------------------------


def full_query() -> AnnData:
    query = data(["C", "A", "A", "Z"], [(1, 2, 3, 9), (4, 5, 6, 9)])
    query.obs["batch"] = ["x", "y"]
    query.var["symbol"] = ["c", "first", "second", "z"]
    query.var["mean"] = [1.0, 2.0, 3.0, 4.0]
    query.uns["colours"] = {"x": "red"}
    query.obsm["X_pca"] = np.arange(6.0).reshape(2, 3)
    query.obsp["near"] = sp.csr_matrix(np.eye(2))
    query.varm["loadings"] = np.ones((4, 2))
    query.layers["raw"] = query.X.copy()
    query.raw = data(["C", "A", "A-1", "Z"], [(1, 2, 3, 9), (4, 5, 6, 9)])
    return query


@pytest.mark.parametrize("inplace", [True, False])
def test_what_is_about_cells_stays_and_what_is_about_genes_follows_them(inplace):
    query, before = full_query(), full_query()
    new = SCVI.prepare_query_anndata(
        query, reference(["A", "B", "C"]), inplace=inplace, min_overlap=0.5
    )
    new = query if inplace else new
    assert new.shape == (2, 3)
    pd.testing.assert_frame_equal(new.obs, before.obs)
    np.testing.assert_array_equal(new.obsm["X_pca"], before.obsm["X_pca"])
    np.testing.assert_array_equal(dense(new.obsp["near"]), np.eye(2))
    assert new.uns["colours"] == {"x": "red"}
    assert list(new.raw.var_names) == ["C", "A", "A-1", "Z"]
    np.testing.assert_array_equal(dense(new.raw.X), dense(before.X))
    assert list(new.var["symbol"].fillna("none")) == ["first", "none", "c"]
    np.testing.assert_array_equal(new.var["mean"], [2.0, np.nan, 1.0])
    assert list(new.varm) == []
    assert set(new.layers) == {"raw"}


def test_not_in_place_the_query_is_left_as_it_is():
    query = full_query()
    new = SCVI.prepare_query_anndata(query, reference(["A", "C"]), inplace=False)
    new.X.data[:] = 77
    new.obs["batch"] = "z"
    new.obsm["X_pca"][:] = 77
    new.uns["colours"]["x"] = "blue"
    before = full_query()
    unchanged(before, query)
    np.testing.assert_array_equal(query.obsm["X_pca"], before.obsm["X_pca"])


def test_in_place_the_report_is_given_and_kept():
    query = full_query()
    report = SCVI.prepare_query_anndata(query, reference(["A", "C"]))
    assert report == GeneReport(2, 2, (), ("A",), (), 21 / 39)
    assert query.uns["query_genes"]["present"] == 2


def test_a_view_is_brought_into_form_and_its_parent_left_alone():
    parent, before = full_query(), full_query()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnnData, "_check_uniqueness", lambda self: None)
        view = parent[:1]
        SCVI.prepare_query_anndata(view, reference(["A", "C"]))
    np.testing.assert_array_equal(dense(view.X), [[5, 1]])
    assert not view.is_view
    unchanged(before, parent)


def test_a_query_in_form_stays_as_it_is_when_it_is_prepared_again():
    query = data(["C", "A"])
    model = reference(["A", "B", "C"])
    SCVI.prepare_query_anndata(query, model, min_overlap=0.5)
    counts = dense(query.X).copy()
    report = SCVI.prepare_query_anndata(query, model)
    np.testing.assert_array_equal(dense(query.X), counts)
    assert report.present == 3


# ---- where the genes of the reference are read -------------------------------


@pytest.mark.parametrize("kind", [Path, str])
def test_the_names_of_the_genes_are_read_from_a_folder(saved, kind):
    names = SCVI.prepare_query_anndata(None, kind(saved), return_reference_var_names=True)
    assert list(names) == [f"gene{i}" for i in range(30)]


def test_the_names_of_the_genes_are_read_from_a_model_of_scvi_tools():
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    names = SCVI.prepare_query_anndata(adata, GOLDEN / "linear", return_reference_var_names=True)
    assert isinstance(names, pd.Index)
    assert list(names) == list(adata.var_names)


def test_a_query_is_brought_into_the_form_of_a_model_of_scvi_tools():
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    expected = dense(adata.X).copy()
    expected[:, 140:] = 0
    query = adata[:, :140][:, ::-1].copy()
    report = LinearSCVI.prepare_query_anndata(query, GOLDEN / "linear")
    assert (report.n_genes, report.present) == (150, 140)
    np.testing.assert_array_equal(dense(query.X), expected)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_the_layer_of_the_reference_is_read_from_its_folder(tmp_path, layer):
    reference(["A"], layer).save(tmp_path / "model")
    query = data(["A", "B"])
    query.layers["counts"] = np.array([[3, 1], [0, 4]])
    SCVI.prepare_query_anndata(query, tmp_path / "model")
    share = 5 / 12 if layer is None else 3 / 8
    assert query.uns["query_genes"]["share_of_counts"] == share


# ---- refusals ----------------------------------------------------------------


def test_too_few_genes_are_refused_and_the_query_left_as_it_is(refused):
    query = full_query()
    model = reference(["A", "B", "C", "D"])
    with refused(
        DataError,
        "2 of the reference's 4 genes in var_names",
        "min_overlap=0.8",
        "'B', 'D'",
        "min_overlap=0.5 or lower",
    ):
        SCVI.prepare_query_anndata(query, model)
    unchanged(full_query(), query)


@pytest.mark.parametrize(("share", "taken"), [(0.0, True), (0.5, True), (0.51, False), (1, False)])
def test_the_least_overlap_is_a_share_that_is_enough(refused, share, taken):
    model = reference(["A", "B", "C", "D"])
    query = data(["A", "C", "Z"])
    if taken:
        assert SCVI.prepare_query_anndata(query, model, min_overlap=share).present == 2
        return
    with refused(DataError, "2 of the reference's 4 genes"):
        SCVI.prepare_query_anndata(query, model, min_overlap=share)
    assert list(query.var_names) == ["A", "C", "Z"]


def test_the_share_that_is_suggested_is_taken():
    """Seven of nine is 0.777..., which two digits round up."""
    genes = [f"g{i}" for i in range(9)]
    query = data(genes[:7], [range(1, 8), range(1, 8)])
    with pytest.raises(DataError, match="pass min_overlap=") as caught:
        SCVI.prepare_query_anndata(query, reference(genes))
    share = float(str(caught.value).split("pass min_overlap=")[1].split(" ")[0])
    assert SCVI.prepare_query_anndata(query, reference(genes), min_overlap=share).present == 7


def test_no_shared_gene_is_refused_whatever_the_least_overlap(refused):
    query = data(["X", "Y"])
    with refused(DataError, "none of the reference's 2 genes", "'X', 'Y'", "'A', 'B'", "gene_key"):
        SCVI.prepare_query_anndata(query, reference(["A", "B"]), min_overlap=0)
    unchanged(data(["X", "Y"]), query)


def test_the_column_with_the_identifiers_of_the_reference_is_suggested(refused):
    query = data(["a", "b", "c"])
    query.var["wrong"] = ["p", "q", GENE1]
    query.var["gene_ids"] = [f"{GENE1}.2", GENE2, GENE3]
    query.var["length"] = [1, 2, 3]
    model = reference([GENE1, GENE2, GENE3])
    with refused(DataError, "none of", "3 in var['gene_ids']", "pass gene_key='gene_ids'"):
        SCVI.prepare_query_anndata(query, model)
    assert SCVI.prepare_query_anndata(query, model, gene_key="gene_ids").present == 3


def test_var_names_are_suggested_where_they_have_the_identifiers(refused):
    query = data([GENE1, GENE2])
    query.var["symbol"] = ["a", "b"]
    with refused(DataError, "none of", "var['symbol']", "2 in var_names", "leave gene_key out"):
        SCVI.prepare_query_anndata(query, reference([GENE1, GENE2]), gene_key="symbol")


def test_a_column_that_var_lacks_is_named_with_a_near_match(refused):
    query = data(["A"])
    query.var["gene_ids"] = ["A"]
    with refused(MissingColumnError, "'gene_id'", "gene_key", "did you mean 'gene_ids'?"):
        SCVI.prepare_query_anndata(query, reference(["A"]), gene_key="gene_id")


def test_a_layer_that_the_query_lacks_is_named(refused):
    query = data(["A", "B"])
    with refused(MissingColumnError, "layers", "'counts'"):
        SCVI.prepare_query_anndata(query, reference(["A", "B"], "counts"))
    unchanged(data(["A", "B"]), query)


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        ({"adata": "query.h5ad"}, ArgumentTypeError, ("takes an AnnData", "str")),
        ({"adata": None}, ArgumentTypeError, ("takes an AnnData", "NoneType")),
        ({"reference_model": 3}, ArgumentTypeError, ("reference_model", "int")),
        ({"reference_model": None}, ArgumentTypeError, ("reference_model", "NoneType")),
        ({"gene_key": 3}, ArgumentTypeError, ("gene_key", "3")),
        ({"min_overlap": "all"}, ArgumentTypeError, ("min_overlap", "'all'")),
        ({"min_overlap": True}, ArgumentTypeError, ("min_overlap", "True")),
        ({"min_overlap": None}, ArgumentTypeError, ("min_overlap", "None")),
        ({"min_overlap": 80}, OptionError, ("min_overlap", "80")),
        ({"min_overlap": -0.1}, OptionError, ("min_overlap", "-0.1")),
        ({"min_overlap": float("nan")}, OptionError, ("min_overlap", "nan")),
        ({"inplace": "no"}, ArgumentTypeError, ("inplace", "'no'")),
        (
            {"return_reference_var_names": 1},
            ArgumentTypeError,
            ("return_reference_var_names", "1"),
        ),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_refused(refused, arguments, kind, parts):
    given = {"adata": data(["A"]), "reference_model": reference(["A"])} | arguments
    with refused(kind, *parts):
        SCVI.prepare_query_anndata(**given)


def test_an_unknown_argument_is_named_with_a_near_match(refused):
    with refused(ArgumentTypeError, "'min_overlaps'", "did you mean 'min_overlap'?"):
        SCVI.prepare_query_anndata(data(["A"]), reference(["A"]), min_overlaps=0.5)


def test_a_folder_that_is_no_model_is_refused(tmp_path, refused):
    with refused(ModelFileError, "no model folder at"):
        SCVI.prepare_query_anndata(data(["A"]), tmp_path / "nothing")
    (tmp_path / "model").mkdir()
    with refused(ModelFileError, "holds no model.json"):
        SCVI.prepare_query_anndata(data(["A"]), str(tmp_path / "model"))


def test_a_folder_with_a_damaged_schema_is_refused(tmp_path, refused):
    reference(["A"]).save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    file.write_text(file.read_text().replace('"genes"', '"gones"'))
    with refused(ModelFileError, "model.json", "is damaged"):
        SCVI.prepare_query_anndata(data(["A"]), tmp_path / "model")


def test_a_gene_key_of_two_columns_is_refused(refused):
    adata = data("abc")
    adata.var = pd.DataFrame([["a", "x"], ["b", "y"], ["c", "z"]], list("abc"), ["id", "id"])
    with refused(DataError, "var has 2 columns named 'id' (gene_key); drop or rename one."):
        SCVI.prepare_query_anndata(adata, reference("abc"), gene_key="id")
    adata.var = adata.var.loc[:, ~adata.var.columns.duplicated()]
    assert SCVI.prepare_query_anndata(adata, reference("abc"), gene_key="id").present == 3


def test_a_gene_key_of_lists_names_no_gene(refused):
    adata = data("abc")
    adata.var["id"] = [["a"], ["b", "c"], None]
    with refused(DataError, "3 genes"):
        SCVI.prepare_query_anndata(adata, reference("abc"), gene_key="id")
