"""Encoder, decoder and objective against plain torch.nn, with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import VAE, Dimensions, Posterior
from vivace.nn.layers import dropout_mask
from vivace.ops.csr import SparseCounts

N, G = 12, 9
DIMS = Dimensions(n_genes=G, n_batches=3, n_categories=(1, 2), n_continuous=2)

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


def network(dims=DIMS, *, seed=0, backend="reference", dtype=torch.float64, **options) -> VAE:
    """Every parameter and running statistic random, so that none can be left out unseen."""
    options = {"n_hidden": 7, "n_latent": 4, "dropout_rate": 0.0} | options
    net = VAE(ModelConfig(**options), dims, backend)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.5, generator=gen)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return net.to(dtype)


def cells(n=N, *, seed=1, dtype=torch.float64, size_factor=False) -> CountBatch:
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n, G), 2.0), generator=gen)
    x[:, 0] += 1  # no cell is empty
    return CountBatch(
        counts=SparseCounts.from_dense(x.to(dtype)),
        library=x.sum(1).to(dtype),
        batch=torch.randint(3, (n,), generator=gen),
        labels=torch.zeros(n, dtype=torch.int64),
        categorical=torch.stack([torch.zeros(n).long(), torch.arange(n) % 2], 1),
        continuous=torch.randn(n, 2, generator=gen).to(dtype),
        size_factor=torch.rand(n, generator=gen).to(dtype) + 0.5 if size_factor else None,
    )


# ---- the same network in torch.nn -------------------------------------------


def linear(ours) -> nn.Linear:
    made = nn.Linear(*ours.weight.shape, dtype=torch.float64)
    made.load_state_dict({"weight": ours.weight.detach().T, "bias": ours.bias.detach()})
    return made


def plain_layers(ours, config: ModelConfig, where: str) -> list[nn.Sequential]:
    """Linear, BatchNorm1d, LayerNorm, ReLU, with our weights."""
    layers = []
    for ours_linear, ours_after in zip(ours.linears, ours.activations, strict=True):
        steps = [linear(ours_linear)]
        if config.use_batch_norm in (where, "both"):
            norm = nn.BatchNorm1d(config.n_hidden, momentum=0.01, eps=1e-3, dtype=torch.float64)
            norm.load_state_dict(ours_after.batch_norm.state_dict())
            steps.append(norm)
        if config.use_layer_norm in (where, "both"):
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
def test_encoder(options, training):
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
    found = net.encode(batch).z
    close = {"rtol": 1e-10, "atol": 1e-12}
    heads = linear(net.encoder.latent)(hidden)
    torch.testing.assert_close(found.mean, heads[:, : config.n_latent], **close)
    variance = heads[:, config.n_latent :].exp() + 1e-4
    torch.testing.assert_close(found.variance, variance, **close)
    check_running_statistics(net.encoder, layers)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@each_case
def test_decoder(options, training):
    net, batch = network(**options), cells()
    config = net.config
    layers = plain_layers(net.decoder, config, "decoder")
    for part in (net, *layers):
        part.train(training)
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()
    continuous, categories = covariates(batch)
    hidden = run(layers, torch.cat([z, continuous], 1), categories, config.deeply_inject_covariates)
    scale = linear(net.decoder.scale)(hidden).softmax(-1)
    found = net.rates(z, batch)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.scale, scale, **close)
    torch.testing.assert_close(found.mu, batch.library[:, None] * scale, **close)
    if config.gene_likelihood == "poisson":
        assert found.theta is None
    else:
        torch.testing.assert_close(found.theta, net.log_theta.exp(), **close)
    if config.gene_likelihood == "zinb":
        torch.testing.assert_close(found.zi_logits, linear(net.decoder.dropout)(hidden), **close)
    else:
        assert found.zi_logits is None
        assert net.decoder.dropout is None
    check_running_statistics(net.decoder, layers)


def check_running_statistics(ours, layers):
    """Untouched in evaluation, moved as torch's in training."""
    for activation, layer in zip(ours.activations, layers, strict=True):
        norms = [step for step in layer if isinstance(step, nn.BatchNorm1d)]
        assert len(norms) == isinstance(activation.batch_norm, nn.BatchNorm1d)
        for norm in norms:
            found = activation.batch_norm.state_dict()
            for name, value in norm.state_dict().items():
                torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


