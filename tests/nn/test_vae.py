"""Encoder and decoder compared with plain torch.nn with the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData
from network_cases import G, N, cells, network
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vivace import SCVI
from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import Dimensions

CASES = {
    "default": {},
    "two layers": {"n_layers": 2},
    "three layers, covariates in the encoder": {"n_layers": 3, "encode_covariates": True},
    "covariates in the first layer only": {
        "n_layers": 2,
        "encode_covariates": True,
        "deeply_inject_covariates": False,
    },
    "layer norm": {"n_layers": 2, "use_layer_norm": "both"},
    "layer norm alone": {"use_layer_norm": "both", "use_batch_norm": "none"},
    "no norm": {"n_layers": 2, "use_batch_norm": "none"},
    "batch norm in the encoder": {"use_batch_norm": "encoder", "use_layer_norm": "decoder"},
    "batch norm in the decoder": {"use_batch_norm": "decoder", "use_layer_norm": "encoder"},
    "counts as they are": {"log_variational": False},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


# ---- the same network in torch.nn -------------------------------------------


def linear(module) -> nn.Linear:
    made = nn.Linear(*module.weight.shape, dtype=torch.float64)
    made.load_state_dict({"weight": module.weight.detach().T, "bias": module.bias.detach()})
    return made


def plain_layers(module, config: ModelConfig, side: str) -> list[nn.Sequential]:
    """Linear, BatchNorm1d, LayerNorm, ReLU, with vivace's weights."""
    layers = []
    for source, source_activation in zip(module.linears, module.activations, strict=True):
        steps = [linear(source)]
        if config.use_batch_norm in (side, "both"):
            norm = nn.BatchNorm1d(config.n_hidden, momentum=0.01, eps=1e-3, dtype=torch.float64)
            norm.load_state_dict(source_activation.batch_norm.state_dict())
            steps.append(norm)
        if config.use_layer_norm in (side, "both"):
            steps.append(nn.LayerNorm(config.n_hidden, elementwise_affine=False))
        layers.append(nn.Sequential(*steps, nn.ReLU()))
    return layers


def run(layers, first: Tensor, categories: Tensor, deeply: bool) -> Tensor:
    x = torch.cat([first, categories], 1)
    for i, layer in enumerate(layers):
        x = layer(torch.cat([x, categories], 1) if i > 0 and deeply else x)
    return x


def covariates(batch: CountBatch) -> tuple[Tensor, Tensor]:
    """Continuous; batch and the second category one-hot (the first has one level)."""
    categories = [one_hot(batch.batch, 3), one_hot(batch.categorical[:, 1], 2)]
    return batch.continuous, torch.cat(categories, 1).double()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@each_case
def test_encoder_matches_torch_nn(options, training):
    net, batch = network(**options), cells()
    config = net.config
    layers = plain_layers(net.encoder, config, "encoder")
    for part in (net, *layers):
        part.train(training)
    x = batch.counts.dense()
    x = torch.log1p(x) if config.log_variational else x
    continuous, categories = covariates(batch)
    nothing = torch.zeros(N, 0, dtype=torch.float64)
    if config.encode_covariates:
        hidden = run(
            layers, torch.cat([x, continuous], 1), categories, config.deeply_inject_covariates
        )
    else:
        hidden = run(layers, x, nothing, deeply=False)
    result = net.encode(batch).z
    close = {"rtol": 1e-10, "atol": 1e-12}
    heads = linear(net.encoder.latent)(hidden)
    torch.testing.assert_close(result.mean, heads[:, : config.n_latent], **close)
    variance = heads[:, config.n_latent :].exp() + 1e-4
    torch.testing.assert_close(result.variance, variance, **close)
    check_running_statistics(net.encoder, layers)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@each_case
def test_decoder_matches_torch_nn(options, training):
    net, batch = network(**options), cells()
    config = net.config
    layers = plain_layers(net.decoder, config, "decoder")
    for part in (net, *layers):
        part.train(training)
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()
    continuous, categories = covariates(batch)
    hidden = run(layers, torch.cat([z, continuous], 1), categories, config.deeply_inject_covariates)
    scale = linear(net.decoder.scale)(hidden).softmax(-1)
    result = net.rates(z, batch)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(result.scale, scale, **close)
    torch.testing.assert_close(result.mu, batch.library[:, None] * scale, **close)
    if config.gene_likelihood == "poisson":
        assert result.theta is None
    else:
        torch.testing.assert_close(result.theta, net.log_theta.exp(), **close)
    if config.gene_likelihood == "zinb":
        torch.testing.assert_close(result.zi_logits, linear(net.decoder.dropout)(hidden), **close)
    else:
        assert result.zi_logits is None
        assert net.decoder.dropout is None
    check_running_statistics(net.decoder, layers)


def check_running_statistics(module, layers):
    """Unchanged in evaluation, updated like torch's in training."""
    for activation, layer in zip(module.activations, layers, strict=True):
        norms = [step for step in layer if isinstance(step, nn.BatchNorm1d)]
        assert len(norms) == isinstance(activation.batch_norm, nn.BatchNorm1d)
        for norm in norms:
            result = activation.batch_norm.state_dict()
            for name, value in norm.state_dict().items():
                torch.testing.assert_close(result[name], value, rtol=1e-10, atol=1e-12)


