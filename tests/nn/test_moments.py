"""Moments of counts sampled with known parameters, and the heads initialised from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import G, network

from vivace.data.batch import CountBatch
from vivace.nn import compute_moments
from vivace.ops.csr import SparseCounts

MEAN, THETA = np.array([0.5, 2.0, 8.0]), np.array([0.5, 1.0, 4.0])


def get_batch(x: np.ndarray, library: np.ndarray, size_factor=None) -> CountBatch:
    codes = torch.zeros(len(x), dtype=torch.int64)
    return CountBatch(
        counts=SparseCounts.from_dense(torch.from_numpy(x).float()),
        library=torch.from_numpy(library).float(),
        batch=codes,
        labels=codes,
        categorical=codes[:, None][:, :0],
        continuous=torch.zeros(len(x), 0),
        size_factor=None if size_factor is None else torch.from_numpy(size_factor).float(),
    )


def sampled(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Negative binomial counts of cells whose library differs."""
    generator = np.random.default_rng(0)
    library = generator.uniform(0.5, 1.5, n)
    rate = generator.gamma(THETA, MEAN / THETA, (n, 3)) * library[:, None]
    return generator.poisson(rate).astype(np.float64), library


def test_moments_of_negative_binomial_counts():
    x, library = sampled()
    moments = compute_moments(get_batch(x, library), "nb", "softmax")
    np.testing.assert_allclose(np.exp(moments.scale_logits_g), MEAN, rtol=0.05)
    np.testing.assert_allclose(np.exp(moments.log_theta_g), THETA, rtol=0.15)


def test_the_logits_are_those_of_the_activation():
    x, library = sampled()
    softmax = compute_moments(get_batch(x, np.ones(len(x)), library), "nb", "softmax")
    softplus = compute_moments(get_batch(x, np.ones(len(x)), library), "nb", "softplus")
    np.testing.assert_allclose(np.exp(softmax.log_theta_g), THETA, rtol=0.15)  # by size factors
    scale = torch.nn.functional.softplus(torch.from_numpy(softplus.scale_logits_g))
    np.testing.assert_allclose(scale, np.exp(softmax.scale_logits_g))


def test_a_normal_likelihood_takes_the_standard_deviation():
    generator = np.random.default_rng(1)
    x = generator.normal(3.0, [0.5, 1.0, 2.0], (20_000, 3))
    moments = compute_moments(get_batch(x, np.ones(len(x))), "normal", "softmax")
    np.testing.assert_allclose(np.exp(moments.log_theta_g), [0.5, 1.0, 2.0], rtol=0.03)


@pytest.mark.parametrize("theta", [1e-9, 1e9])
def test_the_dispersion_is_bounded(theta):
    x = np.full((50, 1), 3.0) if theta > 1 else np.eye(50)[:, :1] * 500
    moments = compute_moments(get_batch(x, np.ones(50)), "nb", "softmax")
    assert moments.log_theta_g.tolist() == [4.0 if theta > 1 else -2.0]


@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_a_decoder_fills_its_heads_unless_they_are_frozen(linear):
    options = {"dispersion": "gene-cell", "linear_decoder": linear}
    net = network(**options)
    x = np.arange(10.0 * G).reshape(10, G)
    moments = compute_moments(get_batch(x, x.sum(1)), "zinb", "softmax")
    decoder = net.decoder
    biases = [
        head.batch_norm.bias if linear else head.bias
        for head in (decoder.scale, decoder.dropout, decoder.theta)
    ]
    biases[2].requires_grad_(False)
    frozen = biases[2].clone()
    net.initialise_from_moments(moments)
    np.testing.assert_allclose(biases[0].detach(), moments.scale_logits_g)
    assert (biases[1] == -3.0).all()
    assert torch.equal(biases[2], frozen)


def test_every_row_of_the_dispersion_starts_at_the_moments():
    net = network(dispersion="gene-batch")
    x = np.arange(10.0 * G).reshape(10, G)
    moments = compute_moments(get_batch(x, x.sum(1)), "zinb", "softmax")
    net.initialise_from_moments(moments)
    for row in net.log_theta.detach():
        np.testing.assert_allclose(row, moments.log_theta_g)
