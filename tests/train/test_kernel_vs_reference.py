"""Kernel and reference agree over ten steps of Adam on the same cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from budget import Budget
from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import VAE, Dimensions, Posterior
from vivace.ops.csr import SparseCounts
from vivace.train import RECIPES

STEPS, CELLS, GENES, LATENT = 10, 32, 60, 4
SEEDS = range(16)
# Batch norm takes these biases away again: their gradient is rounding and nothing else.
LEFT_OUT = {"encoder.linears.0.bias", "decoder.linears.0.bias"}


def random_inputs(seed):
    """Minibatches, the noise of each, and the weights to start from."""
    gen = torch.Generator().manual_seed(seed)
    batches, noise = [], []
    for _ in range(STEPS):
        x = torch.poisson(3 * torch.rand(CELLS, GENES, generator=gen) ** 4, generator=gen)
        x[:, 0] += 1
        batches.append(
            CountBatch(
                counts=SparseCounts.from_dense(x),
                library=x.sum(1),
                batch=torch.randint(2, (CELLS,), generator=gen),
                labels=torch.zeros(CELLS, dtype=torch.int64),
                categorical=torch.zeros(CELLS, 0, dtype=torch.int64),
                continuous=torch.zeros(CELLS, 0),
            )
        )
        noise.append(torch.randn(CELLS, LATENT, generator=gen))
    return batches, noise, gen


def network(likelihood, backend, dtype, gen, **options):
    dims = Dimensions(GENES, n_batches=2, size_factor=options.pop("size_factor", False))
    config = ModelConfig(
        n_hidden=16, n_latent=LATENT, dropout_rate=0.0, gene_likelihood=likelihood, **options
    )
    net = VAE(config, dims, backend).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=gen))
    return net.train()


def train(monkeypatch, likelihood, backend, dtype, recipe, seed, **options):
    """The losses of ten steps, and every parameter and running statistic after them."""
    batches, noise, gen = random_inputs(seed)
    net = network(likelihood, backend, dtype, gen, **options)
    settings = {k: getattr(recipe, k) for k in ("lr", "eps", "weight_decay")}
    adam = torch.optim.Adam(net.parameters(), fused=True, **settings)
    plain_at, losses = Posterior.at, []
    for batch, sampled in zip(batches, noise, strict=True):
        counts = replace(batch.counts, values=batch.counts.values.to(dtype))
        batch = replace(batch, counts=counts, library=batch.library.to(dtype))
        if net.dims.size_factor:
            batch = replace(batch, size_factor=batch.library / 10)
        # normal_() gives other numbers in float64, so every run is given the same
        monkeypatch.setattr(
            Posterior, "at", lambda self, _, sampled=sampled: plain_at(self, sampled.to(dtype))
        )
        result = net(batch, 0.5)
        result.loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(result.loss.detach())
    monkeypatch.setattr(Posterior, "at", plain_at)
    state = {
        k: v
        for k, v in net.state_dict().items()
        if k not in LEFT_OUT and v.is_floating_point()  # a count of minibatches has no error
    }
    return {"loss": torch.stack(losses)} | state


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_kernel_and_reference_agree_over_ten_steps(likelihood, recipe, monkeypatch):
    check_ten_steps(monkeypatch, likelihood, recipe)


OPTIONS = {
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-cell": {"dispersion": "gene-cell"},
    "softplus": {"size_factor": True},
    "linear": {"linear_decoder": True},
    "logistic normal": {"latent_distribution": "ln"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_kernel_and_reference_agree_with_each_option(options, monkeypatch):
    check_ten_steps(monkeypatch, "zinb", "scvi-tools", **options)


def check_ten_steps(monkeypatch, likelihood, recipe, **options):
    budget = Budget()
    moved = []
    for seed in SEEDS:
        kernel, single, exact = (
            train(monkeypatch, likelihood, backend, dtype, RECIPES[recipe], seed, **options)
            for backend, dtype in (
                ("cpu", torch.float32),
                ("reference", torch.float32),
                ("reference", torch.float64),
            )
        )
        for name in exact:
            budget.add(name, kernel[name], single[name], exact[name])
        start = network(likelihood, "cpu", torch.float32, random_inputs(seed)[2], **options)
        moved += [
            (kernel[k] - v).abs().max().item()
            for k, v in start.named_parameters()
            if k not in LEFT_OUT
        ]
    assert min(moved) > 1e-4  # every parameter has trained
    budget.check_typical()
