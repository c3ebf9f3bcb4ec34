"""ELBO and reconstruction error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivace.errors import OptionError


def test_elbo_is_minus_reconstruction_minus_kl(trained):
    mean, variance = (
        part.astype(float) for part in trained.get_latent_representation(return_dist=True)
    )
    kl = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(1)
    options = {"return_mean": False, "n_samples": 3, "seed": 4}
    error = trained.get_reconstruction_error(**options)["reconstruction_loss"]
    np.testing.assert_allclose(trained.get_elbo(**options), -error - kl, rtol=1e-6)


def test_the_mean_is_over_cells(trained):
    each = trained.get_elbo(return_mean=False, seed=4)
    assert each.shape == (60,)
    assert each.dtype == np.float64
    assert trained.get_elbo(seed=4) == pytest.approx(each.mean(), rel=1e-12)
    error = trained.get_reconstruction_error(seed=4)
    each = trained.get_reconstruction_error(seed=4, return_mean=False)
    assert list(error) == list(each) == ["reconstruction_loss"]
    assert error["reconstruction_loss"] == pytest.approx(each["reconstruction_loss"].mean())


def test_more_samples_give_a_steadier_answer(trained):
    def spread(n_samples):
        values = [
            trained.get_elbo(return_mean=False, n_samples=n_samples, seed=s) for s in range(8)
        ]
        return np.std(values, axis=0).mean()

    assert spread(9) < 0.5 * spread(1)  # a third, were there no noise in the spread itself


def test_the_likelihood_is_that_of_the_decoded_rates(tiny, ready):
    model = ready(gene_likelihood="poisson")
    model.train(1, progress=False)
    with torch.no_grad():
        heads, k = model.module.encoder.latent, model.config.n_latent
        heads.bias[k:] = -30.0  # next to no variance: z is its mean
        heads.weight[:, k:] = 0.0
        batch = model._own_source().gather(np.arange(60))
        rates = model.module.rates(torch.from_numpy(model.get_latent_representation()), batch)
    expected = -torch.distributions.Poisson(rates.mu.double()).log_prob(
        torch.from_numpy(tiny().X.toarray()).double()
    )
    error = model.get_reconstruction_error(return_mean=False, n_samples=5, seed=0)
    np.testing.assert_allclose(error["reconstruction_loss"], expected.sum(1), rtol=0.01)


@pytest.mark.parametrize("method", ["get_elbo", "get_reconstruction_error"])
def test_a_mean_over_no_cells_is_refused(trained, refused, method):
    with refused(OptionError, "no cells", "indices"):
        getattr(trained, method)(indices=[])
