"""A training step on the CPU by kernels alone: forward, backward and Adam as a list of calls.

README.md says why, and has the formulas.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.data.batch import CountBatch
from vivace.nn import VAE
from vivace.nn.decoders import MLPDecoder
from vivace.nn.layers import Activation, BatchNorm, Linear, dropout_bits, dropout_threshold
from vivace.ops.count_nll import CountHeads, CountNLLInputs, NLLGradients
from vivace.ops.count_nll.cpu import nll_and_gradients
from vivace.ops.runtime.products import product
from vivace.ops.runtime.workspace import Pair, Workspace
from vivace.ops.sparse_linear.cpu import (
    fill_dense,
    log1p,
    product_into,
    weight_gradient_into,
)
from vivace.train.adam import FusedAdam, Segment
from vivace.train.flat import FlatWeights
from vivace.train.recipe import Recipe
from vivace.train.step.hidden_kernels import backward_hidden, forward_hidden
from vivace.train.step.latent_kernels import backward_latent, fill_onehot, sample_latent

_DENSE = 0.25  # share of counts above zero from which a dense product takes less time
_NO_BITS = np.empty((0, 0), np.int16)


def supports(network: VAE) -> bool:
    """Whether the list of calls covers a network: all of it float32, on the CPU, to be trained.

    It does not cover a latent library, a logistic-normal latent, a linear
    decoder, an embedded batch, covariates in the encoder, layer norm, hidden
    layers without batch norm, and the likelihood "normal".
    """
    config = network.config
    tensors = [*network.parameters(), *network.buffers()]
    return (
        network.backend != "reference"
        and network.likelihood.counts
        and config.latent_distribution == "normal"
        and network.library_encoder is None
        and network.batch_embedding is None
        and not network.encoder.uses_covariates
        and isinstance(network.decoder, MLPDecoder)
        and config.use_batch_norm == "both"
        and config.use_layer_norm == "none"
        and all(t.device.type == "cpu" for t in tensors)
        and all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())
    )


class FusedCpuStep:
    """One step of a network that :func:`supports` accepts.

    Parameters
    ----------
    weights
        The network in flat buffers.
    recipe
        Settings of Adam.
    betas
        Adam's decays.
    """

    def __init__(self, weights: FlatWeights, recipe: Recipe, betas: tuple[float, float]) -> None:
        self._gradients = FusedGradients(weights)
        segments = [
            Segment(s.start, s.stop, *recipe.adam_settings(s.is_matrix)) for s in weights.stretches
        ]
        self._adam = FusedAdam(
            weights.values, weights.gradients, segments, lr=recipe.lr, eps=recipe.eps, betas=betas
        )

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, generator: torch.Generator
    ) -> Tensor:
        """Loss, reconstruction and KL before the move, shape (3,), nats per cell."""
        losses = self._gradients(batch, kl_weight, generator)
        self._adam.lr = lr
        self._adam.step(self._gradients.elsewhere)
        return losses


class FusedGradients:
    """Loss and gradients of a network that :func:`supports` accepts.

    Parameters
    ----------
    weights
        The network in flat buffers. Parameters are read at every call, gradients are
        written, and batch norm's running statistics move.

    Attributes
    ----------
    elsewhere
        Gradients of the last call that are not in the flat buffer, by the number of their
        stretch. A matrix product gives a new tensor, and the optimiser reads it there.

    Examples
    --------
    >>> from vivace.config import ModelConfig
    >>> from vivace.ops.csr import SparseCounts
    >>> from vivace.nn import Dimensions
    >>> counts = SparseCounts.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> codes = torch.zeros(2, dtype=torch.int64)
    >>> batch = CountBatch(
    ...     counts, torch.tensor([2.0, 1.0]), codes, codes, codes[:, None][:, :0], torch.zeros(2, 0)
    ... )
    >>> network = VAE(ModelConfig(n_hidden=8), Dimensions(n_genes=2)).train()
    >>> loss, reconstruction, kl = FusedGradients(FlatWeights(network))(batch, kl_weight=0.5)
    >>> torch.equal(loss, reconstruction + 0.5 * kl)
    True
    """

    def __init__(self, weights: FlatWeights) -> None:
        network = weights.network
        encoder, decoder, config = network.encoder, network.decoder, network.config
        assert isinstance(decoder, MLPDecoder)
        self.network = network
        self.elsewhere: dict[int, Tensor] = {}
        self.log1p = config.log_variational
        self.softplus_variance = config.var_activation == "softplus"
        self.injects = config.deeply_inject_covariates
        self.n_latent = config.n_latent
        self.n_continuous = network.dims.n_continuous
        self.onehot_sizes = np.array(network.one_hot_sizes)
        self.n_onehot = int(self.onehot_sizes.sum())
        self._scratch: dict[int, _Scratch] = {}  # by cells of a minibatch

        places = _places(weights)
        self.encoding = [
            _HiddenLayer(linear, activation, places)  # type: ignore[arg-type]
            for linear, activation in zip(encoder.linears, encoder.activations, strict=True)
        ]
        self.latent = _LinearMap(encoder.latent, places)
        self.decoding = [
            _HiddenLayer(linear, activation, places)  # type: ignore[arg-type]
            for linear, activation in zip(decoder.linears, decoder.activations, strict=True)
        ]
        scale, dropout, theta = decoder.scale, decoder.dropout, decoder.theta
        # the parameters of the loss, and the places of their gradients in the same order
        parameters = [scale.weight, scale.bias, network.log_theta]
        parameters += [None, None] if dropout is None else [dropout.weight, dropout.bias]
        parameters += [None, None] if theta is None else [theta.weight, theta.bias]
        detached: list[Any] = [None if p is None else p.detach() for p in parameters]
        self.heads = CountHeads(*detached)
        self.head_places = [None if p is None else places[p] for p in parameters]

    def __call__(
        self, batch: CountBatch, kl_weight: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss, reconstruction and KL, shape (3,).

        The next call overwrites the gradients, in the buffer and elsewhere.
        """
        n = batch.n_cells
        if n not in self._scratch:
            self._scratch[n] = _Scratch(self, n)
        scratch = self._scratch[n]
        self.elsewhere.clear()

        # ---- forward: the encoder --------------------------------------------------

        csr = batch.counts
        indptr, genes = csr.indptr.numpy(), csr.genes.numpy()
        values = (log1p(csr.values) if self.log1p else csr.values).numpy()
        dense_ng = None
        if len(values) > _DENSE * n * csr.n_genes:
            dense_ng, dense = scratch.workspace.pair("counts", n, csr.n_genes)
            fill_dense(dense, indptr, genes, values)
        first = self.encoding[0]
        x_nh = scratch.encoded.tensor
        if dense_ng is None:
            product_into(scratch.encoded.array, indptr, genes, values, first.linear.weight_array)
        else:
            x_nh = product(dense_ng, first.linear.weight, out=x_nh)
        last_nh = x_nh
        for i, layer in enumerate(self.encoding):
            if i > 0:
                x_nh = product(last_nh, layer.linear.weight)
            layer.forward(x_nh, generator, scratch.encoding[i])
            last_nh = layer.out_nh

        # ---- forward: z is sampled, and the decoder runs on [z, covariates] ----------

        heads_nk = product(last_nh, self.latent.weight, self.latent.bias, out=scratch.heads.tensor)
        if heads_nk is not scratch.heads.tensor:
            scratch.heads.tensor.copy_(heads_nk)
        scratch.noise.tensor.normal_(generator=generator)
        self._fill_covariates(batch, scratch.inputs)
        kl = sample_latent(
            scratch.heads.array, scratch.noise.array, self.softplus_variance, scratch.inputs.array,
            scratch.variance.array, scratch.slope.array,
        )  # fmt: skip
        x_nk = scratch.inputs.tensor
        for layer, out in zip(self.decoding, scratch.decoding, strict=True):
            if out.tensor.shape[1] > layer.n_hidden:  # one-hot covariates enter each layer
                out.tensor[:, layer.n_hidden :] = scratch.inputs.tensor[:, -self.n_onehot :]
            layer.inputs_nk = x_nk
            layer.forward(product(x_nk, layer.linear.weight), generator, out)
            x_nk = out.tensor

        # ---- the loss, with its gradients in the heads and in the last hidden state --

        nll = self._loss(batch, x_nk, scratch)
        for place, gradient in zip(self.head_places, nll.heads.tensors(), strict=False):
            if place is not None and gradient is not None:
                self.elsewhere[place.number] = gradient

        # ---- backward: the decoder ---------------------------------------------------
        # Of each layer's inputs [hidden, covariates], only the first part is passed on.

        grad_out_nh, grad_x = nll.hidden_nh, scratch.grad_x
        for layer in reversed(self.decoding):
            layer.backward(grad_out_nh, grad_x)
            self._multiply_into(layer.linear.grad_weight, layer.inputs_nk.T, grad_x.tensor)
            grad_out_nh = product(grad_x.tensor, layer.linear.weight.T)

        # ---- backward: the latent and the encoder ------------------------------------

        backward_latent(
            grad_out_nh.numpy(), kl_weight / n, scratch.heads.array, scratch.noise.array,
            scratch.variance.array, scratch.slope.array, scratch.grad_heads.array,
            self.latent.grad_bias.array,
        )  # fmt: skip
        grad_heads_nk = scratch.grad_heads.tensor
        self._multiply_into(self.latent.grad_weight, last_nh.T, grad_heads_nk)
        grad_out_nh = product(grad_heads_nk, self.latent.weight.T)
        for i in reversed(range(1, len(self.encoding))):
            layer = self.encoding[i]
            layer.backward(grad_out_nh, grad_x)
            below_nh = self.encoding[i - 1].out_nh
            self._multiply_into(layer.linear.grad_weight, below_nh.T, grad_x.tensor)
            grad_out_nh = product(grad_x.tensor, layer.linear.weight.T)
        first.backward(grad_out_nh, grad_x)
        if dense_ng is None:
            place = first.linear.grad_weight
            weight_gradient_into(place.array, indptr, genes, values, grad_x.array)
        else:
            self._multiply_into(first.linear.grad_weight, dense_ng.T, grad_x.tensor)

        reconstruction = nll.total.item()
        return torch.tensor(
            (reconstruction + kl_weight * kl, reconstruction, kl), dtype=torch.float32
        )

    def collect(self) -> None:
        """Copy the gradients of the last call that are elsewhere into the flat buffer."""
        places = [place for place in self.head_places if place is not None]
        places += [m.grad_weight for m in (self.latent, *self._linear_maps())]
        for place in places:
            if place.number in self.elsewhere:
                place.tensor.copy_(self.elsewhere.pop(place.number))

    def _linear_maps(self) -> list[_LinearMap]:
        return [layer.linear for layer in (*self.encoding, *self.decoding)]

    def _loss(self, batch: CountBatch, hidden_nh: Tensor, scratch: _Scratch) -> NLLGradients:
        """The reconstruction error, mean over the cells, and its gradients."""
        rows = None if self.heads.log_theta_g is None else self.network.theta_rows(batch)
        heads = self.heads if rows is None else replace(self.heads, theta_row_n=rows)
        inputs = CountNLLInputs(
            counts=batch.counts,
            hidden_nh=hidden_nh,
            heads=heads,
            log_library_n=self.network.log_library(batch),
            likelihood=self.network.config.gene_likelihood,
            activation=self.network.activation,
        )
        return nll_and_gradients(inputs, scratch.weight, results=scratch.workspace)

    def _multiply_into(self, place: _Place, a: Tensor, b: Tensor) -> None:
        """Write ``a @ b`` to the place of a gradient, or leave it where the product put it."""
        gradient = product(a, b, out=place.tensor)
        if gradient is not place.tensor:
            self.elsewhere[place.number] = gradient

    def _fill_covariates(self, batch: CountBatch, inputs: Pair) -> None:
        """Fill [continuous, one-hot] of [z, continuous, one-hot]."""
        start = self.n_latent
        if self.n_continuous:
            inputs.tensor[:, start : start + self.n_continuous] = batch.continuous
            start += self.n_continuous
        if self.n_onehot:
            codes = batch.batch.numpy(), batch.categorical.numpy()
            fill_onehot(inputs.array, start, self.onehot_sizes, *codes)


