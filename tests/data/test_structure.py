"""Sparse matrices whose arrays do not fit their shape are refused before any kernel reads them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import SCVI, pl
from vivace.data import declare
from vivace.data.structure import check_structure
from vivace.errors import DataError

WRONG = {
    "a gene beyond the last": ("indices", 0, 30),
    "a gene far beyond": ("indices", -1, 10**6),
    "a gene below zero": ("indices", 5, -1),
    "a pointer too large": ("indptr", 1, 10**6),
    "a pointer that falls": ("indptr", 5, 0),
    "a first pointer above zero": ("indptr", 0, 1),
    "a last pointer too large": ("indptr", -1, 10**6),
}


def damaged(adata, what, place, value, form="csr"):
    adata = adata.copy()
    matrix = sp.csr_matrix(adata.X) if form == "csr" else sp.csc_matrix(adata.X)
    getattr(matrix, what)[place] = value
    adata.X = matrix
    return adata


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_set_up_refuses_it(tiny, refused, wrong, form):
    adata = damaged(tiny(60, 60), *wrong, form)
    if wrong == WRONG["a gene beyond the last"]:
        adata.X.indices[0] = 60
    with refused(DataError, "X is a damaged sparse matrix", "read it again from the raw data"):
        SCVI.setup_anndata(adata)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_questions_refuse_it_too(trained, tiny, refused, wrong, form):
    adata = damaged(tiny(), *wrong, form)
    if wrong == WRONG["a gene beyond the last"]:
        adata.X.indices[0] = 60
    for question in (trained.get_latent_representation, trained.get_elbo):
        with refused(DataError, "X is a damaged sparse matrix"):
            question(adata)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_set_up_checks_what_it_needs_to_look_at_some_cells(tiny, refused, monkeypatch, form):
    monkeypatch.setattr(declare, "_CHECKED_CELLS", 10)
    SCVI.setup_anndata(damaged(tiny(), "data", 0, 1, form))
    for wrong in ("a pointer too large", "a pointer that falls"):
        with refused(DataError, "damaged sparse matrix"):
            SCVI.setup_anndata(damaged(tiny(), *WRONG[wrong], form))
    if form == "csc":
        with refused(DataError, "an entry of cell number 1000000 among 60"):
            SCVI.setup_anndata(damaged(tiny(), *WRONG["a gene far beyond"], form))


def test_a_damaged_layer_is_named_by_every_door(trained, tiny, refused):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.layers["counts"].indices[0] = 1000
    message = "layers['counts'] is a damaged sparse matrix"
    table = trained.differential_expression(groupby="cell_type")
    table.loc[table.index[0], ["is_de_fdr_0.05", "lfc_mean"]] = True, 1.0
    with refused(DataError, message):
        SCVI.setup_anndata(adata, layer="counts")
    with refused(DataError, message):
        SCVI.prepare_query_anndata(adata, trained)
    with refused(DataError, message):
        pl.heatmap(table, adata, groupby="cell_type", layer="counts")


def test_matrices_that_fit_their_shape_pass():
    x = np.array([[0, 1, 2], [0, 0, 0]])
    for matrix in (x, sp.csr_matrix(x), sp.csc_matrix(x), sp.csr_matrix((0, 3)), None):
        check_structure(matrix, "X")
    spare = sp.csr_matrix(x)  # room behind the last entry, with anything in it
    spare.indices = np.append(spare.indices, [99]).astype(spare.indices.dtype)
    spare.data = np.append(spare.data, [7])
    check_structure(spare, "X")
    spare.data = spare.data[:-1]
    with pytest.raises(DataError, match="differ in length"):
        check_structure(spare, "X")


def test_masked_values_are_not_taken_for_counts(refused):
    x = np.ma.MaskedArray(np.ones((5, 4), np.float32), mask=np.eye(5, 4, dtype=bool))
    adata = AnnData(np.ones((5, 4), np.float32))
    adata.layers["counts"] = x
    if not isinstance(adata.layers["counts"], np.ma.MaskedArray):
        pytest.fail("AnnData no longer keeps masked arrays; this test checks nothing")
    with refused(
        DataError, "layers['counts'] is a masked array with 4 masked values", ".filled(0)"
    ):
        SCVI.setup_anndata(adata, layer="counts")
    adata.layers["counts"] = adata.layers["counts"].filled(0)
    SCVI.setup_anndata(adata, layer="counts")
