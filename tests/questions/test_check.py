"""Posterior predictive checks: NumPy's statistics, samples of known and of unfit models."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import vivace
from vivace import SCVI, model
from vivace.errors import ArgumentTypeError, NotTrainedError, OptionError

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
STATISTICS = {
    "mean": lambda x, axis: x.mean(axis),
    "variance": lambda x, axis: x.var(axis),
    "zero_fraction": lambda x, axis: (x == 0).mean(axis),
}
COLUMNS = ["statistic", "by", "name", "observed", "predicted", "lower", "upper", "p_value"]


def get_values(frame, by, statistic="correlation"):
    return frame[(frame["by"] == by) & (frame["statistic"] == statistic)].set_index("name")


def dense(adata, rows=slice(None)):
    return adata.X[rows].toarray().astype(np.float64)


def most_variable(x, n):
    """Places of the genes whose log(1 + x) varies most, in order."""
    return np.sort(np.argsort(-np.log1p(x).var(0), kind="stable")[:n])


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    """A model of scvi-tools', on its data."""
    return model.load(GOLDEN / request.param, anndata.read_h5ad(GOLDEN / "adata.h5ad"))


def test_a_row_for_each_statistic_and_gene_cell_and_pair(golden):
    rows = np.array([200, 3, 41, 7, 7])
    frame = golden.posterior_predictive_check(indices=rows, n_samples=3, n_correlated=6, seed=0)
    assert list(frame) == COLUMNS
    assert len(frame) == 3 * 150 + 3 * 5 + 15
    assert list(frame.index) == list(range(len(frame)))
    for statistic in STATISTICS:
        assert list(get_values(frame, "gene", statistic).index) == list(golden.adata.var_names)
        cells = get_values(frame, "cell", statistic)
        assert list(cells.index) == list(golden.adata.obs_names[rows])
    chosen = golden.adata.var_names[most_variable(dense(golden.adata, rows), 6)]
    pairs = [f"{a}, {b}" for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    assert list(get_values(frame, "gene pair").index) == pairs


def test_the_observed_are_the_statistics_of_the_data(golden):
    rows = np.random.default_rng(0).permutation(300)[:120]
    x = dense(golden.adata, rows)
    frame = golden.posterior_predictive_check(indices=rows, n_samples=2, n_correlated=20, seed=0)
    for statistic, compute in STATISTICS.items():
        for by, axis in (("gene", 0), ("cell", 1)):
            result = get_values(frame, by, statistic)["observed"]
            np.testing.assert_allclose(result, compute(x, axis), rtol=1e-9, atol=1e-12)
    log_x = np.log1p(x[:, most_variable(x, 20)])
    upper = np.triu_indices(20, 1)
    result = get_values(frame, "gene pair")["observed"]
    np.testing.assert_allclose(result, np.corrcoef(log_x.T)[upper], rtol=1e-4, atol=1e-6)


def test_the_predicted_are_those_of_posterior_predictive_samples(golden):
    """Mean, 95 % interval, and share above the data, ties by half, over the same samples."""
    rows, n = np.arange(40, 90), 8
    frame = golden.posterior_predictive_check(indices=rows, n_samples=n, n_correlated=5, seed=3)
    samples = golden.posterior_predictive_sample(indices=rows, n_samples=n, seed=3)
    samples = np.moveaxis(
        np.asarray(samples if isinstance(samples, np.ndarray) else samples.todense()), 2, 0
    )
    samples, x = samples.astype(np.float64), dense(golden.adata, rows)
    genes = most_variable(x, 5)
    upper = np.triu_indices(5, 1)

    def correlations(values):
        log_x = np.sign(values) * np.log1p(np.abs(values))
        return np.corrcoef(log_x[:, genes].T)[upper]

    cases = [("gene pair", "correlation", correlations)]
    for statistic, compute in STATISTICS.items():
        cases.append(("gene", statistic, lambda v, f=compute: f(v, 0)))
        cases.append(("cell", statistic, lambda v, f=compute: f(v, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for by, statistic, compute in cases:
            result = get_values(frame, by, statistic)
            seen, each = compute(x), np.stack([compute(d) for d in samples])
            scale = {"rtol": 1e-4, "atol": 1e-4, "err_msg": f"{statistic} by {by}"}
            np.testing.assert_allclose(result["predicted"], each.mean(0), **scale)
            np.testing.assert_allclose(result["lower"], np.quantile(each, 0.025, axis=0), **scale)
            np.testing.assert_allclose(result["upper"], np.quantile(each, 0.975, axis=0), **scale)
            tied = np.isclose(each, seen, rtol=1e-9, atol=1e-12)
            above = ((each > seen) & ~tied).mean(0) + 0.5 * tied.mean(0)
            above[np.isnan(each.mean(0) + seen)] = np.nan
            np.testing.assert_allclose(result["p_value"], above, **scale)


def test_it_does_not_depend_on_the_batch_size(golden):
    check = {"n_samples": 3, "n_correlated": 8, "seed": 1}
    frame = golden.posterior_predictive_check(**check)
    small = golden.posterior_predictive_check(**check, batch_size=77)
    pd.testing.assert_frame_equal(small, frame, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def known(tiny):
    """A model whose q(z|x) is its prior, so data sampled from it are like its samples.

    The size factor takes the place of the library, which would be that of the data.
    """
    adata = tiny(n_cells=200)
    SCVI.setup_anndata(adata, size_factor_key="depth")
    fitted = SCVI(adata, n_hidden=16, n_latent=3, gene_likelihood="nb")
    fitted.train(20, seed=0, progress=False)
    fitted.module.encoder.latent.weight.data.zero_()
    fitted.module.encoder.latent.bias.data.zero_()
    return fitted


@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_is_found_adequate_for_data_of_its_own(known, seed):
    """The data are another sample, so p-values are uniform: 2 of 80 ranks are extreme."""
    data = known.adata.copy()
    data.X = known.posterior_predictive_sample(seed=seed).astype(np.float32)
    frame = known.posterior_predictive_check(data, n_samples=79, n_correlated=10, seed=10 * seed)
    for (by, statistic), group in frame.groupby(["by", "statistic"]):
        p = group["p_value"]
        most = 0.08 if by == "cell" else 0.15  # cells are 200, and independent; genes are neither
        assert ((p < 0.0125) | (p > 0.9875)).mean() < most, (by, statistic)
        outside = (group["observed"] < group["lower"]) | (group["observed"] > group["upper"])
        assert outside.mean() < 0.05 + most, (by, statistic)
        if by == "cell":  # and in between evenly spread
            assert 0.35 < ((p > 0.25) & (p < 0.75)).mean() < 0.65, statistic
            assert 0.4 < p.mean() < 0.6, statistic


@pytest.fixture(scope="module")
def overdispersed(tiny):
    """Counts with an inverse dispersion of 0.3 that no latent variable explains."""
    adata = tiny(n_cells=300)
    rng = np.random.default_rng(0)
    mean = rng.uniform(1.0, 5.0, 30)
    counts = rng.poisson(mean * rng.gamma(0.3, 1 / 0.3, (300, 30)))
    counts[np.arange(300), rng.integers(30, size=300)] += 1
    adata.X = counts.astype(np.float32)
    SCVI.setup_anndata(adata)
    return adata


def test_a_poisson_model_of_overdispersed_data_is_shown_inadequate(overdispersed):
    result = {}
    for likelihood in ("poisson", "nb"):
        fitted = SCVI(overdispersed, n_hidden=16, n_latent=2, gene_likelihood=likelihood)
        fitted.train(30, seed=0, progress=False)
        frame = fitted.posterior_predictive_check(n_samples=40, seed=0)
        variance = get_values(frame, "gene", "variance")
        zeros = get_values(frame, "gene", "zero_fraction")
        too_wide = variance["observed"] > variance["upper"]
        assert (variance.loc[too_wide, "p_value"] < 0.05).all()
        result[likelihood] = too_wide.mean(), (zeros["observed"] > zeros["upper"]).mean()
    assert min(result["poisson"]) > 0.9
    assert max(result["nb"]) < 0.3


def test_pairs_that_a_constant_gene_is_in_have_neither_correlation_nor_p_value(trained, tiny):
    adata = tiny(n_cells=20)
    x = adata.X.toarray()
    x[:, 4], x[:, 5] = 0, 1
    adata.X = sp.csr_matrix(x)
    frame = trained.posterior_predictive_check(adata, n_samples=4, n_correlated=30, seed=0)
    pairs = get_values(frame, "gene pair")
    assert len(pairs) == 435
    constant = pairs.index.str.contains(r"\bgene[45]\b")
    assert constant.sum() == 29 + 28
    assert pairs.loc[constant, ["observed", "p_value"]].isna().all(axis=None)
    others = pairs[~constant]
    x = np.log1p(np.delete(dense(adata), [4, 5], axis=1))
    varies = x.std(0) > 0
    assert others["observed"].notna().sum() == varies.sum() * (varies.sum() - 1) // 2
    assert (others["p_value"].isna() == others[["observed", "predicted"]].isna().any(axis=1)).all()
    gene_rows = frame[frame["by"] == "gene"]
    assert gene_rows["p_value"].between(0, 1).all()


def test_one_cell_is_checked_too(trained):
    frame = trained.posterior_predictive_check(indices=[7], n_samples=3, seed=0)
    x = dense(trained.adata, [7])[0]
    np.testing.assert_array_equal(get_values(frame, "gene", "mean")["observed"], x)
    assert not get_values(frame, "gene", "variance")[["observed", "predicted"]].to_numpy().any()
    assert get_values(frame, "gene pair")["p_value"].isna().all()


def test_values_that_are_not_counts_are_checked(tiny):
    """Normal samples fall below zero; correlations are of a signed logarithm."""
    adata = tiny()
    adata.X = adata.X.toarray() - np.float32(2.5) * (np.arange(30) < 5)
    adata.X[:, -1] += 20  # each cell must add up to more than 0
    SCVI.setup_anndata(adata, allow_non_integer=True)
    fitted = SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="normal", log_variational=False)
    fitted.train(2, seed=0, progress=False)
    frame = fitted.posterior_predictive_check(n_samples=4, n_correlated=30, seed=0)
    log_x = np.sign(adata.X) * np.log1p(np.abs(adata.X))
    pairs = get_values(frame, "gene pair")
    assert pairs.notna().all(axis=None)
    expected = np.corrcoef(log_x.T)[np.triu_indices(30, 1)]
    np.testing.assert_allclose(pairs["observed"], expected, rtol=1e-3, atol=1e-4)
    few = fitted.posterior_predictive_check(n_samples=1, n_correlated=3, seed=0)
    chosen = adata.var_names[np.sort(np.argsort(-log_x.var(0))[:3])]
    assert get_values(few, "gene pair").index[0] == f"{chosen[0]}, {chosen[1]}"


@pytest.fixture(scope="module")
def held_out():
    """PBMC 3k with an NB model, checked on the cells that it was not trained on."""
    adata = vivace.datasets.pbmc3k()
    SCVI.setup_anndata(adata)
    fitted = SCVI(adata, gene_likelihood="nb")
    fitted.train(seed=0, progress=False)
    frame = fitted.posterior_predictive_check(indices=fitted.validation_indices, seed=0)
    return fitted, frame


def spearman(a, b):
    return pd.Series(np.asarray(a)).corr(pd.Series(np.asarray(b)), method="spearman")


@pytest.mark.parametrize("statistic", ["mean", "zero_fraction"])
def test_what_is_predicted_tracks_cells_that_were_not_trained_on(held_out, statistic):
    """As closely as nine times as many real cells; the limit is their own noise.

    Over genes of 200 molecules or more that noise is small, and so is the difference.
    """
    fitted, frame = held_out
    genes = get_values(frame, "gene", statistic)
    compute = STATISTICS[statistic]
    real = compute(dense(fitted.adata, fitted.train_indices), 0)
    limit = spearman(genes["observed"], real)
    assert spearman(genes["observed"], genes["predicted"]) > limit - 0.02
    frequent = dense(fitted.adata, fitted.validation_indices).sum(0) >= 200
    assert frequent.sum() > 50
    assert spearman(genes["observed"][frequent], genes["predicted"][frequent]) > 0.95


def test_statistics_of_cells_that_were_not_trained_on(held_out):
    """The library is that of the cell, so that its mean and its zeros are known well."""
    _, frame = held_out
    for statistic, least in (("mean", 0.95), ("zero_fraction", 0.9)):
        cells = get_values(frame, "cell", statistic)
        assert spearman(cells["observed"], cells["predicted"]) > least


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"n_samples": 0}, OptionError, ["n_samples"]),
        ({"n_samples": "20"}, ArgumentTypeError, ["n_samples", "'20'"]),
        ({"n_correlated": 0}, OptionError, ["n_correlated"]),
        ({"indices": []}, OptionError, ["indices"]),
        ({"indices": [0.5]}, ArgumentTypeError, ["indices"]),
        ({"batch_size": 0}, OptionError, ["batch_size"]),
        ({"seed": -1}, OptionError, ["seed"]),
    ],
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.posterior_predictive_check(**arguments)


def test_one_correlated_gene_makes_no_pair(trained):
    frame = trained.posterior_predictive_check(n_samples=2, n_correlated=1, seed=0)
    assert set(frame["by"]) == {"gene", "cell"}
    assert len(frame) == 3 * 30 + 3 * 60


def test_an_untrained_model_is_refused(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(NotTrainedError, "train()"):
        SCVI(adata, n_hidden=8).posterior_predictive_check()
