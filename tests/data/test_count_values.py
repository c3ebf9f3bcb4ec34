"""Values that are not raw counts are refused, with the cell and the gene."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import SCVI
from vivace.data import declare
from vivace.errors import (
    DataError,
    OptionError,
)

SMALL = {"n_hidden": 16, "n_latent": 3}


def with_value(adata: AnnData, cell: int, gene: int, value: float) -> AnnData:
    x = adata.X.toarray()
    x[cell, gene] = value
    adata.X = sp.csr_matrix(x)
    return adata


def log1p_normalised(x: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(np.log1p(x.multiply(1e4 / x.sum(1))), dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (-3.0, ("negative value -3", "raw counts, not scaled data")),
        (np.nan, ("holds nan", "replace or drop")),
        (np.inf, ("holds inf", "replace or drop")),
        (-np.inf, ("holds -inf", "replace or drop")),
        (2.5, ("holds 2.5", "not an integer", "raw counts", "allow_non_integer=True")),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_cell_and_gene(tiny, use, refused, value, parts):
    with refused(DataError, "X", "'cell31'", "'gene12'", *parts):
        use(with_value(tiny(), 31, 12, value))


def test_a_wrong_value_in_a_layer_is_named_with_the_layer(tiny, refused):
    adata = tiny()
    adata.layers["scaled"] = adata.X.toarray() - 1
    with refused(DataError, "layers['scaled']", "negative value -1", "X holds integers"):
        SCVI.setup_anndata(adata, layer="scaled")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(11.9999, "11.9999"), (123456.5, "123456.5"), (2.0000002, "2.0000002"), (1e-30, "1e-30")],
)
def test_a_fraction_is_shown_in_the_digits_that_tell(tiny, refused, value, shown):
    adata = with_value(tiny(), 31, 12, value)
    adata.X[0, 0] = 2.5  # not rounding
    adata = adata[::-1].copy()
    with refused(DataError, f"X holds {shown} (cell 'cell31'", "not an integer"):
        SCVI.setup_anndata(adata)


ROUNDED = {
    "sparse": lambda x: x,
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
}


@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("form", ROUNDED)
def test_counts_that_are_rounded_are_restored_by_the_line_in_the_message(
    tiny, refused, layer, form, view
):
    adata = tiny()
    whole = adata.X.toarray()
    rounded = sp.csr_matrix(np.expm1(np.log1p(adata.X.toarray())))
    assert (rounded.data % 1).any()
    if layer is None:
        adata.X = ROUNDED[form](rounded)
    else:
        adata.layers[layer] = ROUNDED[form](rounded)
        del adata.X
    if view:
        adata = adata[10:]
        whole = whole[10:]
    with refused(DataError, "within rounding of integers", "round them with ") as caught:
        SCVI.setup_anndata(adata, layer=layer)
    line = str(caught.value).partition("round them with ")[2].removesuffix(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AnnData's: a view becomes a copy
        exec(line, {"np": np, "adata": adata})
        SCVI.setup_anndata(adata, layer=layer)
    matrix = adata.X if layer is None else adata.layers[layer]
    np.testing.assert_array_equal(matrix.toarray() if sp.issparse(matrix) else matrix, whole)


def test_one_value_that_is_no_rounding_is_not_rounded_away(tiny, refused):
    adata = tiny()
    adata.X = sp.csr_matrix(np.expm1(np.log1p(with_value(adata, 31, 12, 3.01).X.toarray())))
    with refused(DataError, "not an integer", "allow_non_integer=True"):
        SCVI.setup_anndata(adata)


def test_counts_spoilt_after_setup_are_refused_by_the_model(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(DataError, "negative value -3", "'cell31'", "'gene12'"):
        SCVI(with_value(adata, 31, 12, -3))


def test_set_up_checks_some_of_many_cells_and_a_model_all(tiny, refused, monkeypatch):
    monkeypatch.setattr(declare, "_CHECKED_CELLS", 10)
    checked = []
    check = declare.check_counts
    monkeypatch.setattr(
        declare,
        "check_counts",
        lambda some, *rest, **named: checked.append(some) or check(some, *rest, **named),
    )
    adata = tiny()
    SCVI.setup_anndata(adata)
    (some,) = checked
    assert 5 <= some.n_obs <= 10
    unread = next(i for i, name in enumerate(adata.obs_names) if name not in some.obs_names)
    with_value(adata, unread, 12, 2.5)
    SCVI.setup_anndata(adata)
    with refused(DataError, "holds 2.5", f"'cell{unread}'", "'gene12'"):
        SCVI(adata)
    adata.X = log1p_normalised(tiny().X)
    with refused(DataError, "log1p"):
        SCVI.setup_anndata(adata)


def test_non_integers_are_taken_when_allowed(tiny, refused):
    adata = tiny()
    adata.X.data *= 0.75
    SCVI.setup_anndata(adata, allow_non_integer=True)
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    assert np.isfinite(model.get_latent_representation()).all()
    np.testing.assert_allclose(model._own_source().library, adata.X.toarray().sum(1), rtol=1e-6)
    with refused(DataError, "negative value -0.5"):
        model.get_latent_representation(with_value(adata, 0, 0, -0.5))


def test_log1p_normalised_data_are_recognised(tiny, use, refused):
    adata = tiny()
    adata.X = log1p_normalised(adata.X)
    with refused(DataError, "X looks log1p-normalised", "'cell0'", "before sc.pp.normalize_total"):
        use(adata)


@pytest.mark.parametrize("where", ["layer", "raw"])
def test_raw_counts_elsewhere_are_suggested(tiny, use, refused, where):
    adata = tiny()
    if where == "layer":
        adata.layers["counts"] = adata.X.copy()
        parts = ("adata.layers['counts'] holds integers: ",)
    else:
        adata.raw = adata
        parts = ("adata.raw holds integers", "adata.raw.to_adata()")
    adata.X = log1p_normalised(adata.X)
    with refused(DataError, "X looks log1p-normalised", *parts):
        use(adata)


def test_the_suggested_layer_and_raw_can_be_set_up(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata
    adata.X = log1p_normalised(adata.X)
    SCVI.setup_anndata(adata, layer="counts")
    SCVI.setup_anndata(adata.raw.to_adata())
    np.testing.assert_array_equal(SCVI(adata)._own_source().counts.toarray(), tiny().X.toarray())


@pytest.mark.parametrize("stored", [True, False], ids=["zeros stored", "no entries"])
def test_cells_without_counts_are_counted_and_named(tiny, use, refused, stored):
    adata = tiny()
    x = adata.X.toarray()
    if stored:
        for cell in (20, 33):
            adata.X.data[adata.X.indptr[cell] : adata.X.indptr[cell + 1]] = 0
    else:
        x[[20, 33]] = 0
        adata.X = sp.csr_matrix(x)
    with refused(DataError, "2 of 60 cells have no counts in X", "'cell20'", "drop them with "):
        use(adata)


def negative_somewhere(tiny, value=-0.5):
    adata = tiny()
    x = adata.X.toarray()
    x[4] += 1
    x[4, 7] = value
    adata.X = sp.csr_matrix(x)
    return adata


def test_negative_values_are_for_the_normal_likelihood(tiny, refused):
    adata = negative_somewhere(tiny)
    with refused(DataError, "negative", "gene7", "cell4"):
        SCVI.setup_anndata(adata)
    SCVI.setup_anndata(adata, allow_non_integer=True)
    with refused(DataError, "negative", "gene7", "cell4"):
        SCVI(adata)
    with refused(OptionError, "log_variational=False"):
        SCVI(adata, gene_likelihood="normal")
    model = SCVI(adata, gene_likelihood="normal", log_variational=False, n_hidden=8, n_latent=2)
    model.train(2, progress=False)
    assert np.isfinite(model.get_elbo(return_mean=False)).all()


def test_a_cell_whose_values_add_up_to_nothing_is_refused(tiny, refused):
    adata = negative_somewhere(tiny, value=-1e4)
    with refused(DataError, "no counts", "cell4"):
        SCVI.setup_anndata(adata, allow_non_integer=True)
