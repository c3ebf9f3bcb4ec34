"""Importance weights of points compared with their definition, one cell and point at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from vivace import SCVI
from vivace.errors import ArgumentTypeError, NotTrainedError, OptionError, ShapeError

CELLS = np.array([4, 17, 30, 9])
N_SAMPLES = 800
OPTIONS = [
    {},
    {"gene_likelihood": "nb"},
    {"latent_distribution": "ln"},
    {"use_observed_lib_size": False},
    {"latent_distribution": "ln", "use_observed_lib_size": False, "gene_likelihood": "poisson"},
]


def named(options):
    return ", ".join(map(str, options.values())) or "default"


@pytest.fixture(scope="module")
def two_dimensional(tiny):
    """A model of two latent dimensions for each set of options, trained once."""
    made = {}

    def make(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            adata = tiny(n_genes=12)  # p(x) of few genes is estimated well with few samples
            SCVI.setup_anndata(adata, batch_key="batch")
            model = SCVI(adata, n_latent=2, n_hidden=16, **options)
            # with the full KL weight so few cells all end at the prior
            model.train(20, seed=0, plan_kwargs={"n_epochs_kl_warmup": 10}, progress=False)
            made[key] = model
        return made[key]

    return make


@pytest.fixture(params=OPTIONS, ids=named)
def model(request, two_dimensional):
    return two_dimensional(**request.param)


@pytest.fixture
def default(two_dimensional):
    return two_dimensional()


@pytest.fixture(scope="module")
def points():
    """Before a softmax: around the origin, where the cells are."""
    return np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)


def log_terms(model, z, cells):
    """Log p(z) + log p(x_a|z), and log q(z|x_a), cells x points, by ``decode`` and torch."""
    mean, variance = model.get_latent_representation(indices=cells, return_dist=True)
    z = torch.from_numpy(z)
    place = z.softmax(-1) if model.config.latent_distribution == "ln" else z
    prior = Normal(0.0, 1.0).log_prob(z).sum(1).double()
    joint, proposal = [], []
    for i, cell in enumerate(cells):
        x = torch.from_numpy(model.adata.X[cell].toarray())
        observed = model.decode(place, indices=[cell] * len(z))
        joint.append(prior + observed.log_prob(x).sum(1).double())
        q = Normal(torch.from_numpy(mean[i]), torch.from_numpy(variance[i]).sqrt())
        proposal.append(q.log_prob(z).sum(1).double())
    return torch.stack(joint).numpy(), torch.stack(proposal).numpy()


def defined(model, z, cells, log_px):
    """Sum over cells of p(z) p(x|z) / p(x), divided by the sum of q(z|x), normalised to 1."""
    joint, proposal = log_terms(model, z, cells)
    log_w = np.logaddexp.reduce(joint - np.asarray(log_px)[:, None], axis=0)
    log_w -= np.logaddexp.reduce(proposal, axis=0)
    w = np.exp(log_w - log_w.max())
    return w / w.sum()


def test_they_are_their_definition_over_one_cell(model, points):
    """Where p(x) cancels, so that nothing is estimated."""
    for cell in CELLS[:2]:
        result = model.get_importance_weights(indices=[cell], zs=points, n_mc_samples=1, seed=0)
        expected = defined(model, points, [cell], [0.0])
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("model", [OPTIONS[0], *OPTIONS[3:]], indirect=True, ids=named)
def test_they_are_their_definition_over_several_cells(model, points):
    """With p(x) of each from samples of its own, to the error of both estimates."""
    result = model.get_importance_weights(indices=CELLS, zs=points, n_mc_samples=N_SAMPLES, seed=0)
    log_px = model.get_marginal_ll(indices=CELLS, n_mc_samples=N_SAMPLES, return_mean=False, seed=1)
    expected = defined(model, points, CELLS, log_px)
    assert expected.max() > 2 * expected.min()
    np.testing.assert_allclose(result, expected, rtol=0.05)
    assert result.dtype == np.float64
    assert result.sum() == pytest.approx(1.0)


@torch.no_grad()
def test_points_near_the_cells_outweigh_those_that_are_far(trained, tmp_path):
    """Where both are proposed as often: q(z|x) is made flat, far beyond them."""
    near, _ = trained.get_latent_representation(return_dist=True)
    far = near + 10.0 * np.sign(near)
    trained.save(tmp_path / "model")
    flat = SCVI.load(tmp_path / "model", trained.adata)
    flat.module.encoder.latent.weight.zero_()
    flat.module.encoder.latent.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 14.0, 14.0, 14.0]))
    points = np.concatenate([near, far])
    weights = flat.get_importance_weights(zs=points, n_mc_samples=20, seed=0)
    assert weights[:60].min() > 1e6 * weights[60:].max()


def test_without_points_they_are_of_one_sample_of_each_cell(default):
    result = default.get_importance_weights(n_mc_samples=5, seed=0)
    assert result.shape == (60,)
    assert (result >= 0).all()
    assert result.sum() == pytest.approx(1.0)
    some = default.get_importance_weights(indices=CELLS, n_mc_samples=5, seed=0)
    assert some.shape == (4,)
    assert some.sum() == pytest.approx(1.0)


def test_truncation_caps_them_at_the_root_of_their_number(default, points):
    """The mean of m weights is 1 / m: all above root(m) / m are cut to it, then scaled."""
    z = np.concatenate([points, [[8.0, -8.0]]])  # q(z|x) falls off faster than p(z|x)
    weighting = {"indices": CELLS, "zs": z, "n_mc_samples": 20, "seed": 0}
    whole = default.get_importance_weights(**weighting)
    cut = default.get_importance_weights(**weighting, truncation=True)
    cap = 1 / np.sqrt(13)
    assert whole[-1] > 2 * cap
    expected = np.minimum(whole, cap)
    np.testing.assert_allclose(cut, expected / expected.sum(), rtol=1e-6)


def test_a_few_cells_speak_for_all(default, points):
    """With ``max_cells=1`` a single cell is used, chosen by the seed."""
    single = [defined(default, points, [cell], [0.0]) for cell in CELLS]
    chosen = set()
    for seed in range(12):
        result = default.get_importance_weights(
            indices=CELLS, zs=points, max_cells=1, n_mc_samples=1, seed=seed
        )
        distance = [np.abs(result - w).max() for w in single]
        assert min(distance) < 1e-5 < sorted(distance)[1]
        chosen.add(int(np.argmin(distance)))
    assert chosen == {0, 1, 2, 3}


def test_cells_are_chosen_without_replacement(default, points):
    """Three of four leave one out; as many as there are, or more, are all of them."""
    log_px = default.get_marginal_ll(
        indices=CELLS, n_mc_samples=N_SAMPLES, return_mean=False, seed=0
    )
    remaining = [np.delete(np.arange(4), i) for i in range(4)]
    expected = [defined(default, points, CELLS[w], log_px[w]) for w in remaining]
    everyone = {"indices": CELLS, "zs": points, "n_mc_samples": 400}
    for seed in range(3):
        result = default.get_importance_weights(**everyone, max_cells=3, seed=seed)
        assert min(np.abs(result / e - 1).max() for e in expected) < 0.08
    everyone |= {"n_mc_samples": 5, "seed": 0}
    all_four = default.get_importance_weights(**everyone)
    for most in (4, 5):
        same = default.get_importance_weights(**everyone, max_cells=most)
        np.testing.assert_array_equal(same, all_four)


def test_they_do_not_depend_on_the_batch_size(model, points):
    weighting = {"zs": torch.from_numpy(points), "n_mc_samples": 3, "seed": 0}
    result = model.get_importance_weights(**weighting)
    small = model.get_importance_weights(**weighting, batch_size=7, n_mc_samples_per_pass=1)
    np.testing.assert_allclose(small, result, rtol=1e-3, atol=1e-12)


def test_the_seed_determines_the_samples(default):
    first, again, other = (
        default.get_importance_weights(indices=CELLS, n_mc_samples=3, seed=s) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@torch.no_grad()
def test_weighted_samples_of_a_group_stand_for_the_exact_posterior(tiny):
    """q(z|x) is made the prior: uniform samples follow it, weighted ones the mean of p(z|x)."""
    adata = tiny(n_cells=200)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_latent=2, n_hidden=16)
    model.train(40, seed=0, progress=False)
    cells = np.flatnonzero(adata.obs["cell_type"] == "NK")[:4]
    model.module.encoder.latent.weight.zero_()
    model.module.encoder.latent.bias.zero_()
    axis = torch.linspace(-5, 5, 41)
    grid = torch.cartesian_prod(axis, axis).numpy()
    rho = model.decode(grid, indices=[0] * len(grid)).scale.double().numpy()
    joint, proposal = log_terms(model, grid, cells)
    exact = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)).mean(0) @ rho
    proposed = np.exp(proposal[0] - np.logaddexp.reduce(proposal[0])) @ rho
    apart = np.linalg.norm(exact - proposed)
    weighting = {"weights": "importance", "n_mc_samples": 200}
    for chosen, expected in ((weighting, exact), ({"weights": "uniform"}, proposed)):
        rows = model.get_normalized_expression(
            indices=cells, n_samples_overall=4_000, seed=0, **chosen
        )
        assert rows.shape == (4_000, 30)
        assert set(rows.index) == set(adata.obs_names[cells])
        result = rows.to_numpy(np.float64).mean(0)
        assert np.linalg.norm(result - expected) < 0.05 * apart


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"zs": np.zeros(3)}, ShapeError, ["(3,)", "(m, 3)"]),
        ({"zs": np.zeros((5, 2))}, ShapeError, ["(5, 2)", "(m, 3)"]),
        ({"zs": np.full((5, 3), np.inf)}, OptionError, ["zs", "not finite"]),
        ({"zs": "origin"}, ArgumentTypeError, ["zs", "'origin'"]),
        ({"zs": np.zeros((0, 3))}, OptionError, ["zs"]),
        ({"zs": np.zeros((0, 3)), "truncation": True}, OptionError, ["zs"]),
        ({"max_cells": 0}, OptionError, ["max_cells"]),
        ({"max_cells": 2.5}, ArgumentTypeError, ["max_cells", "2.5"]),
        ({"n_mc_samples": 0}, OptionError, ["n_mc_samples"]),
        ({"n_mc_samples_per_pass": 0}, OptionError, ["n_mc_samples_per_pass"]),
        ({"truncation": "yes"}, ArgumentTypeError, ["truncation", "'yes'"]),
        ({"indices": []}, OptionError, ["indices"]),
        ({"indices": [], "zs": np.zeros((2, 3))}, OptionError, ["indices"]),
    ],
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_importance_weights(**arguments)


@pytest.mark.parametrize("weights", ["uniform", "importance"])
def test_no_group_has_no_samples(trained, refused, weights):
    with refused(OptionError, "indices"):
        trained.get_normalized_expression(indices=[], n_samples_overall=3, weights=weights)


def test_an_untrained_model_has_no_weights(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(NotTrainedError, "train()"):
        SCVI(adata, n_hidden=8).get_importance_weights()
