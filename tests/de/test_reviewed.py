"""What a review found: each was wrong once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from vivace import SCVI
from vivace.de.groups import plan
from vivace.errors import ArgumentTypeError, DataError, OptionError, TrainingError


@pytest.fixture(scope="module")
def cells():
    """Two conditions of four donors; the first ten of sixty genes are up in the second."""
    rng = np.random.default_rng(0)
    n = 400
    condition, donor = rng.integers(2, size=n), rng.integers(4, size=n)
    rate = np.tile(rng.gamma(2.0, 1.0, 60) + 0.2, (n, 1))
    rate[condition == 1, :10] *= 4.0
    counts = rng.poisson(rate).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": condition.astype(str),
            "donor": donor.astype(str),
            "size": counts.sum(1) / counts.sum(1).mean(),
            "batch": rng.integers(2, size=n).astype(str),
            "lane": rng.integers(3, size=n).astype(str),
        },
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(60)])
    return AnnData(counts, obs=obs, var=var)


def fitted(cells, **setup):
    adata = cells.copy()
    SCVI.setup_anndata(adata, **setup)
    model = SCVI(adata, n_latent=3, n_hidden=32)
    model.train(25, batch_size=64, seed=0, progress=False)
    return model


def test_across_samples_a_size_factor_is_no_library(cells):
    """Expression is then in molecules, and so must be what was counted."""
    model = fitted(cells, size_factor_key="size")
    found = model.differential_expression(
        groupby="condition", group1="1", group2="0", sample_key="donor", seed=0
    )
    up = [f"g{i}" for i in range(10)]
    assert found.loc[up, "is_de_fdr_0.05"].all()
    assert (found.loc[up, "lfc_mean"] > 1).all()


def test_weights_that_are_not_finite_are_said(cells, refused):
    model = fitted(cells)
    with torch.no_grad():
        model.module.decoder.scale.bias[3] = torch.nan
    with refused(TrainingError, "not finite", "train it again"):
        model.differential_expression(groupby="condition", seed=0)


def test_a_group_may_be_named_by_nothing(cells):
    adata = cells[:9].copy()
    adata.obs["kind"] = ["", "", "", "b", "b", "c", "c", "c", "c"]
    for group1 in (["", "b"], ""):
        found = plan(adata, "kind", group1, None, None, None)
        first = found.comparisons[0]
        assert found.parts[first.first].tolist() == [0, 1, 2]
        assert sorted(found.rows(first.second).tolist()) == [3, 4, 5, 6, 7, 8]


def test_a_mask_with_names_is_read_by_them(cells, refused):
    mask = cells.obs["condition"] == "1"
    shuffled = mask.sample(frac=1.0, random_state=0)
    one, other = (plan(cells, None, None, None, m, None) for m in (mask, shuffled))
    np.testing.assert_array_equal(one.parts[0], other.parts[0])
    with refused(DataError, "idx1", "obs_names"):
        plan(cells, None, None, None, mask.iloc[:-1].rename({"c0": "x"}), None)


@pytest.mark.parametrize("query", ["@pd.io", "donor.__class__", "[1, 2, 3]", "donor"])
def test_a_query_is_a_condition_and_no_program(cells, refused, query):
    with refused(OptionError, "idx1", query):
        plan(cells, None, None, None, query, None)


def test_the_declarations_are_not_written_over(cells, refused):
    model = fitted(cells)
    for taken in ("vivace", ""):
        with refused(OptionError, "key_added"):
            model.differential_expression(groupby="condition", key_added=taken)


def test_columns_named_beside_a_batch_are_corrected_too(cells):
    model = fitted(cells, batch_key="batch", categorical_covariate_keys=["lane"])
    codes, _ = model._decoded_as(["batch", "lane"], "0", "0")
    assert {(c.batch, c.categorical) for c in codes} == {(0, ((0, k),)) for k in range(3)}


def test_a_block_of_genes_costs_those_genes_alone(cells, monkeypatch):
    """Blocks give what all genes together do, for size factors too."""
    for setup in ({}, {"size_factor_key": "size"}):
        model = fitted(cells, **setup)
        ask = {"groupby": "condition", "group1": "1", "group2": "0", "seed": 0}
        whole = model.differential_expression(**ask, n_samples_overall=200)
        with monkeypatch.context() as patch:
            patch.setattr("vivace.de.draws.AT_ONCE", 400 * 7)
            blocks = model.differential_expression(**ask, n_samples_overall=200)
        pd.testing.assert_frame_equal(
            blocks.loc[whole.index].drop(columns="bayes_factor"),
            whole.drop(columns="bayes_factor"),
            rtol=1e-4,
            atol=1e-4,
        )


def test_levels_that_would_share_a_column_are_refused(cells, refused):
    with refused(OptionError, "cred_interval_lvls"):
        fitted(cells).differential_expression(
            groupby="condition", cred_interval_lvls=[0.9991, 0.9992]
        )


def test_functions_of_users_must_give_numbers_and_regions(cells, refused):
    model = fitted(cells)
    ask = {"groupby": "condition", "group1": "1", "seed": 0, "n_samples_overall": 50}
    with refused(OptionError, "change_fn", "not finite"):
        model.differential_expression(**ask, change_fn=lambda a, b, p: a * np.nan)
    with refused(ArgumentTypeError, "m1_domain_fn", "True and False"):
        model.differential_expression(**ask, m1_domain_fn=lambda effects: effects)
