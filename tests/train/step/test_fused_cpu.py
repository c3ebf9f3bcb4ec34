"""The fused step compared with autograd through the network that defines it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from budget import Budget
from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import VAE, Dimensions, Posterior
from vivace.nn.layers import dropout_bits
from vivace.ops.count_nll import cpu
from vivace.ops.csr import SparseCounts
from vivace.train.flat import FlatWeights
from vivace.train.step import fused_cpu
from vivace.train.step.fused_cpu import FusedGradients, supports

GENES, HIDDEN, LATENT = 50, 12, 4
SEEDS = range(16)
KL_WEIGHT = 0.3


def cells(seed, n):
    """Every kind of column, for a network that may not use them."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(3 * torch.rand(n, GENES, generator=gen) ** 4, generator=gen)
    x[:, 0] += 1
    return CountBatch(
        counts=SparseCounts.from_dense(x),
        library=x.sum(1),
        batch=torch.randint(3, (n,), generator=gen),
        labels=torch.randint(2, (n,), generator=gen),
        categorical=torch.randint(2, (n, 2), generator=gen),
        continuous=torch.randn(n, 2, generator=gen),
        size_factor=x.sum(1) / 20,
    )


def network(seed, *, size_factor=False, covariates=True, n_batches=3, **options):
    dims = Dimensions(
        GENES,
        n_batches=n_batches,
        n_categories=(2, 2),
        n_continuous=2 if covariates else 0,
        size_factor=size_factor,
        n_labels=2,
    )
    gen = torch.Generator().manual_seed(seed)
    net = VAE(ModelConfig(n_hidden=HIDDEN, n_latent=LATENT, **options), dims)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=gen))
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=gen))
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=gen))
    return net.train()


def get_noise(net, n, seed):
    """The noise that the step samples after the bits of dropout."""
    gen = torch.Generator().manual_seed(seed)
    for after in net.encoder.activations:
        if after.dropout > 0:
            dropout_bits((n, HIDDEN), gen, None)
    return torch.empty(n, LATENT).normal_(generator=gen)


def found_by(net, losses):
    gradients = {name: p.grad for name, p in net.named_parameters()}
    statistics = {k: v for k, v in net.named_buffers() if v.is_floating_point()}
    return {"losses": losses} | gradients | statistics


class Gradients:
    """Kernels of a network, which leave its gradients in ``.grad``."""

    def __init__(self, net):
        weights = FlatWeights(net)
        self.kernels = FusedGradients(weights)
        self.buffer = weights.gradients
        for parameter, gradient in weights.gradient_views():
            parameter.grad = gradient

    def __call__(self, *arguments):
        self.buffer.fill_(torch.nan)
        losses = self.kernels(*arguments)
        self.kernels.collect()
        return losses


def run_kernels(net, batch, seed):
    net = copy.deepcopy(net)
    return found_by(net, Gradients(net)(batch, KL_WEIGHT, torch.Generator().manual_seed(seed)))


def run_autograd(net, batch, seed, dtype, monkeypatch):
    noise = get_noise(net, batch.n_cells, seed).to(dtype)
    net = copy.deepcopy(net).to(dtype)
    net.backend = "reference"
    batch = replace(
        batch,
        counts=replace(batch.counts, values=batch.counts.values.to(dtype)),
        library=batch.library.to(dtype),
        continuous=batch.continuous.to(dtype),
        size_factor=batch.size_factor.to(dtype) if net.dims.size_factor else None,
    )
    with monkeypatch.context() as patch:
        sample_at = Posterior.at  # normal_() gives other numbers in float64
        patch.setattr(Posterior, "at", lambda self, _: sample_at(self, noise))
        losses = net(batch, KL_WEIGHT, torch.Generator().manual_seed(seed))
    losses.loss.backward()
    return found_by(net, torch.stack(losses).detach())


def check(monkeypatch, n=24, seeds=SEEDS, typical=False, **options):
    budget = Budget()
    for seed in seeds:
        net, batch = network(seed, **options), cells(seed, n)
        if not net.dims.size_factor:
            batch = replace(batch, size_factor=None)
        assert supports(net)
        result = run_kernels(net, batch, seed)
        single, exact = (
            run_autograd(net, batch, seed, dtype, monkeypatch)
            for dtype in (torch.float32, torch.float64)
        )
        assert result.keys() == exact.keys()
        for name in exact:
            if n > 1 and name.endswith(".bias") and ".linears." in name:
                assert not result[name].any(), name  # batch norm takes it out: exactly zero
                continue
            budget.add(name, result[name], single[name], exact[name])
    if typical:
        budget.check_typical()
    else:
        budget.check()


@pytest.fixture(autouse=True)
def _sparse_counts(monkeypatch):
    """The product of the first layer is sparse unless a test sets it otherwise."""
    monkeypatch.setattr(fused_cpu, "_DENSE", 1.0)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_gradients_match_autograd_for_each_likelihood(likelihood, share, monkeypatch):
    monkeypatch.setattr(fused_cpu, "_DENSE", share)
    check(monkeypatch, gene_likelihood=likelihood)


