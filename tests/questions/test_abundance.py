"""Aggregated posteriors compared with SciPy's densities, and the samples typical of a position."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from scipy.special import logsumexp
from torch.distributions import MixtureSameFamily

from vivace import SCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    NotTrainedError,
    OptionError,
    VivaceWarning,
)


@pytest.fixture(scope="module", params=["normal", "ln"])
def fitted(request, tiny):
    """A model of a few cell types that are separated in its latent space."""
    adata = tiny(n_cells=120)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=16, n_latent=3, latent_distribution=request.param)
    # with the full KL weight so few cells all end at the prior
    model.train(30, seed=0, plan_kwargs={"n_epochs_kl_warmup": 15}, progress=False)
    return model


def log_density(model, cells, z, dof=None):
    """Log of the mean over cells of the density of q(z|x), or of Student's t in its place."""
    mean, variance = model.get_latent_representation(indices=cells, return_dist=True)
    place, scale = mean.astype(np.float64), np.sqrt(variance.astype(np.float64))
    family = scipy.stats.norm if dof is None else scipy.stats.t(dof)
    standard = (np.asarray(z, np.float64)[:, None, :] - place) / scale
    each = (family.logpdf(standard) - np.log(scale)).sum(2)
    return logsumexp(each, axis=1) - np.log(len(place))


@pytest.fixture(scope="module")
def points():
    """Before a softmax: where cells are, and far away."""
    z = np.random.default_rng(0).normal(size=(40, 3))
    return (z * np.repeat([1.0, 8.0], 20)[:, None]).astype(np.float32)


