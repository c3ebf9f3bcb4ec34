"""A training step's forward and backward pass as a list of calls, read top to bottom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.batch import CountBatch
from vivace.nn.by_hand.hidden import normed_relu, normed_relu_gradient
from vivace.nn.by_hand.latent import fill_onehot, latent_draw, latent_draw_gradient
from vivace.nn.decoders import MLPDecoder
from vivace.nn.layers import Activation, BatchNorm, Linear, dropout_bits, dropout_threshold
from vivace.nn.vae import VAE
from vivace.ops.count_nll import CountHeads, CountNLLInputs
from vivace.ops.count_nll.cpu import nll_and_gradients
from vivace.ops.runtime.products import product
from vivace.ops.runtime.workspace import Pair, Workspace
from vivace.ops.sparse_linear.cpu import (
    fill_dense,
    log1p,
    product_into,
    weight_gradient_into,
)

_DENSE = 0.25  # share of counts above zero from which a dense product takes less time
_NO_BITS = np.empty((0, 0), np.int16)


def supports(network: VAE) -> bool:
    """Whether the list of calls covers this network: all of it float32, on the CPU, to be trained.

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


class HandStep:
    """Loss and gradients of a network that :func:`supports` accepts.

    Parameters
    ----------
    network
        VAE; its parameters are read at every call, its running statistics moved.

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
    >>> loss, reconstruction, kl = HandStep(network)(batch, kl_weight=0.5)
    >>> torch.equal(loss, reconstruction + 0.5 * kl)
    True
    >>> network.log_theta.grad.shape
    torch.Size([2])
    """

    def __init__(self, network: VAE) -> None:
        encoder, decoder, config = network.encoder, network.decoder, network.config
        assert isinstance(decoder, MLPDecoder)
        self.network = network
        self.log1p = config.log_variational
        self.encoding = _layers(encoder.linears, encoder.activations)
        self.latent = _Linear(encoder.latent)
        self.decoding = _layers(decoder.linears, decoder.activations)
        self.scale = _Linear(decoder.scale)
        self.dropout = None if decoder.dropout is None else _Linear(decoder.dropout)
        self.theta = None if decoder.theta is None else _Linear(decoder.theta)
        self.log_theta = None if network.log_theta is None else network.log_theta.detach()
        self.heads = CountHeads(
            self.scale.weight,
            self.scale.bias,
            self.log_theta,
            None if self.dropout is None else self.dropout.weight,
            None if self.dropout is None else self.dropout.bias,
            None if self.theta is None else self.theta.weight,
            None if self.theta is None else self.theta.bias,
        )
        self.softplus_variance = config.var_activation == "softplus"
        self.n_latent = config.n_latent
        self.n_continuous = network.dims.n_continuous
        self.sizes = np.array(network.one_hot_sizes)
        self.n_onehot = int(self.sizes.sum())
        self.inject = config.deeply_inject_covariates
        self.by_genes = Pair.new(*self.encoding[0].linear.weight.shape)
        self.scratch: dict[int, _Scratch] = {}

    def __call__(
        self, batch: CountBatch, kl_weight: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss, reconstruction and KL, shape (3,); the gradients are left in the parameters.

        The gradients are overwritten by the next call.
        """
        n = batch.n_cells
        here = self.scratch.get(n)
        if here is None:
            here = self.scratch[n] = _Scratch(self, n)
        csr = batch.counts
        indptr, genes = csr.indptr.numpy(), csr.genes.numpy()
        values = (log1p(csr.values) if self.log1p else csr.values).numpy()
        dense_ng = None
        if len(values) > _DENSE * n * csr.n_genes:
            dense_ng, dense = here.memory.pair("counts", n, csr.n_genes)
            fill_dense(dense, indptr, genes, values)

        # forward
        first = self.encoding[0]
        x_nh, x = here.encoded
        if dense_ng is None:
            product_into(x, indptr, genes, values, first.linear.weight_array)
        else:
            x_nh = product(dense_ng, first.linear.weight, out=x_nh)
        last_nh = x_nh
        for i, layer in enumerate(self.encoding):
            if i > 0:
                x_nh = product(last_nh, layer.linear.weight)
            layer.forward(x_nh, generator, here.encoding[i])
            last_nh = layer.out_nh
        heads_nk = product(last_nh, self.latent.weight, self.latent.bias, out=here.heads.tensor)
        if heads_nk is not here.heads.tensor:
            here.heads.tensor.copy_(heads_nk)
        here.noise.tensor.normal_(generator=generator)
        self._fill_covariates(batch, here.inputs)
        kl = latent_draw(
            here.heads.array, here.noise.array, self.softplus_variance, here.inputs.array,
            here.variance.array, here.slope.array,
        )  # fmt: skip
        x_nk = here.inputs.tensor
        for layer, out in zip(self.decoding, here.decoding, strict=True):
            if out.tensor.shape[1] > layer.n_hidden:
                out.tensor[:, layer.n_hidden :] = here.inputs.tensor[:, -self.n_onehot :]
            layer.inputs_nk = x_nk
            layer.forward(product(x_nk, layer.linear.weight), generator, out)
            x_nk = out.tensor

        # the loss, and back to the decoder's last hidden state
        inputs = CountNLLInputs(
            counts=csr,
            hidden_nh=x_nk,
            heads=self._heads(batch),
            log_library_n=self.network.log_library(batch),
            likelihood=self.network.config.gene_likelihood,
            activation=self.network.activation,
        )
        by_nll = nll_and_gradients(inputs, here.weight, results=here.memory)
        self._leave(by_nll.heads)

        # backward
        by_out, by_x = by_nll.hidden_nh, here.by_x.tensor
        for layer in reversed(self.decoding):
            layer.backward(by_out, here.by_x)
            layer.linear.leave(product(layer.inputs_nk.T, by_x), None)
            by_out = product(by_x, layer.linear.weight.T)
        latent_draw_gradient(
            by_out.numpy(), kl_weight / n, here.heads.array, here.noise.array,
            here.variance.array, here.slope.array, here.by_heads.array, here.by_bias.array,
        )  # fmt: skip
        by_heads = here.by_heads.tensor
        self.latent.leave(product(last_nh.T, by_heads), here.by_bias.tensor)
        by_out = product(by_heads, self.latent.weight.T)
        for i in reversed(range(1, len(self.encoding))):
            layer = self.encoding[i]
            layer.backward(by_out, here.by_x)
            layer.linear.leave(product(self.encoding[i - 1].out_nh.T, by_x), None)
            by_out = product(by_x, layer.linear.weight.T)
        first.backward(by_out, here.by_x)
        by_weight_gh, by_weight = self.by_genes
        if dense_ng is None:
            weight_gradient_into(by_weight, indptr, genes, values, here.by_x.array)
        else:
            by_weight_gh = product(dense_ng.T, by_x, out=by_weight_gh)
        first.linear.leave(by_weight_gh, None)

        reconstruction = by_nll.total.item()
        return torch.tensor((reconstruction + kl_weight * kl, reconstruction, kl))

    def _fill_covariates(self, batch: CountBatch, inputs: Pair) -> None:
        """Fill [continuous, one-hot] of [z, continuous, one-hot]."""
        start = self.n_latent
        if self.n_continuous:
            inputs.tensor[:, start : start + self.n_continuous] = batch.continuous
            start += self.n_continuous
        if self.n_onehot:
            codes = batch.batch.numpy(), batch.categorical.numpy()
            fill_onehot(inputs.array, start, self.sizes, *codes)

    def _heads(self, batch: CountBatch) -> CountHeads:
        rows = None if self.log_theta is None else self.network.theta_rows(batch)
        return self.heads if rows is None else replace(self.heads, theta_row_n=rows)

    def _leave(self, by_heads: CountHeads) -> None:
        self.scale.leave(by_heads.scale_hg, by_heads.scale_g)
        if self.dropout is not None:
            self.dropout.leave(by_heads.dropout_hg, by_heads.dropout_g)
        if self.theta is not None:
            self.theta.leave(by_heads.theta_hg, by_heads.theta_bias_g)
        if self.network.log_theta is not None:
            self.network.log_theta.grad = by_heads.log_theta_g


class _Scratch:
    """Arrays of a step of n cells, which the next overwrites."""

    def __init__(self, step: HandStep, n: int) -> None:
        k, first = step.n_latent, step.encoding[0]
        self.memory = Workspace()  # of the loss, and of dense counts
        self.weight = torch.full((n,), 1.0 / n)
        self.encoded, self.by_x = Pair.new(n, first.n_hidden), Pair.new(n, first.n_hidden)
        self.encoding = [Pair.new(n, layer.n_hidden) for layer in step.encoding]
        self.noise, self.variance, self.slope = (Pair.new(n, k) for _ in range(3))
        self.heads, self.by_heads = Pair.new(n, 2 * k), Pair.new(n, 2 * k)
        self.by_bias = Pair.new(2 * k)
        self.inputs = Pair.new(n, k + step.n_continuous + step.n_onehot)
        wider = step.n_onehot if step.inject else 0  # the last layer's are not injected into
        last = step.decoding[-1]
        self.decoding = [
            Pair.new(n, layer.n_hidden + (wider if layer is not last else 0))
            for layer in step.decoding
        ]


class _Linear:
    """A linear map's weight and bias, and where their gradients are left."""

    def __init__(self, linear: Linear) -> None:
        self.parameters = (linear.weight, linear.bias)
        self.weight, self.bias = (p.detach() for p in self.parameters)  # the same memory
        self.weight_array = self.weight.numpy()

    def leave(self, by_weight: Tensor | None, by_bias: Tensor | None) -> None:
        weight, bias = self.parameters
        if by_weight is not None:
            weight.grad = by_weight
        if by_bias is not None:
            bias.grad = by_bias


class _Layer:
    """A hidden layer: its linear map, and what follows it."""

    inputs_nk: Tensor
    out_nh: Tensor

    def __init__(self, linear: Linear, activation: Activation) -> None:
        norm = activation.batch_norm
        assert isinstance(norm, BatchNorm)
        self.norm = norm
        self.linear = _Linear(linear)
        self.bias = self.linear.bias.numpy()
        self.n_hidden = len(self.bias)
        self.dropout = activation.dropout
        self.threshold, self.keep = dropout_threshold(activation.dropout)
        if not self.dropout > 0:
            self.keep = 1.0
        self.weight, self.shift, self.running_mean, self.running_variance = (
            t.detach().numpy()
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        self.tracked = norm.num_batches_tracked.view(1).numpy()
        self.mean, self.inv_std = np.empty((2, self.n_hidden), np.float32)
        self.gradients = tuple(torch.empty(self.n_hidden) for _ in range(3))
        self.by_weight, self.by_shift, self.by_bias = (t.numpy() for t in self.gradients)

    def forward(self, x_nh: Tensor, generator: torch.Generator | None, out: Pair) -> None:
        """Fill the first columns of ``out``."""
        n, h = x_nh.shape
        self.own = n > 1
        bits = dropout_bits((n, h), generator, None).numpy() if self.dropout > 0 else _NO_BITS
        self.x, (self.out_nh, self.out) = x_nh.numpy(), out
        normed_relu(
            self.x, self.bias, self.weight, self.shift, self.running_mean, self.running_variance,
            self.tracked, self.own, self.norm.eps, self.norm.momentum, bits, self.threshold, self.keep,
            self.out, self.mean, self.inv_std,
        )  # fmt: skip

    def backward(self, by_out_nh: Tensor, by_x: Pair) -> None:
        """Leave the gradients of norm and bias; fill that in the product of inputs and weight."""
        normed_relu_gradient(
            self.x, self.out, by_out_nh.numpy(), self.weight, self.mean, self.inv_std, self.own,
            self.keep, by_x.array, self.by_weight, self.by_shift, self.by_bias,
        )  # fmt: skip
        self.norm.weight.grad, self.norm.bias.grad, by_bias = self.gradients
        self.linear.leave(None, by_bias)


def _layers(linears: nn.ModuleList, activations: nn.ModuleList) -> list[_Layer]:
    return [_Layer(a, b) for a, b in zip(linears, activations, strict=True)]  # type: ignore[arg-type]