class _Scratch:
    """Arrays of a step of n cells, which the next step of n cells overwrites."""

    def __init__(self, step: FusedGradients, n: int) -> None:
        k, n_first = step.n_latent, step.encoding[0].n_hidden
        self.workspace = Workspace()  # of the loss, and of dense counts
        self.weight = torch.full((n,), 1.0 / n, dtype=torch.float32)
        self.encoded, self.grad_x = Pair.new(n, n_first), Pair.new(n, n_first)
        self.encoding = [Pair.new(n, layer.n_hidden) for layer in step.encoding]
        self.noise, self.variance, self.slope = (Pair.new(n, k) for _ in range(3))
        self.heads, self.grad_heads = Pair.new(n, 2 * k), Pair.new(n, 2 * k)
        self.inputs = Pair.new(n, k + step.n_continuous + step.n_onehot)
        # each layer's output but the last has room for the covariates that enter the next
        room = step.n_onehot if step.injects else 0
        last = step.decoding[-1]
        self.decoding = [
            Pair.new(n, layer.n_hidden + (room if layer is not last else 0))
            for layer in step.decoding
        ]


class _Place:
    """The place of a parameter's gradient in the flat buffer, and the number of its stretch."""

    def __init__(self, number: int, tensor: Tensor) -> None:
        self.number, self.tensor, self.array = number, tensor, tensor.numpy()


