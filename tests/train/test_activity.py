"""Latent dimensions that tell cells apart, and a verdict on a collapsed latent space."""

from __future__ import annotations

import numpy as np
import pytest

import vivace
from vivace import SCVI
from vivace.state import Convergence
from vivace.train.activity import count_active_dimensions


@pytest.fixture(scope="module")
def adata():
    cells = vivace.datasets.pbmc3k()[:600, :300].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    SCVI.setup_anndata(cells)
    return cells


def train(adata, **plan):
    vivace.settings.seed = 0
    model = SCVI(adata, n_hidden=32, n_latent=5)
    model.train(progress=False, plan_kwargs=plan)
    return model


def test_a_collapsed_latent_space_is_named_and_the_fix_works(adata):
    model = train(adata, max_kl_weight=100.0)
    assert model.get_latent_representation().std(0).max() < 0.1
    assert "The latent space collapsed" in model.summary
    assert "plan_kwargs={'max_kl_weight': 0.1}" in model.summary
    mended = train(adata, max_kl_weight=0.1)
    assert mended.get_latent_representation().std(0).max() > 0.5
    assert "collapsed" not in mended.summary


def test_active_dimensions_are_those_that_vary_between_cells(adata):
    model = train(adata, max_kl_weight=4.0)
    expected = model.get_latent_representation(indices=model.train_indices).var(0) > 0.01
    n_active = model._state.summary["convergence"]["n_active"]
    assert n_active == expected.sum()
    assert 0 < n_active < 5  # both kinds occur


def test_a_training_that_was_too_short_is_not_said_to_have_collapsed_the_latent_space():
    for status in ("warming up", "improving", "stopped by callback"):
        text = Convergence(status, epochs=4, gain=0.1, n_active=0).describe()
        assert text.endswith(". So far no dimension of the latent space varies between cells")
        assert "So far" not in Convergence(status, epochs=4, gain=0.1, n_active=1).describe()


def test_at_most_2000_cells_are_looked_at_and_one_is_not_enough(adata):
    model = train(adata)
    rows = np.tile(np.arange(len(adata)), 10)
    assert count_active_dimensions(model.module, model._own_source(), rows) > 0
    assert count_active_dimensions(model.module, model._own_source(), rows[:1]) is None


def test_a_verdict_is_restored_with_and_without_active_dimensions():
    verdict = Convergence("finished", epochs=4, gain=0.1, n_active=0)
    parts = verdict.as_dict()
    assert Convergence.from_dict(parts) == verdict
    del parts["n_active"]
    assert not Convergence.from_dict(parts).collapsed
