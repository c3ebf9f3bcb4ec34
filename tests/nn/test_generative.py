"""The options of the generative model against torch.nn and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import VAE, Dimensions, LinearDecoder, Posterior
from vivace.nn.decoder import LinearHead
from vivace.ops.csr import SparseCounts

N, G, K = 14, 9, 3


def cells(dtype=torch.float64):
    gen = torch.Generator().manual_seed(1)
    x = torch.poisson(2 * torch.rand(N, G, generator=gen), generator=gen) + torch.eye(N, G)
    return CountBatch(
        counts=SparseCounts.from_dense(x.to(dtype)),
        library=x.sum(1).to(dtype),
        batch=torch.arange(N) % 3,
        labels=torch.arange(N) % 2,
        categorical=torch.zeros(N, 0, dtype=torch.int64),
        continuous=torch.randn(N, 1, generator=gen).to(dtype),
    )


def network(dtype=torch.float64, **options):
    config = ModelConfig(**({"n_hidden": 8, "n_latent": K, "dropout_rate": 0.0} | options))
    dims = Dimensions(G, n_batches=3, n_continuous=1, n_labels=2)
    net = VAE(config, dims).to(dtype)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=gen))
    return net


# ---- the linear decoder -----------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_folded_batch_norm_is_batch_norm(training, shift):
    """Values, gradients and running statistics of an explicit batch norm over the genes."""
    gen = torch.Generator().manual_seed(2)
    x = (shift + torch.randn(N, 4, generator=gen)).double().requires_grad_()
    head = LinearHead(4, G, batch_norm=True).double().train(training)
    norm = nn.BatchNorm1d(G, eps=1e-3, momentum=0.01).double().train(training)
    with torch.no_grad():
        for p in (head.batch_norm.weight, head.batch_norm.bias):
            p.copy_(torch.randn(G, generator=gen))
        head.batch_norm.running_mean.copy_(torch.randn(G, generator=gen))
        head.batch_norm.running_var.copy_(torch.rand(G, generator=gen) + 0.5)
    norm.load_state_dict(head.batch_norm.state_dict())
    upstream = torch.randn(N, G, generator=gen).double()

    weight, bias = head(x)
    found = x @ weight + bias
    expected = norm(x @ head.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    ours = (x, head.weight, head.batch_norm.weight, head.batch_norm.bias)
    theirs = (x, head.weight, norm.weight, norm.bias)
    for a, b in zip(
        torch.autograd.grad(found, ours, upstream),
        torch.autograd.grad(expected, theirs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    for name, value in norm.state_dict().items():
        found_value = head.batch_norm.state_dict()[name]
        torch.testing.assert_close(found_value, value, rtol=1e-9, atol=1e-11)


def test_one_cell_takes_the_running_statistics():
    head = LinearHead(4, G, batch_norm=True).train()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    weight, bias = head(x)
    torch.testing.assert_close(x @ weight + bias, head.batch_norm(x @ head.weight))
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_loadings_are_the_change_of_the_logits_along_a_dimension():
    decoder = LinearDecoder(K, G, n_continuous=1, n_onehot=3).double().eval()
    with torch.no_grad():
        decoder.scale.batch_norm.running_var.copy_(torch.rand(G) + 0.5)
        decoder.scale.batch_norm.weight.copy_(torch.randn(G))
    z, covariates = torch.zeros(1, K).double(), torch.ones(1, 4).double()

    def logits(z):
        inputs = decoder(z, covariates[:, :1], covariates[:, 1:])
        heads = decoder.heads(inputs)
        return (inputs @ heads.scale_hg + heads.scale_g)[0]

    jacobian = torch.autograd.functional.jacobian(logits, z)[:, 0]
    torch.testing.assert_close(decoder.scale.loadings(K), jacobian)


# ---- library, latent, variance ----------------------------------------------


def test_kl_from_a_normal_of_its_own():
    gen = torch.Generator().manual_seed(4)
    mean, prior_mean = (torch.randn(N, generator=gen).double() for _ in range(2))
    variance, prior_variance = (torch.rand(N, generator=gen).double() + 0.1 for _ in range(2))
    found = Posterior(mean[:, None], variance[:, None]).kl_from(prior_mean, prior_variance)
    expected = kl_divergence(
        Normal(mean, variance.sqrt()), Normal(prior_mean, prior_variance.sqrt())
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_objective_with_a_latent_library(kl_weight):
    """The KL of the library is not weighted by the warm-up; its prior is that of the batch."""
    net, batch = network(use_observed_lib_size=False), cells()
    net.library_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    net.library_variance.copy_(torch.tensor([0.5, 1.0, 2.0]))
    found = net.train()(batch, kl_weight, torch.Generator().manual_seed(3))
    inference = net.encode(batch)
    gen = torch.Generator().manual_seed(3)
    z_noise = torch.randn(N, K, generator=gen, dtype=torch.float64)
    l_noise = torch.randn(N, 1, generator=gen, dtype=torch.float64)
    q = inference.library
    log_library = q.mean[:, 0] + q.variance[:, 0].sqrt() * l_noise[:, 0]
    reconstruction = net.nll(inference.z.at(z_noise), batch, log_library).mean()
    prior = Normal(
        net.library_mean[batch.batch][:, None], net.library_variance[batch.batch].sqrt()[:, None]
    )
    library_kl = kl_divergence(Normal(q.mean, q.variance.sqrt()), prior).mean()
    kl = inference.z.kl().mean()
    torch.testing.assert_close(found.loss, reconstruction + kl_weight * kl + library_kl)
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.kl, kl + library_kl)


def test_a_logistic_normal_point_lies_on_the_simplex():
    net, batch = network(latent_distribution="ln"), cells()
    draw = torch.randn(N, K, generator=torch.Generator().manual_seed(5)).double()
    point = net.place(draw)
    torch.testing.assert_close(point.sum(1), torch.ones(N).double())
    assert torch.equal(network().place(draw), draw)
    gen = torch.Generator().manual_seed(3)
    found = net.eval()(batch, 1.0, gen)
    posterior = net.encode(batch).z
    noise = torch.randn(N, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = net.nll(posterior.at(noise).softmax(-1), batch).mean()
    torch.testing.assert_close(found.reconstruction, expected)


def test_variance_through_softplus():
    net, batch = network(var_activation="softplus").eval(), cells()
    other = network(var_activation="exp").eval()
    other.load_state_dict(net.state_dict())
    found, by_exp = net.encode(batch).z, other.encode(batch).z
    torch.testing.assert_close(found.mean, by_exp.mean)
    log_variance = (by_exp.variance - 1e-4).log()
    torch.testing.assert_close(found.variance, nn.functional.softplus(log_variance) + 1e-4)


# ---- dispersion, batch ------------------------------------------------------


@pytest.mark.parametrize(
    ("dispersion", "column"), [("gene-batch", "batch"), ("gene-label", "labels")]
)
def test_each_category_has_a_theta_of_its_own(dispersion, column):
    net, batch = network(dispersion=dispersion).eval(), cells()
    theta = net.rates(torch.zeros(N, K).double(), batch).theta
    torch.testing.assert_close(theta, net.log_theta.exp()[getattr(batch, column)])


def test_a_theta_for_each_cell_and_gene():
    net, batch = network(dispersion="gene-cell").eval(), cells()
    assert net.log_theta is None
    z = torch.randn(N, K, generator=torch.Generator().manual_seed(6)).double()
    hidden = net.decoder(z, *net._covariates(batch))
    expected = (hidden @ net.decoder.theta.weight + net.decoder.theta.bias).exp()
    torch.testing.assert_close(net.rates(z, batch).theta, expected)


def test_an_embedded_batch_takes_the_place_of_its_columns():
    options = {"batch_representation": "embedding", "batch_embedding_dim": 2}
    net, batch = network(**options, encode_covariates=True).eval(), cells()
    continuous, onehot = net._covariates(batch)
    assert onehot is None
    expected = torch.cat([batch.continuous, net.batch_embedding.weight[batch.batch]], 1)
    torch.testing.assert_close(continuous, expected)
    assert net.encoder.linears[0].weight.shape[0] == G + 1 + 2
    assert net.decoder.linears[0].weight.shape[0] == K + 1 + 2


@pytest.mark.parametrize("likelihood", ["poisson", "nb"])
def test_nothing_is_made_that_the_likelihood_does_not_use(likelihood):
    names = set(network(gene_likelihood=likelihood).state_dict())
    assert not any("dropout" in name or "theta" in name for name in names - {"log_theta"})
    assert ("log_theta" in names) == (likelihood == "nb")
