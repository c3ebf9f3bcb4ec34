"""A query whose counts are not integers, for example after ambient removal."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from mapping_cases import trained_on

from vivace import SCVI
from vivace.errors import DataError

ACCEPT = "pass allow_non_integer=True to load_query_data"


@pytest.fixture
def model(tiny):
    return trained_on(tiny(), batch_key="batch")


@pytest.fixture
def ambient(tiny):
    """A query with a new batch and fractions."""
    adata = tiny(seed=3)
    adata.obs["batch"] = "new"
    adata.X.data *= np.random.default_rng(0).uniform(0.8, 1.0, adata.X.nnz).astype(np.float32)
    return adata


def test_it_is_refused_and_the_fix_works(model, ambient, refused):
    with refused(DataError, "which is not an integer", ACCEPT):
        SCVI.load_query_data(ambient, model)
    mapped = SCVI.load_query_data(ambient, model, allow_non_integer=True)
    mapped.train(1, progress=False)
    assert np.isfinite(mapped.get_latent_representation()).all()
    assert np.isfinite(mapped.get_elbo(ambient.copy(), seed=0))


def test_it_is_accepted_after_a_file_too(model, ambient, tmp_path):
    mapped = SCVI.load_query_data(ambient, model, allow_non_integer=np.True_)
    mapped.train(1, progress=False)
    mapped.save(tmp_path / "mapped")
    again = SCVI.load(tmp_path / "mapped", ambient)
    np.testing.assert_array_equal(
        again.get_latent_representation(), mapped.get_latent_representation()
    )


def test_what_was_said_when_it_was_prepared_is_remembered(model, ambient, refused, tmp_path):
    part = ambient[:, 1:].copy()
    SCVI.prepare_query_anndata(part, model)
    with refused(DataError, "which is not an integer", ACCEPT):
        SCVI.load_query_data(part, model)
    part = ambient[:, 1:].copy()
    SCVI.prepare_query_anndata(part, model, allow_non_integer=True)
    part.write_h5ad(tmp_path / "part.h5ad")
    from_file = anndata.read_h5ad(tmp_path / "part.h5ad")
    for query in (part, from_file):
        assert SCVI.load_query_data(query, model).schema.declarations.allow_non_integer
    new = SCVI.prepare_query_anndata(ambient[:, 1:], model, inplace=False, allow_non_integer=True)
    assert SCVI.load_query_data(new, model).schema.declarations.allow_non_integer


def test_a_reference_that_was_set_up_so_takes_it(tiny, ambient):
    reference = trained_on(tiny(), batch_key="batch", allow_non_integer=True)
    assert np.isfinite(SCVI.load_query_data(ambient, reference).adata.X.data).all()
