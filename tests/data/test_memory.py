"""All matrix formats in memory give the same numbers."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import ImplicitModificationWarning

from vivace import SCVI
from vivace.errors import (
    DataError,
)

SMALL = {"n_hidden": 16, "n_latent": 3}


def shuffled_entries(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with the entries of each row in another order."""
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [
            start + rng.permutation(stop - start)
            for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True)
        ]
    )
    return sp.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)


def split_entries(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with every entry above one stored as two."""
    coo = x.tocoo()
    twice = coo.data > 1
    data = np.concatenate([coo.data - twice, np.ones(twice.sum())])
    rows = np.concatenate([coo.row, coo.row[twice]])
    order = np.argsort(rows, kind="stable")
    genes = np.concatenate([coo.col, coo.col[twice]])[order]
    indptr = np.searchsorted(rows[order], np.arange(x.shape[0] + 1))
    return sp.csr_matrix((data[order], genes, indptr), shape=x.shape)


def stored_zeros(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with every zero stored."""
    n, g = x.shape
    indices = np.tile(np.arange(g), n)
    return sp.csr_matrix((x.toarray().ravel(), indices, np.arange(n + 1) * g), shape=x.shape)


FORMS = {
    "CSC": lambda x: x.tocsc(),
    "dense float64": lambda x: x.toarray().astype(np.float64),
    "dense integers": lambda x: x.toarray().astype(np.int64),
    "CSR of integers": lambda x: x.astype(np.int32),
    "CSR float64": lambda x: x.astype(np.float64),
    "sparse array": sp.csr_array,
    "entries in any order": shuffled_entries,
    "integers in any order": lambda x: shuffled_entries(x).astype(np.int64),
    "entries in pieces": lambda x: split_entries(x).astype(np.float32),
    "integers in pieces": lambda x: split_entries(x).astype(np.int64),
    "zeros stored": stored_zeros,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_gives_the_same_numbers_as_csr(tiny, trained, form):
    adata = tiny()
    matrix = form(adata.X)
    adata.X = matrix
    np.testing.assert_allclose(
        trained.get_latent_representation(adata),
        trained.get_latent_representation(),
        rtol=1e-6,
        atol=1e-7,
    )
    np.testing.assert_allclose(
        trained.get_elbo(adata, return_mean=False, seed=0),
        trained.get_elbo(return_mean=False, seed=0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("form", ["CSC", "dense integers", "integers in pieces", "zeros stored"])
def test_every_form_trains_the_same_model(tiny, form):
    losses = []
    for convert in (FORMS[form], sp.csr_matrix):
        adata = tiny()
        adata.X = convert(adata.X)
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata, **SMALL)
        model.train(1, progress=False)
        losses.append(model.history[["elbo_train", "elbo_validation"]].to_numpy())
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_users_matrix_stays_as_it_is(tiny, form):
    adata = tiny()
    adata.X = form(adata.X)
    before = adata.X.copy()
    SCVI.setup_anndata(adata, batch_key="batch")
    SCVI(adata, **SMALL).train(1, progress=False)
    assert type(adata.X) is type(before)
    assert adata.X.dtype == before.dtype
    if sp.issparse(before):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(adata.X, part), getattr(before, part))
    else:
        np.testing.assert_array_equal(adata.X, before)


def test_backed_data_are_refused_with_the_way_to_read_them(tiny, use, refused, tmp_path):
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        with refused(DataError, "X is on disk (backed)", "adata = adata.to_memory()"):
            use(backed)
        use(backed.to_memory())
    finally:
        backed.file.close()


def test_a_view_gives_what_its_copy_gives(tiny, trained):
    adata = tiny()
    part = adata[10:40, ::-1]
    assert part.is_view
    np.testing.assert_array_equal(
        trained.get_latent_representation(part), trained.get_latent_representation(part.copy())
    )
    assert part.is_view


def test_a_model_of_a_view_equals_that_of_a_copy(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    view = adata[adata.obs["cell_type"] != "B", adata.var_names[::-1]]
    models = [SCVI(data, **SMALL) for data in (view, view.copy())]
    for model in models:
        model.train(1, progress=False)
    np.testing.assert_array_equal(*(model.get_latent_representation() for model in models))
    assert view.is_view
    assert adata.shape == (60, 30)


def test_setting_up_a_view_makes_it_a_copy_and_spares_the_whole(tiny):
    adata = tiny()
    view = adata[:20]
    with pytest.warns(ImplicitModificationWarning, match="view"):
        SCVI.setup_anndata(view, batch_key="batch")
    assert "vivace" not in adata.uns
    assert not view.is_view
    assert SCVI(view).schema.batches == ("b0", "b1")