def test_size_factor_scales_a_softplus():
    dims = Dimensions(n_genes=G, n_batches=3, n_categories=(1, 2), n_continuous=2, size_factor=True)
    net, batch = network(dims).eval(), cells(size_factor=True)
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).double()
    hidden = net.decoder(z, *covariates(batch))
    scale = nn.functional.softplus(linear(net.decoder.scale)(hidden))
    found = net.rates(z, batch)
    torch.testing.assert_close(found.scale, scale)
    torch.testing.assert_close(found.mu, batch.size_factor[:, None] * scale)
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


def test_nothing_but_genes():
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


# ---- the objective ----------------------------------------------------------


def test_kl_against_torch_distributions():
    gen = torch.Generator().manual_seed(0)
    mean = torch.randn(N, 4, generator=gen).double()
    posterior = Posterior(mean, torch.rand(N, 4, generator=gen).double() + 0.01)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(posterior.mean, posterior.variance.sqrt()), normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), expected.sum(1))


def test_draws_have_mean_and_variance_of_the_posterior():
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 0.25]]))
    noise = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    expected = torch.tensor([[1.0, -2.0], [3.0, -1.5], [-1.0, -1.0]])
    assert torch.equal(posterior.at(noise), expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_objective(kl_weight):
    """Mean over cells of the loss at one draw of z, plus the weighted KL."""
    net, batch = network(), cells()
    found = net.train()(batch, kl_weight, torch.Generator().manual_seed(3))
    posterior = net.encode(batch).z
    noise = torch.randn(N, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    reconstruction = net.nll(posterior.at(noise), batch).mean()
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.kl, posterior.kl().mean())
    torch.testing.assert_close(found.loss, reconstruction + kl_weight * posterior.kl().mean())
    assert not found.reconstruction.requires_grad
    assert not found.kl.requires_grad


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_parameter_has_a_gradient(backend):
    """But the biases that batch norm takes away, whose gradient is rounding."""
    net = network(backend=backend, dtype=torch.float32, n_layers=2, encode_covariates=True)
    net.train()(cells(dtype=torch.float32), 1.0, torch.Generator().manual_seed(3)).loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("bias"), name


# ---- one cell, dropout ------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_cell_trains(backend):
    """By the running statistics, which stay as they are."""
    net = network(backend=backend, dtype=torch.float32).train()
    statistics = {k: v.clone() for k, v in net.named_buffers() if "batch_norm" in k}
    assert len(statistics) == 6
    one = cells(1, dtype=torch.float32)
    losses = net(one, 1.0, torch.Generator().manual_seed(3))
    losses.loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    for name, value in statistics.items():
        assert torch.equal(net.get_buffer(name), value), name
    expected = net.eval()(one, 1.0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(losses.loss, expected.loss)


def test_dropout_is_drawn_from_the_generator_that_is_passed():
    net, batch = network(dropout_rate=0.5).train(), cells()
    before = torch.random.get_rng_state()
    first, again, other = (
        net(batch, 1.0, torch.Generator().manual_seed(seed)).loss for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_stops_in_evaluation():
    net = network(dropout_rate=0.25)
    after = net.encoder.activations[0].train()
    ones = torch.ones(4000, 7, dtype=torch.float64)
    with torch.no_grad():
        after.batch_norm.weight.fill_(0)
        after.batch_norm.bias.fill_(1)
        dropped = after(ones, torch.Generator().manual_seed(6))
        assert torch.equal(after.eval()(ones), ones)
    assert dropped.unique().tolist() == [0.0, 1 / 0.75]
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / ones.numel()) ** 0.5


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_dropout_mask_keeps_the_rate_and_the_mean(rate):
    x = torch.empty(1001, 333)  # not a multiple of four
    mask = dropout_mask(x, rate, torch.Generator().manual_seed(6))
    rounded = min(round(rate * 2**16), 2**16 - 1) / 2**16
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rounded)])
    dropped = (mask == 0).double().mean().item()
    assert dropped == pytest.approx(rounded, abs=5 * (rounded * (1 - rounded) / x.numel()) ** 0.5)
    neighbours = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).double().mean().item()
    assert neighbours == pytest.approx(rounded**2, abs=5 * rounded / x.numel() ** 0.5)


def test_decoder_has_no_dropout():
    assert all(a.dropout == 0 for a in network(dropout_rate=0.9).decoder.activations)
