"""A training step's forward and backward pass as a list of calls, read top to bottom."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vivace.data.batch import CountBatch
from vivace.nn.by_hand.hidden import normed_relu, normed_relu_gradient
from vivace.nn.by_hand.latent import latent_draw, latent_draw_gradient
from vivace.nn.decoder import Decoder
from vivace.nn.layers import Activation, BatchNorm, Linear, dropout_bits, dropout_threshold
from vivace.nn.vae import VAE
from vivace.ops.count_nll import CountHeads
from vivace.ops.count_nll.autograd import weighted_gradients
from vivace.ops.matmul import product
from vivace.ops.sparse_linear.cpu import sparse_product, sparse_weight_gradient

_NO_BITS = np.empty((0, 0), np.int16)


def supports(network: VAE) -> bool:
    """Whether the list of calls covers this network: all of it float32, on the CPU.

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
        and isinstance(network.decoder, Decoder)
        and config.use_batch_norm == "both"
        and config.use_layer_norm == "none"
        and all(t.device.type == "cpu" for t in tensors)
        and all(t.dtype == torch.float32 for t in network.parameters())
    )


class HandStep:
    """Loss and gradients of a network that :func:`supports` accepts.

    Parameters
    ----------
    network : VAE; its parameters are read at every call, its running statistics moved

    Examples
    --------
    >>> from vivace.config import ModelConfig
    >>> from vivace.data.batch import SparseCounts
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
        assert isinstance(decoder, Decoder)
        self.network = network
        self.encoding = _layers(encoder.linears, encoder.activations)
        self.latent = _Linear(encoder.latent)
        self.decoding = _layers(decoder.linears, decoder.activations)
        self.scale = _Linear(decoder.scale)
        self.dropout = None if decoder.dropout is None else _Linear(decoder.dropout)
        self.theta = None if decoder.theta is None else _Linear(decoder.theta)
        self.softplus_variance = config.var_activation == "softplus"
        self.n_latent = config.n_latent
        self.n_onehot = sum(network.one_hot_sizes)
        self.inject = config.deeply_inject_covariates

    def __call__(
        self, batch: CountBatch, kl_weight: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss, reconstruction and KL, shape (3,); the gradients are left in the parameters."""
        network, n = self.network, batch.n_cells
        csr = batch.counts
        values = torch.log1p(csr.values) if network.config.log_variational else csr.values

        # forward
        x_nh = sparse_product(csr.indptr, csr.genes, values, self.encoding[0].linear.weight)
        for i, layer in enumerate(self.encoding):
            if i > 0:
                x_nh = product(self.encoding[i - 1].out_nh, layer.linear.weight)
            layer.forward(x_nh, generator)
        last_nh = self.encoding[-1].out_nh
        heads_nk = torch.addmm(self.latent.bias, last_nh, self.latent.weight)
        continuous_nd, onehot_nc = network.covariates(batch)
        n_continuous = 0 if continuous_nd is None else continuous_nd.shape[1]
        inputs_nk = torch.empty((n, self.n_latent + n_continuous + self.n_onehot))
        if continuous_nd is not None:
            inputs_nk[:, self.n_latent : self.n_latent + n_continuous] = continuous_nd
        if onehot_nc is not None:
            inputs_nk[:, self.n_latent + n_continuous :] = onehot_nc
        noise_nk = torch.empty((n, self.n_latent)).normal_(generator=generator)
        kl_n, variance_nk, slope_nk = torch.empty(n), *torch.empty((2, n, self.n_latent))
        latent_draw(
            heads_nk.numpy(), noise_nk.numpy(), self.softplus_variance, inputs_nk.numpy(),
            kl_n.numpy(), variance_nk.numpy(), slope_nk.numpy(),
        )  # fmt: skip
        x_nk = inputs_nk
        for i, layer in enumerate(self.decoding):
            deeper = i + 1 < len(self.decoding)
            layer.inputs_nk = x_nk
            wider = self.n_onehot if deeper and self.inject else 0
            layer.forward(product(x_nk, layer.linear.weight), generator, wider)
            x_nk = layer.out_nh
            if wider and onehot_nc is not None:
                x_nk[:, -wider:] = onehot_nc

        # the loss, and back to the decoder's last hidden state
        share = 1.0 / n
        by_nll = weighted_gradients(
            [csr.indptr, csr.genes, csr.values, x_nk],
            self._heads(batch),
            network.log_library(batch),
            torch.full((n,), share),
            network.likelihood.code,
            network.activation == "softplus",
        )
        self._leave(by_nll.heads)

        # backward
        by_out = by_nll.hidden_nh
        for layer in reversed(self.decoding):
            by_x = layer.backward(by_out)
            layer.linear.leave(product(layer.inputs_nk.T, by_x), None)
            by_out = product(by_x, layer.linear.weight.T)
        by_heads = torch.empty_like(heads_nk)
        latent_draw_gradient(
            by_out.numpy(), kl_weight * share, heads_nk.numpy(), noise_nk.numpy(),
            variance_nk.numpy(), slope_nk.numpy(), by_heads.numpy(),
        )  # fmt: skip
        self.latent.leave(product(last_nh.T, by_heads), by_heads.sum(0))
        by_out = product(by_heads, self.latent.weight.T)
        for i in reversed(range(len(self.encoding))):
            layer = self.encoding[i]
            by_x = layer.backward(by_out)
            if i > 0:
                layer.linear.leave(product(self.encoding[i - 1].out_nh.T, by_x), None)
                by_out = product(by_x, layer.linear.weight.T)
            else:
                by_genes = sparse_weight_gradient(csr.indptr, csr.genes, values, by_x, csr.n_genes)
                layer.linear.leave(by_genes, None)

        kl = kl_n.mean()
        return torch.stack((by_nll.total + kl_weight * kl, by_nll.total, kl))

    def _heads(self, batch: CountBatch) -> CountHeads:
        network = self.network
        row = {"gene-batch": batch.batch, "gene-label": batch.labels}.get(network.config.dispersion)
        log_theta = None if network.log_theta is None else network.log_theta.detach()
        dropout, theta = self.dropout, self.theta
        return CountHeads(
            self.scale.weight,
            self.scale.bias,
            log_theta,
            None if dropout is None else dropout.weight,
            None if dropout is None else dropout.bias,
            None if theta is None else theta.weight,
            None if theta is None else theta.bias,
            None if log_theta is None else row,
        )

    def _leave(self, by_heads: CountHeads) -> None:
        self.scale.leave(by_heads.scale_hg, by_heads.scale_g)
        if self.dropout is not None:
            self.dropout.leave(by_heads.dropout_hg, by_heads.dropout_g)
        if self.theta is not None:
            self.theta.leave(by_heads.theta_hg, by_heads.theta_bias_g)
        if self.network.log_theta is not None:
            self.network.log_theta.grad = by_heads.log_theta_g


