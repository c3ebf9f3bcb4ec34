"""The marginal likelihood compared with numerical integration over two latent dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivace import SCVI
from vivace.errors import OptionError

CELLS = np.array([4, 17])
N_SAMPLES = 5_000


@pytest.fixture(scope="module")
def two_dimensional(tiny):
    """A model of two latent dimensions for each set of options, trained once.

    Its q(z, l|x) is widened almost to the prior, which changes the samples but not p(x).
    """
    made = {}

    def make(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            adata = tiny()
            SCVI.setup_anndata(adata, batch_key="batch")
            model = SCVI(adata, n_latent=2, n_hidden=16, **options)
            # with the full KL weight so few cells all end at the prior
            model.train(10, seed=0, plan_kwargs={"n_epochs_kl_warmup": 5}, progress=False)
            _always(model.module.encoder.latent, mean=0.0, variance=1.0)
            if model.module.library_encoder is not None:
                _always(model.module.library_encoder.latent, mean=3.4, variance=0.3)
            made[key] = model
        return made[key]

    return make


@torch.no_grad()
def _always(heads, mean, variance):
    """Make the heads of an encoder give the same for every cell."""
    k = len(heads.bias) // 2
    heads.weight.zero_()
    heads.bias[:k], heads.bias[k:] = mean, np.log(variance)


def integrated(model, cell):
    """Log p(x) of a cell by sums over a grid of z and, where it is latent, of the log library."""
    axis = torch.linspace(-5, 5, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(1)
    log_area = 2 * (axis[1] - axis[0]).log()
    place = model.module.place(grid.float())
    rows = np.full(len(grid), cell)
    library, step = [None], 0.0
    if model.module.library_encoder is not None:
        code = int(model._own_source().batch[cell])
        mean, variance = (
            float(t[code]) for t in (model.module.library_mean, model.module.library_variance)
        )
        points = mean + variance**0.5 * np.linspace(-5, 5, 31)
        prior = torch.distributions.Normal(mean, variance**0.5)
        library = [(np.exp(v), float(prior.log_prob(torch.tensor(v)))) for v in points]
        step = np.log(points[1] - points[0])
    x = torch.from_numpy(model.adata.X[cell].toarray())
    terms = []
    for given in library:
        size, log_p = (None, 0.0) if given is None else given
        observed = model.decode(place, indices=rows, library_size=size)
        terms.append(observed.log_prob(x).double().sum(1) + log_prior + log_p)
    return float(torch.logsumexp(torch.cat(terms), 0) + log_area + step)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "poisson"},
        {"latent_distribution": "ln"},
        {"use_observed_lib_size": False},
        {"latent_distribution": "ln", "use_observed_lib_size": False, "gene_likelihood": "nb"},
    ],
    ids=lambda o: ", ".join(map(str, o.values())) or "default",
)
def test_it_is_the_integral_over_the_latent_variables(two_dimensional, options):
    model = two_dimensional(**options)
    result = model.get_marginal_ll(indices=CELLS, n_mc_samples=N_SAMPLES, return_mean=False, seed=0)
    for cell, value in zip(CELLS, result, strict=True):
        assert value == pytest.approx(integrated(model, cell), abs=0.1)


def test_it_rises_from_the_elbo_with_the_number_of_samples(two_dimensional):
    model = two_dimensional()
    elbo = model.get_elbo(n_samples=200, seed=0)
    result = [
        np.mean([model.get_marginal_ll(n_mc_samples=n, seed=s) for s in range(20)]) for n in (1, 20)
    ]
    assert result[0] == pytest.approx(elbo, abs=0.3)  # of one sample, the ELBO in expectation
    assert result[1] > result[0] + 0.05


def test_samples_do_not_depend_on_the_batch_size_and_rows_keep_their_order(two_dimensional):
    model = two_dimensional()
    result = model.get_marginal_ll(n_mc_samples=5, return_mean=False, seed=0)
    small = model.get_marginal_ll(
        n_mc_samples=5, batch_size=7, return_mean=False, n_mc_samples_per_pass=5, seed=0
    )
    np.testing.assert_allclose(small, result, rtol=1e-5)
    assert model.get_marginal_ll(n_mc_samples=5, seed=0) == pytest.approx(result.mean())


@pytest.mark.parametrize("name", ["n_mc_samples", "n_mc_samples_per_pass"])
def test_no_samples_are_refused(two_dimensional, refused, name):
    with refused(OptionError, name):
        two_dimensional().get_marginal_ll(**{name: 0})