def test_size_factor_scales_a_softplus():
    dims = Dimensions(n_genes=G, n_batches=3, n_categories=(1, 2), n_continuous=2, size_factor=True)
    net, batch = network(dims).eval(), cells(size_factor=True)
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()
    hidden = net.decoder(z, *covariates(batch))
    scale = nn.functional.softplus(linear(net.decoder.scale)(hidden))
    result = net.rates(z, batch)
    torch.testing.assert_close(result.scale, scale)
    torch.testing.assert_close(result.mu, batch.size_factor[:, None] * scale)
    assert net.nll(z, batch).isfinite().all()


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_nll_is_that_of_the_rates(likelihood):
    net, batch = network(gene_likelihood=likelihood).eval(), cells()
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()
    rates, x = net.rates(z, batch), batch.counts.dense()
    if likelihood == "poisson":
        log_p = torch.distributions.Poisson(rates.mu).log_prob(x)
    else:
        log_p = torch.distributions.NegativeBinomial(
            rates.theta, probs=rates.mu / (rates.mu + rates.theta)
        ).log_prob(x)
    if likelihood == "zinb":
        dropped = rates.zi_logits.sigmoid()
        log_p = torch.where(
            x == 0, (dropped + (1 - dropped) * log_p.exp()).log(), (1 - dropped).log() + log_p
        )
    torch.testing.assert_close(net.nll(z, batch), -log_p.sum(1))


def test_a_network_of_genes_alone_has_no_columns_for_covariates():
    """One batch, no covariates: no columns for them."""
    net = network(Dimensions(n_genes=G), encode_covariates=True).eval()
    assert net.encoder.linears[0].weight.shape == (G, 7)
    assert net.decoder.linears[0].weight.shape == (4, 7)
    batch = cells()
    bare = CountBatch(
        batch.counts,
        batch.library,
        torch.zeros(N).long(),
        batch.labels,
        batch.categorical[:, :0],
        batch.continuous[:, :0],
    )
    assert net(bare, 1.0).loss.isfinite()


# ---- dispersion, batch ------------------------------------------------------


@pytest.mark.parametrize(
    ("dispersion", "column"), [("gene-batch", "batch"), ("gene-label", "labels")]
)
def test_each_category_has_a_theta_of_its_own(dispersion, column):
    net, batch = network(dispersion=dispersion).eval(), cells()
    theta = net.rates(torch.zeros(N, 4).double(), batch).theta
    torch.testing.assert_close(theta, net.log_theta.exp()[getattr(batch, column)])


def test_a_theta_for_each_cell_and_gene():
    net, batch = network(dispersion="gene-cell").eval(), cells()
    assert net.log_theta is None
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(6)).double()
    hidden = net.decoder(z, *net._covariates(batch))
    expected = (hidden @ net.decoder.theta.weight + net.decoder.theta.bias).exp()
    torch.testing.assert_close(net.rates(z, batch).theta, expected)


def test_an_embedded_batch_takes_the_place_of_its_columns():
    dims = Dimensions(n_genes=G, n_batches=3, n_continuous=2)
    options = {"batch_representation": "embedding", "batch_embedding_dim": 2}
    net = network(dims, **options, encode_covariates=True).eval()
    batch = replace(cells(), categorical=torch.zeros(N, 0, dtype=torch.int64))
    continuous, one_hot_nc = net._covariates(batch)
    assert one_hot_nc is None
    expected = torch.cat([batch.continuous, net.batch_embedding.weight[batch.batch]], 1)
    torch.testing.assert_close(continuous, expected)
    assert net.encoder.linears[0].weight.shape[0] == G + 2 + 2
    assert net.decoder.linears[0].weight.shape[0] == 4 + 2 + 2


@pytest.mark.parametrize("likelihood", ["poisson", "nb"])
def test_nothing_is_made_that_the_likelihood_does_not_use(likelihood):
    names = set(network(gene_likelihood=likelihood).state_dict())
    assert not any("dropout" in name or "theta" in name for name in names - {"log_theta"})
    assert ("log_theta" in names) == (likelihood == "nb")


# ---- the prior of the library -----------------------------------------------


def test_the_prior_of_a_latent_library_is_the_moments_of_each_batch():
    net = network(use_observed_lib_size=False)
    mean, variance = net.library_mean.clone(), net.library_variance.clone()
    log_library = np.array([1.0, 2.0, 4.0, 5.0])
    net.set_library_prior(log_library, np.array([0, 0, 0, 2]))
    expected_mean = [7 / 3, mean[1].item(), 5.0]  # no cell is of batch 1
    expected_variance = [14 / 9, variance[1].item(), log_library.var() + 1e-6]  # one of batch 2
    assert net.library_mean.tolist() == pytest.approx(expected_mean)
    assert net.library_variance.tolist() == pytest.approx(expected_variance)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.05])
def test_the_prior_of_a_latent_library_keeps_a_variance_to_train_with(spread):
    net = network(use_observed_lib_size=False)
    log_library = 7.0 + spread * np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
    net.set_library_prior(log_library, np.array([0, 0, 1, 1, 2]))
    assert net.library_variance.tolist() == pytest.approx([0.01] * 3)
    net.set_library_prior(7.0 + 0.2 * np.array([-1.0, 1.0]), np.array([0, 0]))
    assert net.library_variance[0].item() == pytest.approx(0.04)


def test_a_latent_library_of_cells_of_equal_depth_stays_near_it():
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(60, 0.5), 3)[rng.integers(0, 3, 300)]
    adata = AnnData(np.array([rng.multinomial(1000, p) for p in profiles]).astype(np.float32))
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=32, n_latent=3, use_observed_lib_size=False)
    model.train(30, progress=False)
    library = model.get_latent_library_size()
    assert 300 < library.min() < library.max() < 3000
    assert model.get_elbo() > -1000  # of -3,900 with a variance of 1e-6