OPTIONS = {
    "no covariates": {"covariates": False, "n_batches": 1},
    "no dropout": {"dropout_rate": 0.0},
    "half dropped": {"dropout_rate": 0.5},
    "two layers": {"n_layers": 2},
    "three layers": {"n_layers": 3},
    "two layers, not injected": {"n_layers": 2, "deeply_inject_covariates": False},
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-label": {"dispersion": "gene-label"},
    "gene-cell": {"dispersion": "gene-cell"},
    "size factor": {"size_factor": True},
    "softplus": {"var_activation": "softplus"},
    "raw counts": {"log_variational": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_match_autograd_for_each_option(options, monkeypatch):
    check(monkeypatch, **options)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("n", [1, 2, 3, 131])
def test_gradients_match_autograd_for_any_number_of_cells(n, share, monkeypatch):
    """Two or three cells can be nearly equal, and batch norm then amplifies rounding errors."""
    monkeypatch.setattr(fused_cpu, "_DENSE", share)
    check(monkeypatch, n=n, seeds=range(48 if n < 4 else 8), typical=n in (2, 3))


def test_gradients_match_autograd_in_blocks_of_cells(monkeypatch):
    monkeypatch.setattr(cpu, "_BLOCK_CELLS", 1)
    monkeypatch.setattr(cpu, "_BLOCK_BYTES", 5 * 4 * GENES)
    check(monkeypatch)
    check(monkeypatch, dispersion="gene-cell")
    check(monkeypatch, dispersion="gene-batch")


MANY_CALLS = OPTIONS | {"poisson": {"gene_likelihood": "poisson"}, "nb": {"gene_likelihood": "nb"}}


@pytest.mark.parametrize("options", MANY_CALLS.values(), ids=MANY_CALLS)
def test_what_a_call_leaves_does_not_depend_on_those_before(options):
    """Arrays are reused by the next call with the same number of cells, and by no other step."""
    net, others = network(0, **options), Gradients(network(1, **options))
    repeated = Gradients(net)
    for seed, n in enumerate((24, 7, 24, 1, 7, 24)):
        batch = cells(seed, n)
        if not net.dims.size_factor:
            batch = replace(batch, size_factor=None)
        fresh = run_kernels(net, batch, seed)
        losses = repeated(batch, KL_WEIGHT, torch.Generator().manual_seed(seed))
        others(replace(cells(50 + seed, n), size_factor=batch.size_factor), KL_WEIGHT)
        result = found_by(net, losses)
        assert result.keys() == fresh.keys()
        assert all(torch.equal(result[name], fresh[name]) for name in fresh), n


def test_one_cell_leaves_the_running_statistics(monkeypatch):
    net = network(0)
    before = {k: v.clone() for k, v in net.named_buffers()}
    Gradients(net)(replace(cells(0, 1), size_factor=None), 1.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_minibatches_are_counted():
    net = network(0)
    step = Gradients(net)
    for seed in range(3):
        step(replace(cells(seed, 9), size_factor=None), 1.0, torch.Generator().manual_seed(seed))
    counted = [v.item() for k, v in net.named_buffers() if k.endswith("num_batches_tracked")]
    assert counted == [3, 3]


def test_the_step_sees_parameters_that_were_changed_in_place():
    """As an optimiser and ``load_state_dict`` change them."""
    net, other = network(0), network(1)
    batch = replace(cells(0, 9), size_factor=None)
    step = Gradients(net)
    net.load_state_dict(other.state_dict())
    result = step(batch, 1.0, torch.Generator().manual_seed(0))
    expected = Gradients(other)(batch, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(result, expected)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(("share", "taken"), [(0.2, True), (0.9, False)])
def test_the_dense_product_is_taken_where_many_counts_are_above_zero(share, taken, monkeypatch):
    calls = []
    fill = fused_cpu.fill_dense
    monkeypatch.setattr(fused_cpu, "fill_dense", lambda *a: calls.append(a) or fill(*a))
    monkeypatch.setattr(fused_cpu, "_DENSE", share)
    net, batch = network(0), cells(0, 24)
    assert 0.2 < len(batch.counts.values) / (24 * GENES) < 0.9
    run_kernels(net, replace(batch, size_factor=None), 0)
    assert bool(calls) == taken


def test_a_weight_that_is_nan_makes_the_loss_nan():
    net = network(0)
    with torch.no_grad():
        net.decoder.linears[0].weight[0, 0] = torch.nan
    losses = Gradients(net)(replace(cells(0, 9), size_factor=None), 1.0)
    assert losses[0].isnan()


NOT_COVERED = {
    "latent library": {"use_observed_lib_size": False},
    "logistic normal": {"latent_distribution": "ln"},
    "linear": {"linear_decoder": True},
    "embedding": {"batch_representation": "embedding"},
    "encoded covariates": {"encode_covariates": True},
    "layer norm": {"use_layer_norm": "both"},
    "no batch norm": {"use_batch_norm": "none"},
    "normal": {"gene_likelihood": "normal"},
}


@pytest.mark.parametrize("options", NOT_COVERED.values(), ids=NOT_COVERED)
def test_what_is_not_covered_is_left_to_autograd(options):
    assert not supports(network(0, **options))


def test_other_types_and_the_reference_are_left_to_autograd():
    assert not supports(network(0).double())
    net = network(0)
    net.backend = "reference"
    assert not supports(net)
