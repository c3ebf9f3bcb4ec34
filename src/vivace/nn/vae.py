"""The variational auto-encoder of scVI, read top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn.decoder import Decoder
from vivace.nn.encoder import Encoder, Posterior
from vivace.ops import Backend, count_nll
from vivace.ops.count_nll import LIKELIHOODS, Activation
from vivace.ops.count_nll.reference import log_scale


@dataclass(frozen=True)
class Dimensions:
    """What the network must know of the data.

    Parameters
    ----------
    n_genes : genes
    n_batches : categories of the batch column
    n_categories : categories of each further categorical covariate
    n_continuous : continuous covariates
    size_factor : the mean is scaled by a size factor instead of the library
    """

    n_genes: int
    n_batches: int = 1
    n_categories: tuple[int, ...] = ()
    n_continuous: int = 0
    size_factor: bool = False

    @property
    def one_hot_sizes(self) -> tuple[int, ...]:
        """Columns of batch and covariates; a single category has none."""
        return tuple(n if n > 1 else 0 for n in (self.n_batches, *self.n_categories))


class Losses(NamedTuple):
    """Means over the cells of a minibatch, nats.

    A tuple, because Lightning Fabric looks for tensors in what a module returns.

    Parameters
    ----------
    loss : Tensor, scalar, reconstruction + kl_weight * kl; differentiable
    reconstruction, kl : Tensors, scalar, detached
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Rates:
    """Parameters of the count likelihood, dense, for n cells x g genes.

    Parameters
    ----------
    scale : Tensor, (n, g), expected expression per unit of library
    mu : Tensor, (n, g), mean molecules before zero inflation
    theta : Tensor, (g,), inverse dispersion; None for "poisson"
    zi_logits : Tensor, (n, g), zero-inflation logits; None unless "zinb"
    """

    scale: Tensor
    mu: Tensor
    theta: Tensor | None
    zi_logits: Tensor | None


class VAE(nn.Module):
    """scVI's network: q(z|x), p(x|z, s), and the objective that joins them.

    Parameters
    ----------
    config : options
    dims : sizes of the data
    backend : implementation of the two hot operations

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    _offsets: Tensor

    def __init__(self, config: ModelConfig, dims: Dimensions, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.dims = dims
        self.backend: Backend = backend
        self.likelihood = LIKELIHOODS[config.gene_likelihood]
        self.activation: Activation = "softplus" if dims.size_factor else "softmax"
        n_onehot = sum(dims.one_hot_sizes)
        self.encoder = Encoder(
            dims.n_genes,
            config.n_hidden,
            config.n_latent,
            config.n_layers,
            n_continuous=dims.n_continuous if config.encode_covariates else 0,
            n_onehot=n_onehot if config.encode_covariates else 0,
            inject=config.deeply_inject_covariates,
            log1p=config.log_variational,
            batch_norm=config.use_batch_norm in ("encoder", "both"),
            layer_norm=config.use_layer_norm in ("encoder", "both"),
            dropout=config.dropout_rate,
        )
        self.decoder = Decoder(
            config.n_latent,
            config.n_hidden,
            dims.n_genes,
            config.n_layers,
            n_continuous=dims.n_continuous,
            n_onehot=n_onehot,
            zero_inflated=self.likelihood.zero_inflated,
            inject=config.deeply_inject_covariates,
            batch_norm=config.use_batch_norm in ("decoder", "both"),
            layer_norm=config.use_layer_norm in ("decoder", "both"),
        )
        sizes = [n for n in dims.one_hot_sizes if n > 0]
        first_columns = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.int64)
        self.register_buffer("_offsets", first_columns, persistent=False)
        self.log_theta = (
            nn.Parameter(torch.randn(dims.n_genes)) if self.likelihood.dispersed else None
        )

    @property
    def device(self) -> torch.device:
        return self.decoder.scale.bias.device

    def encode(self, batch: CountBatch, generator: torch.Generator | None = None) -> Posterior:
        """q(z|x) of the cells."""
        covariates = self._covariates(batch) if self.encoder.uses_covariates else (None, None)
        return self.encoder(batch.counts, *covariates, generator, self.backend)  # type: ignore[no-any-return]

    def nll(self, z_nk: Tensor, batch: CountBatch) -> Tensor:
        """-log p(x|z) of each cell, nats, shape (n,)."""
        return self._nll(z_nk, batch, "none")

    def rates(self, z_nk: Tensor, batch: CountBatch) -> Rates:
        """Parameters of p(x|z) for every gene, dense."""
        hidden_nh = self.decoder(z_nk, *self._covariates(batch))
        log_scale_ng = log_scale(self.decoder.scale(hidden_nh), self.activation)
        return Rates(
            scale=log_scale_ng.exp(),
            mu=(log_scale_ng + self._log_library(batch)[:, None]).exp(),
            theta=None if self.log_theta is None else self.log_theta.exp(),
            zi_logits=None if self.decoder.dropout is None else self.decoder.dropout(hidden_nh),
        )

    def forward(
        self, batch: CountBatch, kl_weight: float, generator: torch.Generator | None = None
    ) -> Losses:
        """The objective on a minibatch, with one draw of z a cell."""
        posterior = self.encode(batch, generator)
        noise_nk = torch.empty_like(posterior.mean).normal_(generator=generator)
        reconstruction = self._nll(posterior.at(noise_nk), batch, "mean")
        kl = posterior.kl().mean()
        return Losses(reconstruction + kl_weight * kl, reconstruction.detach(), kl.detach())

    def _nll(self, z_nk: Tensor, batch: CountBatch, reduction: str) -> Tensor:
        return count_nll(
            batch.counts,
            self.decoder(z_nk, *self._covariates(batch)),
            self.decoder.heads(self.log_theta),
            self._log_library(batch),
            likelihood=self.config.gene_likelihood,
            activation=self.activation,
            reduction=reduction,  # type: ignore[arg-type]
            backend="auto" if self.activation == "softplus" else self.backend,
        )

    def _log_library(self, batch: CountBatch) -> Tensor:
        return (batch.library if batch.size_factor is None else batch.size_factor).log()

    def _covariates(self, batch: CountBatch) -> tuple[Tensor | None, Tensor | None]:
        """Continuous covariates, and one-hot categories side by side: batch first."""
        dtype = self.decoder.scale.bias.dtype
        onehot = None
        if len(self._offsets):
            codes = [batch.batch, *batch.categorical.unbind(1)]
            seen = [c for c, n in zip(codes, self.dims.one_hot_sizes, strict=True) if n > 0]
            columns = torch.stack(seen, dim=1) + self._offsets
            zeros = torch.zeros(
                (len(columns), sum(self.dims.one_hot_sizes)), dtype=dtype, device=columns.device
            )
            onehot = zeros.scatter_(1, columns, 1.0)
        return batch.continuous.to(dtype) if self.dims.n_continuous else None, onehot