def _places(weights: FlatWeights) -> dict[Tensor, _Place]:
    """The place of each parameter's gradient; every parameter is one stretch."""
    number = {stretch.parameter: i for i, stretch in enumerate(weights.stretches)}
    return {p: _Place(number[p], gradient) for p, gradient in weights.gradient_views()}


class _LinearMap:
    """A linear map's weight and bias, and the places of their gradients."""

    def __init__(self, linear: Linear, places: dict[Tensor, _Place]) -> None:
        self.weight, self.bias = linear.weight.detach(), linear.bias.detach()  # the same memory
        self.weight_array, self.bias_array = self.weight.numpy(), self.bias.numpy()
        self.grad_weight, self.grad_bias = places[linear.weight], places[linear.bias]


class _HiddenLayer:
    """A linear map, and the batch norm, ReLU and dropout that follow it."""

    inputs_nk: Tensor  # of the linear map in the last forward pass
    out_nh: Tensor

    def __init__(
        self, linear: Linear, activation: Activation, places: dict[Tensor, _Place]
    ) -> None:
        norm = activation.batch_norm
        assert isinstance(norm, BatchNorm)
        self.norm = norm
        self.linear = _LinearMap(linear, places)
        self.n_hidden = len(self.linear.bias)
        self.drops = activation.dropout > 0
        self.threshold, self.keep_scale = dropout_threshold(activation.dropout)
        if not self.drops:
            self.keep_scale = 1.0
        self.weight, self.shift, self.running_mean, self.running_variance = (
            t.detach().numpy()
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        self.tracked = norm.num_batches_tracked.view(1).numpy()
        self.grad_weight, self.grad_shift = places[norm.weight].array, places[norm.bias].array
        self.mean, self.inv_std = np.empty((2, self.n_hidden), np.float32)

    def forward(self, x_nh: Tensor, generator: torch.Generator | None, out: Pair) -> None:
        """Fill the first columns of ``out`` from the product of inputs and weight."""
        n, h = x_nh.shape
        self.uses_minibatch = n > 1
        bits = dropout_bits((n, h), generator, None).numpy() if self.drops else _NO_BITS
        self.x, (self.out_nh, self.out) = x_nh.numpy(), out
        forward_hidden(
            self.x, self.linear.bias_array, self.weight, self.shift, self.running_mean,
            self.running_variance, self.tracked, self.uses_minibatch, self.norm.eps,
            self.norm.momentum, bits, self.threshold, self.keep_scale, self.out, self.mean,
            self.inv_std,
        )  # fmt: skip

    def backward(self, grad_out_nh: Tensor, grad_x: Pair) -> None:
        """Write the gradients of norm and bias; fill that in the product of inputs and weight."""
        backward_hidden(
            self.x, self.out, grad_out_nh.numpy(), self.weight, self.mean, self.inv_std,
            self.uses_minibatch, self.keep_scale, grad_x.array, self.grad_weight, self.grad_shift,
            self.linear.grad_bias.array,
        )  # fmt: skip