class _Linear:
    """A linear map's weight and bias, and where their gradients are left."""

    def __init__(self, linear: Linear) -> None:
        self.parameters = (linear.weight, linear.bias)
        self.weight, self.bias = (p.detach() for p in self.parameters)  # the same memory

    def leave(self, by_weight: Tensor | None, by_bias: Tensor | None) -> None:
        weight, bias = self.parameters
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
        self.dropout = activation.dropout
        self.threshold, self.keep = dropout_threshold(activation.dropout)
        self.weight, self.shift, self.running_mean, self.running_variance = (
            t.detach().numpy()
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )

    def forward(self, x_nh: Tensor, generator: torch.Generator | None, wider: int = 0) -> None:
        """Leave ``out_nh``, with ``wider`` columns more that are not filled."""
        n, h = x_nh.shape
        self.own = n > 1
        if self.own:
            self.norm.num_batches_tracked.add_(1)
        bits = dropout_bits((n, h), generator, None).numpy() if self.dropout > 0 else _NO_BITS
        self.x = x_nh.numpy()
        self.out_nh = torch.empty((n, h + wider))
        self.out = self.out_nh.numpy()
        self.mean, self.inv_std = np.empty((2, h), np.float32)
        normed_relu(
            self.x, self.linear.bias.numpy(), self.weight, self.shift, self.running_mean,
            self.running_variance, self.own, self.norm.eps, self.norm.momentum,
            bits, self.threshold, self.keep, self.out, self.mean, self.inv_std,
        )  # fmt: skip

    def backward(self, by_out_nh: Tensor) -> Tensor:
        """Leave the gradients of norm and bias; that in the product of inputs and weight."""
        by_x_nh = torch.empty(self.x.shape)
        by_weight, by_shift, by_bias = torch.empty((3, self.x.shape[1]))
        normed_relu_gradient(
            self.x, self.out, by_out_nh.numpy(), self.weight, self.mean, self.inv_std, self.own,
            self.keep if self.dropout > 0 else 1.0, by_x_nh.numpy(), by_weight.numpy(),
            by_shift.numpy(), by_bias.numpy(),
        )  # fmt: skip
        self.norm.weight.grad, self.norm.bias.grad = by_weight, by_shift
        self.linear.parameters[1].grad = by_bias
        return by_x_nh


def _layers(linears: nn.ModuleList, activations: nn.ModuleList) -> list[_Layer]:
    return [_Layer(a, b) for a, b in zip(linears, activations, strict=True)]  # type: ignore[arg-type]