@pytest.mark.parametrize("dof", [None, 3.0, 30])
def test_an_aggregated_posterior_is_the_mixture_over_cells(fitted, points, dof):
    cells = [5, 80, 3, 3, 41]
    mixture = fitted.get_aggregated_posterior(indices=cells, dof=dof)
    assert mixture.batch_shape == ()
    assert mixture.event_shape == (3,)
    result = mixture.log_prob(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(result, log_density(fitted, cells, points, dof), rtol=1e-4)


def test_by_default_its_components_are_of_three_degrees_of_freedom(fitted, points):
    result = fitted.get_aggregated_posterior().log_prob(torch.from_numpy(points)).numpy()
    expected = log_density(fitted, np.arange(120), points, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_it_is_of_the_data_that_are_passed(fitted, tiny, points):
    other = tiny(n_cells=7, seed=5)
    result = fitted.get_aggregated_posterior(other, batch_size=3, dof=None)
    mean, variance = fitted.get_latent_representation(other, return_dist=True)
    normals = scipy.stats.norm(mean[:, None, :], np.sqrt(variance)[:, None, :])
    expected = logsumexp(normals.logpdf(points).sum(2), axis=0) - np.log(7)
    np.testing.assert_allclose(result.log_prob(torch.from_numpy(points)), expected, rtol=1e-4)


def test_its_samples_are_where_the_cells_are(fitted):
    mean, variance = fitted.get_latent_representation(return_dist=True)
    mixture = fitted.get_aggregated_posterior(dof=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = mixture.sample((20_000,)).numpy()
    deviation = np.sqrt(mean.var(0) + variance.mean(0))
    assert (np.abs(z.mean(0) - mean.mean(0)) < 5 * deviation / np.sqrt(20_000)).all()
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.05)


@pytest.mark.parametrize("dof", [None, 4.0])
def test_abundance_is_the_log_density_of_each_sample_at_each_cell(fitted, dof):
    adata = fitted.adata
    frame = fitted.differential_abundance(sample_key="donor", dof=dof)
    assert list(frame.index) == list(adata.obs_names)
    assert list(frame.columns) == ["d0", "d1", "d2"]
    mean, _ = fitted.get_latent_representation(return_dist=True)
    for donor in frame:
        cells = np.flatnonzero(adata.obs["donor"] == donor)
        expected = log_density(fitted, cells, mean, dof)
        np.testing.assert_allclose(frame[donor], expected, rtol=1e-4, atol=1e-4)


def test_it_is_written_to_the_data(fitted, tiny, tmp_path):
    frame = fitted.differential_abundance(sample_key="donor")
    pd.testing.assert_frame_equal(fitted.adata.obsm["da_log_probs"], frame)
    other = tiny(n_cells=9, seed=5)
    result = fitted.differential_abundance(other, "batch")
    assert list(result.columns) == ["b0", "b1"]
    pd.testing.assert_frame_equal(other.obsm["da_log_probs"], result)
    pd.testing.assert_frame_equal(fitted.adata.obsm["da_log_probs"], frame)
    other.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.obsm["da_log_probs"], result)


@pytest.mark.parametrize(
    "column",
    [
        np.arange(9) % 2,
        pd.Categorical(np.array(["x", "y"])[np.arange(9) % 2], categories=["z", "y", "x"]),
        np.arange(9) % 2 == 1,
    ],
    ids=["integers", "categorical", "truth"],
)
def test_samples_of_any_type(fitted, tiny, tmp_path, column):
    """One column each; the data can be written."""
    other = tiny(n_cells=9, seed=5)
    other.obs["sample"] = column
    result = fitted.differential_abundance(other, "sample")
    assert result.shape == (9, 2)
    assert np.isfinite(result.to_numpy()).all()
    other.write_h5ad(tmp_path / "cells.h5ad")


def test_memory_is_bounded_and_changes_nothing(fitted, monkeypatch):
    whole = fitted.differential_abundance(sample_key="donor")
    sizes = []
    log_prob = MixtureSameFamily.log_prob

    def counted(self, z):
        sizes.append(len(z) * self.mixture_distribution.probs.shape[0] * z.shape[1])
        return log_prob(self, z)

    monkeypatch.setattr(MixtureSameFamily, "log_prob", counted)
    monkeypatch.setattr("vivace.questions.abundance._AT_ONCE", 1_000)
    abundances = fitted.differential_abundance(sample_key="donor")
    assert max(sizes) <= 1_000
    assert sum(sizes) == 3 * 120 * 40 * 3
    np.testing.assert_allclose(abundances, whole, rtol=1e-5)
    monkeypatch.setattr("vivace.questions.abundance._AT_ONCE", 1)  # a point at a time, no less
    np.testing.assert_allclose(fitted.differential_abundance(sample_key="donor"), whole, rtol=1e-5)


def test_a_population_of_one_sample_is_typical_of_it(fitted):
    """T cells of which the second sample has none; the others are in both."""
    adata = fitted.adata.copy()
    cell_type = adata.obs["cell_type"].to_numpy()
    odd = np.arange(120) % 2 == 1
    adata.obs["sample"] = np.where(odd & (cell_type != "T"), "without", "with")
    frame = fitted.differential_abundance(adata, "sample")
    difference = (frame["with"] - frame["without"]).to_numpy()
    t = cell_type == "T"
    assert (difference[t] > 0).mean() > 0.9
    assert np.median(difference[t]) > 1.0 + np.abs(np.median(difference[~t]))


def test_a_sample_is_represented_by_as_many_cells_as_asked_for(fitted):
    """With one cell the column is the density of one q(z|x) of the sample, which the seed picks."""
    mean, _ = fitted.get_latent_representation(return_dist=True)
    members = np.flatnonzero(fitted.adata.obs["donor"] == "d1")
    single = np.stack([log_density(fitted, [cell], mean) for cell in members])
    chosen = set()
    for seed in range(4):
        frame = fitted.differential_abundance(sample_key="donor", num_cells_posterior=1, seed=seed)
        error = np.abs(single - frame["d1"].to_numpy()).max(1)
        assert error.min() < 1e-2
        chosen.add(int(error.argmin()))
    assert len(chosen) > 1
    again = fitted.differential_abundance(sample_key="donor", num_cells_posterior=1, seed=3)
    pd.testing.assert_frame_equal(again, frame)
    all_cells = fitted.differential_abundance(sample_key="donor", num_cells_posterior=40)
    pd.testing.assert_frame_equal(all_cells, fitted.differential_abundance(sample_key="donor"))


def test_cells_of_a_sample_are_chosen_without_replacement(fitted):
    """39 of 40 leave one out, so that the density is that of all less that of one."""
    mean, _ = fitted.get_latent_representation(return_dist=True)
    members = np.flatnonzero(fitted.adata.obs["donor"] == "d1")
    frame = fitted.differential_abundance(sample_key="donor", num_cells_posterior=39, seed=0)
    left_out = [log_density(fitted, np.delete(members, i), mean) for i in range(40)]
    assert np.abs(left_out - frame["d1"].to_numpy()).max(1).min() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({}, ArgumentTypeError, ["sample_key", "None"]),
        ({"sample_key": 3}, ArgumentTypeError, ["sample_key", "3"]),
        ({"sample_key": "doner"}, MissingColumnError, ["'doner'", "sample_key", "'donor'"]),
        ({"sample_key": "donor", "dof": 0}, OptionError, ["dof"]),
        ({"sample_key": "donor", "dof": "three"}, ArgumentTypeError, ["dof", "'three'"]),
        ({"sample_key": "donor", "num_cells_posterior": 0}, OptionError, ["num_cells_posterior"]),
        (
            {"sample_key": "donor", "num_cells_posterior": 1.5},
            ArgumentTypeError,
            ["num_cells_posterior"],
        ),
        ({"sample_key": "donor", "batch_size": -1}, OptionError, ["batch_size"]),
        ({"sample_key": "donor", "seed": "one"}, ArgumentTypeError, ["seed"]),
    ],
)
def test_bad_input_to_differential_abundance(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.differential_abundance(**arguments)
    assert "da_log_probs" not in trained.adata.obsm


def test_cells_without_a_sample_are_refused(trained, refused, tiny):
    adata = tiny(n_cells=6)
    adata.obs["sample"] = ["x", None, "y", "y", None, "x"]
    with refused(DataError, "obs['sample']", "sample_key", "2 of 6 cells"):
        trained.differential_abundance(adata, "sample")


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"dof": -1.0}, OptionError, ["dof", "-1.0"]),
        ({"dof": float("nan")}, OptionError, ["dof"]),
        ({"dof": True}, ArgumentTypeError, ["dof", "True"]),
        ({"indices": []}, OptionError, ["indices"]),
        ({"indices": [60]}, OptionError, ["indices", "60"]),
    ],
)
def test_bad_input_to_an_aggregated_posterior(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_aggregated_posterior(**arguments)


def test_an_untrained_model_is_refused(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=8)
    with refused(NotTrainedError, "train()"):
        model.get_aggregated_posterior()
    with refused(NotTrainedError, "train()"):
        model.differential_abundance(sample_key="donor")


def test_samples_of_every_type_are_columns_by_text(fitted, tiny):
    adata = tiny(n_cells=120)
    expected = fitted.differential_abundance(adata, sample_key="batch").to_numpy()
    for values, names in (
        (np.array([1.0, 0.0]), ["1.0", "0.0"]),
        (pd.array([1, 0], "Int64"), ["1", "0"]),
        (np.array([True, False]), ["True", "False"]),
        (np.array([0.5, 1.5], np.float16), ["0.5", "1.5"]),
        (pd.Categorical(["b", "a"], ["a", "c", "b"]), ["b", "a"]),
        (pd.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
    ):
        adata.obs["q"] = pd.Series(values)[np.arange(120) % 2].set_axis(adata.obs_names)
        result = fitted.differential_abundance(adata, sample_key="q")
        assert list(result.columns) == names
        np.testing.assert_array_equal(result, expected)


def test_samples_that_cannot_be_told_are_refused_or_named(fitted, tiny, refused):
    adata = tiny(n_cells=120)
    adata.obs["q"] = np.resize(np.array([1, "1"], object), 120)
    with refused(DataError, "obs['q'] (sample_key)", "same text"):
        fitted.differential_abundance(adata, sample_key="q")
    adata.obs["q"] = np.resize(["NA", "a", "a"], 120)
    with pytest.warns(VivaceWarning, match=r"\(sample_key\) is 'NA' for 40 cells"):
        fitted.differential_abundance(adata, sample_key="q")
    adata.obs["q"] = np.resize([-(2**31), 1], 120)
    with refused(DataError, "obs['q'] (sample_key)", "R's missing integer", "60 of 120"):
        fitted.differential_abundance(adata, sample_key="q")
    adata.obs = pd.concat([adata.obs, adata.obs[["donor"]]], axis=1)
    with refused(DataError, "2 columns named 'donor' (sample_key)"):
        fitted.differential_abundance(adata, sample_key="donor")
