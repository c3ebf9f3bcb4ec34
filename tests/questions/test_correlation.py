"""Correlation of genes over denoised samples, compared with SciPy and NumPy on the same samples."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from vivace import SCVI, model
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, OptionError
from vivace.questions import correlation

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
GENES = ["gene7", "gene2", "gene29", "gene7"]
SEED = 3
SIX = 6.0  # standard errors; of some thousand comparisons with fixed seeds none may be beyond


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    return model.load(GOLDEN / request.param, adata)


def get_samples(model, n_samples, indices=None, batch=None, size=1000.0):
    """The rates that are correlated, cells x samples in rows: those of this seed."""
    cells = model._cells(None, indices, None)
    (codes,) = model.schema.codes(batch)
    with torch.no_grad():
        samples = list(correlation._sample_rates(cells, codes, n_samples, size, SEED))
    return np.concatenate([x for _, x in samples]).astype(np.float64)


def placed(model, z):
    """Points as the decoder takes them."""
    z = torch.as_tensor(z)
    return z.softmax(-1) if model.config.latent_distribution == "ln" else z


# ---- ranks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).integers(0, 5, (101, 37)),
        np.random.default_rng(1).gamma(1.0, 1.0, (3000, 20)),
        np.concatenate([np.zeros((5, 3)), np.random.default_rng(2).random((6, 3))]),
        np.ones((5, 2)),
        np.zeros((1, 2)),
    ],
    ids=["many ties", "few ties", "ties at the start", "one value", "one row"],
)
def test_ranks_are_those_of_scipy_from_0_to_1(values):
    x = values.astype(np.float32)
    ranks = correlation._rank_all(x).T
    np.testing.assert_allclose(ranks, (stats.rankdata(x, axis=0) - 0.5) / len(x), rtol=1e-6)
    np.testing.assert_array_equal(ranks, correlation._ranks(x, np.sort(x.T, axis=1)))


# ---- the matrix --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_it_is_what_scipy_and_numpy_compute_of_the_same_samples(golden, kind):
    result = golden.get_feature_correlation_matrix(n_samples=2, correlation_type=kind, seed=SEED)
    x = get_samples(golden, 2)
    assert x.shape == (600, 150)
    wanted = stats.spearmanr(x).statistic if kind == "spearman" else np.corrcoef(x.T)
    np.testing.assert_allclose(result.to_numpy(), wanted, atol=2e-6)
    assert np.abs(wanted - np.eye(150)).max() > 0.1
    assert list(result.index) == list(result.columns) == list(golden.schema.genes)


def test_spearman_is_the_default_and_ties_share_their_ranks(trained, monkeypatch):
    """Cut to powers of two, most samples are tied."""
    exact = correlation._sample_rates

    def rounded(*arguments):
        for part, x in exact(*arguments):
            yield part, np.floor(np.log2(x + 1e-6))

    monkeypatch.setattr(correlation, "_sample_rates", rounded)
    result = trained.get_feature_correlation_matrix(n_samples=3, seed=SEED)
    x = get_samples(trained, 3)
    assert max(len(np.unique(column)) for column in x.T) < 40
    np.testing.assert_allclose(result, stats.spearmanr(x).statistic, atol=2e-6)


def test_a_matrix_is_symmetric_with_ones_on_its_diagonal(trained):
    for kind in ("spearman", "pearson"):
        result = trained.get_feature_correlation_matrix(correlation_type=kind, seed=0).to_numpy()
        np.testing.assert_array_equal(result, result.T)
        np.testing.assert_allclose(np.diag(result), 1.0, rtol=1e-12)
        assert np.abs(result).max() <= 1.0


@pytest.mark.filterwarnings("ignore:An input array is constant")  # SciPy's, of the same samples
@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_a_gene_that_is_the_same_in_every_sample_has_no_correlation(saved, trained, kind):
    """Its theta is so small that every gamma sample underflows to zero."""
    loaded = SCVI.load(saved, trained.adata)
    with torch.no_grad():
        loaded.module.log_theta[4] = -15.0
    result = loaded.get_feature_correlation_matrix(n_samples=2, correlation_type=kind, seed=SEED)
    assert not get_samples(loaded, 2)[:, 4].any()
    lacking = result.isna().to_numpy()
    assert lacking[4].all()
    assert lacking[:, 4].all()
    assert lacking.sum() == 2 * 30 - 1


# ---- the samples -------------------------------------------------------------


@pytest.mark.parametrize(
    "golden",
    [
        "nb_gene_batch_covariates",
        "nb_gene_label_size_factor",
        "normal",
        "poisson_logistic_normal",
        "zinb_gene_cell",
        "zinb_latent_library",
    ],
    indirect=True,
)
def test_samples_have_the_moments_of_gamma_rates_at_the_size_asked_for(golden):
    """Mean and variance over independent samples of z, through ``decode``; no zero inflation."""
    row, n, size = 250, 3_000, 5_000.0
    result = get_samples(golden, 3, indices=[row] * (n // 3), size=size)
    mean, variance = golden.get_latent_representation(indices=[row], return_dist=True)
    noise = np.random.default_rng(0).standard_normal((n, mean.shape[1]))
    observed = golden.decode(
        placed(golden, mean + np.sqrt(variance) * noise), indices=[row] * n, library_size=size
    )
    likelihood = golden.config.gene_likelihood
    mu = (observed.rate if likelihood == "poisson" else observed.mu).double().numpy()
    gamma = np.zeros_like(mu)
    if likelihood in ("nb", "zinb"):
        gamma = mu**2 / observed.theta.double().numpy()
    assert result.shape == mu.shape
    total = gamma.mean(0) + mu.var(0)
    error = np.sqrt((total + mu.var(0)) / n)
    assert (np.abs(result.mean(0) - mu.mean(0)) <= SIX * error).all()
    fourth = ((result - result.mean(0)) ** 4).mean(0)
    second = (mu - mu.mean(0)) ** 2 + gamma
    error = np.sqrt((fourth - total**2).clip(min=0) / n + second.var(0) / n)
    assert (np.abs(result.var(0) - total) <= SIX * error).all()


def test_samples_of_a_cell_share_their_z_and_nothing_else(golden):
    """Of the same cell they differ, and so do two genes of one sample."""
    result = get_samples(golden, 2, indices=[5, 5])
    assert result.shape == (4, 150)
    for i, j in ((0, 1), (0, 2), (1, 3)):
        assert (result[i] != result[j]).mean() > 0.9


# ---- many cells --------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [1, 3])
def test_ranks_among_some_of_the_cells_are_nearly_those_among_all(tiny, monkeypatch, n_samples):
    adata = tiny(n_cells=600)
    SCVI.setup_anndata(adata, batch_key="batch")
    fitted = SCVI(adata, n_hidden=16, n_latent=3, gene_likelihood="nb")
    fitted.train(5, seed=0, progress=False)
    options = {"n_samples": n_samples, "seed": SEED, "batch_size": 128}
    exact = fitted.get_feature_correlation_matrix(**options)
    ordered = []

    def seen(x, ordered_gm):
        ordered.append(ordered_gm.shape)
        return ranks(x, ordered_gm)

    ranks = correlation._ranks
    monkeypatch.setattr(correlation, "_ranks", seen)
    monkeypatch.setattr(correlation, "_REFERENCE", 30 * n_samples * 200)
    result = fitted.get_feature_correlation_matrix(**options)
    assert set(ordered) == {(30, 200 * n_samples)}  # a third of the cells, all their samples
    assert (result != exact).to_numpy().any()
    assert np.abs(result - exact).to_numpy().max() < 0.03


# ---- other batches, genes, cells ---------------------------------------------


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_of_several_batches_it_is_the_mean_of_their_matrices(trained, kind):
    options = {"n_samples": 2, "correlation_type": kind, "seed": SEED}
    each = []
    for batch in ("b0", "b1"):
        x = get_samples(trained, 2, batch=batch)
        each.append(stats.spearmanr(x).statistic if kind == "spearman" else np.corrcoef(x.T))
        one = trained.get_feature_correlation_matrix(**options, transform_batch=batch)
        np.testing.assert_allclose(one, each[-1], atol=2e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-3
    both = trained.get_feature_correlation_matrix(**options, transform_batch=["b0", "b1"])
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=2e-6)


def test_a_batch_takes_the_place_of_the_cells_own(trained):
    changed = trained.adata.copy()
    changed.obs["batch"] = "b1"
    options = {"n_samples": 2, "seed": SEED}
    result = trained.get_feature_correlation_matrix(**options, transform_batch="b1")
    given = trained.get_feature_correlation_matrix(changed, **options)
    pd.testing.assert_frame_equal(result, given, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_genes_come_in_the_order_asked_for_with_repeats(trained, kind):
    options = {"n_samples": 2, "correlation_type": kind, "seed": SEED}
    whole = trained.get_feature_correlation_matrix(**options)
    result = trained.get_feature_correlation_matrix(**options, gene_list=GENES)
    assert list(result.index) == list(result.columns) == GENES
    np.testing.assert_allclose(result, whole.loc[GENES, GENES], atol=1e-9)
    assert result.iloc[0, 3] == pytest.approx(1.0, abs=1e-9)


def test_only_the_cells_named_are_correlated(trained, saved):
    rows = np.array([50, 3, 3, 20, 11, 42])
    result = trained.get_feature_correlation_matrix(indices=rows, n_samples=4, seed=SEED)
    x = get_samples(trained, 4, indices=rows)
    assert x.shape == (24, 30)
    np.testing.assert_allclose(result, stats.spearmanr(x).statistic, atol=2e-6)
    given = SCVI.load(saved).get_feature_correlation_matrix(
        trained.adata, rows, n_samples=4, seed=SEED
    )
    pd.testing.assert_frame_equal(given, result)


def test_it_follows_from_the_seed_and_not_from_the_batch_size_nor_the_molecules(trained):
    def result(seed, **options):
        return trained.get_feature_correlation_matrix(n_samples=2, seed=seed, **options).to_numpy()

    first = result(1)
    np.testing.assert_array_equal(result(1), first)
    np.testing.assert_allclose(result(1, batch_size=7), first, atol=1e-5)
    np.testing.assert_allclose(result(1, rna_size_factor=50), first, atol=1e-3)
    others = [result(2), result(None), result(None)]
    for one, other in ((first, others[0]), (first, others[1]), (others[1], others[2])):
        assert np.abs(one - other).max() > 1e-3


# ---- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"correlation_type": "kendall"}, OptionError, ("'spearman', 'pearson'", "'kendall'")),
        ({"rna_size_factor": 0}, OptionError, ("rna_size_factor", "above 0")),
        ({"rna_size_factor": "big"}, ArgumentTypeError, ("rna_size_factor", "'big'")),
        ({"n_samples": 0}, OptionError, ("n_samples", "0")),
        ({"n_samples": 1.5}, ArgumentTypeError, ("n_samples", "1.5")),
        ({"indices": [4]}, OptionError, ("two cells", "selects 1")),
        ({"indices": []}, OptionError, ("two cells", "selects 0")),
        ({"transform_batch": "b7"}, DataError, ("'b7'", "'b0', 'b1'")),
        ({"gene_list": ["gen2"]}, MissingColumnError, ("'gen2'", "did you mean", "'gene2'")),
        ({"gene_list": []}, DataError, ("gene_list", "empty")),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_feature_correlation_matrix(**arguments)
