"""The variational auto-encoder of scVI, read top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch, StoredPosterior
from vivace.nn.decoder import Decoder, LinearDecoder
from vivace.nn.encoder import Encoder, Posterior
from vivace.nn.layers import columns_of, joined
from vivace.nn.surgery import Surgery
from vivace.ops import Backend, CountHeads, count_nll
from vivace.ops.count_nll import LIKELIHOODS, Activation
from vivace.ops.count_nll.reference import LOG_THETA_BOUND, log_dispersion, log_scale
from vivace.ops.runtime.products import linear


@dataclass(frozen=True)
class Dimensions:
    """What the network must know of the data.

    Parameters
    ----------
    n_genes
        Genes.
    n_batches
        Categories of the batch column.
    n_categories
        Categories of each further categorical covariate.
    n_continuous
        Continuous covariates.
    size_factor
        The mean is scaled by a size factor instead of the library.
    n_labels
        Categories of the label column.
    """

    n_genes: int
    n_batches: int = 1
    n_categories: tuple[int, ...] = ()
    n_continuous: int = 0
    size_factor: bool = False
    n_labels: int = 1


class Losses(NamedTuple):
    """Means over the cells of a minibatch, nats.

    A tuple, because Lightning Fabric looks for tensors in what a module returns.

    Parameters
    ----------
    loss
        Tensor, scalar, reconstruction + kl_weight * kl; differentiable.
    reconstruction, kl
        Tensors, scalar, detached; kl is that of z and of a latent library.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Inference:
    """What the encoders say about n cells.

    Parameters
    ----------
    z
        Q(z|x), k dimensions; before the softmax of a logistic-normal latent.
    library
        Q(log l|x), one dimension; None where the library is observed.
    """

    z: Posterior
    library: Posterior | None


@dataclass(frozen=True)
class Rates:
    """Parameters of the likelihood, dense, for n cells x g genes.

    Parameters
    ----------
    scale
        Tensor, (n, g), expected expression per unit of library.
    mu
        Tensor, (n, g), mean molecules before zero inflation.
    theta
        Tensor, (g,) or (n, g), inverse dispersion, or the standard deviation of "normal"; None for
        "poisson".
    zi_logits
        Tensor, (n, g), zero-inflation logits; None unless "zinb".
    """

    scale: Tensor
    mu: Tensor
    theta: Tensor | None
    zi_logits: Tensor | None


class VAE(nn.Module):
    """scVI's network: q(z|x), p(x|z, s), and the objective that joins them.

    Parameters
    ----------
    config
        Options.
    dims
        Sizes of the data.
    backend
        Implementation of the two hot operations.

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    library_mean: Tensor
    library_variance: Tensor
    _offsets: Tensor

    def __init__(self, config: ModelConfig, dims: Dimensions, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.dims = dims
        self.backend: Backend = backend
        self.surgery: Surgery | None = None  # what is frozen of a network for a query
        self.likelihood = LIKELIHOODS[config.gene_likelihood]
        self.activation: Activation = "softplus" if dims.size_factor else "softmax"
        embedded = config.batch_representation == "embedding"
        sizes = (0 if embedded else dims.n_batches, *dims.n_categories)
        self.one_hot_sizes = columns_of(sizes)
        n_continuous = dims.n_continuous + (config.batch_embedding_dim if embedded else 0)
        covariates: dict[str, Any] = {
            "n_continuous": n_continuous,
            "n_onehot": sum(self.one_hot_sizes),
        }
        self.encoder = self._encoder(covariates, config.n_latent, config.n_layers)
        latent_library = not (config.use_observed_lib_size or dims.size_factor)
        self.library_encoder = self._encoder(covariates, 1, 1) if latent_library else None
        self.decoder = self._decoder(covariates)
        self.batch_embedding = (
            nn.Embedding(dims.n_batches, config.batch_embedding_dim) if embedded else None
        )
        self.log_theta = self._log_theta()
        if latent_library:
            self.register_buffer("library_mean", torch.zeros(dims.n_batches))
            self.register_buffer("library_variance", torch.ones(dims.n_batches))
        columns = [n for n in self.one_hot_sizes if n > 0]
        offsets = torch.tensor([sum(columns[:i]) for i in range(len(columns))], dtype=torch.int64)
        self.register_buffer("_offsets", offsets, persistent=False)

    def _encoder(self, covariates: dict[str, Any], n_latent: int, n_layers: int) -> Encoder:
        config = self.config
        return Encoder(
            self.dims.n_genes,
            config.n_hidden,
            n_latent,
            n_layers,
            **(covariates if config.encode_covariates else {}),
            inject=config.deeply_inject_covariates,
            log1p=config.log_variational,
            batch_norm=config.use_batch_norm in ("encoder", "both"),
            layer_norm=config.use_layer_norm in ("encoder", "both"),
            dropout=config.dropout_rate,
            var_activation=config.var_activation,
        )

    def _decoder(self, covariates: dict[str, Any]) -> Decoder | LinearDecoder:
        config, family = self.config, self.likelihood
        heads: dict[str, Any] = {
            "zero_inflated": family.zero_inflated,
            "dispersed": family.dispersed and config.dispersion == "gene-cell",
            "batch_norm": config.use_batch_norm in ("decoder", "both"),
        }
        if config.linear_decoder:
            return LinearDecoder(config.n_latent, self.dims.n_genes, **covariates, **heads)
        return Decoder(
            config.n_latent,
            config.n_hidden,
            self.dims.n_genes,
            config.n_layers,
            **covariates,
            **heads,
            inject=config.deeply_inject_covariates,
            layer_norm=config.use_layer_norm in ("decoder", "both"),
        )

    def _log_theta(self) -> nn.Parameter | None:
        if not self.likelihood.dispersed or self.config.dispersion == "gene-cell":
            return None
        rows = {
            "gene": (),
            "gene-batch": (self.dims.n_batches,),
            "gene-label": (self.dims.n_labels,),
        }[self.config.dispersion]
        return nn.Parameter(torch.randn(*rows, self.dims.n_genes))

    @property
    def device(self) -> torch.device:
        return self.decoder.scale.weight.device

    # ---- q(z, l | x) ----------------------------------------------------

    def encode(self, batch: CountBatch, generator: torch.Generator | None = None) -> Inference:
        """q(z|x), and q(l|x) where the library is latent; what is stored is taken as it is."""
        if batch.posterior is not None:
            return _stored(batch.posterior)
        covariates = self._covariates(batch) if self.encoder.uses_covariates else (None, None)
        inputs = (batch.counts, *covariates, generator, self.backend)
        library = None if self.library_encoder is None else self.library_encoder(*inputs)
        return Inference(self.encoder(*inputs), library)

    def place(self, z_nk: Tensor) -> Tensor:
        """A draw of q(z|x) to the point that the decoder sees: its softmax for "ln"."""
        return z_nk.softmax(-1) if self.config.latent_distribution == "ln" else z_nk

    def library_kl(self, inference: Inference, batch: CountBatch) -> Tensor:
        """KL divergence of q(l|x) from its batch's prior, nats, shape (n,); 0 if observed."""
        if inference.library is None:
            return torch.zeros_like(batch.library)
        return inference.library.kl_from(
            self.library_mean[batch.batch], self.library_variance[batch.batch]
        )

    # ---- p(x | z, l) ----------------------------------------------------

    def nll(
        self,
        point_nk: Tensor,
        batch: CountBatch,
        log_library_n: Tensor | None = None,
    ) -> Tensor:
        """-log p(x|z, l) of each cell, nats, shape (n,).

        ``point_nk`` is what the decoder sees (:meth:`place`); ``log_library_n``
        None stands for the observed library or size factor, or the mean of q(l|x).
        """
        return self._nll(point_nk, batch, log_library_n, "none")

    def log_scale(self, point_nk: Tensor, batch: CountBatch) -> Tensor:
        """Log of the expected expression per unit of library, dense, shape (n, g); differentiable."""
        hidden_nh, heads = self._decode(point_nk, batch)
        return log_scale(linear(hidden_nh, heads.scale_hg, heads.scale_g), self.activation)

    def scale(
        self,
        point_nk: Tensor,
        batch: CountBatch,
        out_ng: Tensor | None = None,
    ) -> Tensor:
        """Expected expression per unit of library, dense, shape (n, g).

        The softmax is that of the logits at once, not the exponential of its logarithm:
        one pass over cells x genes less than :meth:`log_scale`.  The result may be written
        to ``out_ng``; pages of a new tensor cost as much as the product.
        """
        hidden_nh, heads = self._decode(point_nk, batch)
        logits_ng = linear(hidden_nh, heads.scale_hg, heads.scale_g)
        if self.activation == "softmax":
            return torch.softmax(logits_ng, -1, out=out_ng)
        return torch.exp(log_scale(logits_ng, self.activation), out=out_ng)

    def log_normaliser(self, point_nk: Tensor, batch: CountBatch) -> Tensor:
        """Log of what the softmax over genes divides by, shape (n,); 0 where there is none."""
        hidden_nh, heads = self._decode(point_nk, batch)
        if self.activation != "softmax":
            return hidden_nh.new_zeros(len(hidden_nh))
        return linear(hidden_nh, heads.scale_hg, heads.scale_g).logsumexp(-1)

    def scale_of(
        self, point_nk: Tensor, batch: CountBatch, genes: slice, log_normaliser_n: Tensor
    ) -> Tensor:
        """:meth:`scale` of a stretch of genes alone, from :meth:`log_normaliser`."""
        hidden_nh, heads = self._decode(point_nk, batch)
        logits_ng = linear(hidden_nh, heads.scale_hg[:, genes], heads.scale_g[genes])
        if self.activation == "softmax":
            return logits_ng.sub_(log_normaliser_n[:, None]).exp_()
        return log_scale(logits_ng, self.activation).exp_()

    def rates(
        self, point_nk: Tensor, batch: CountBatch, log_library_n: Tensor | None = None
    ) -> Rates:
        """Parameters of p(x|z, l) for every gene, dense."""
        hidden_nh, heads = self._decode(point_nk, batch)
        log_scale_ng = log_scale(linear(hidden_nh, heads.scale_hg, heads.scale_g), self.activation)
        if log_library_n is None:
            log_library_n = self.log_library(batch)
        log_theta = log_dispersion(heads, hidden_nh)
        zi_logits = None
        if heads.dropout_hg is not None and heads.dropout_g is not None:
            zi_logits = linear(hidden_nh, heads.dropout_hg, heads.dropout_g)
        return Rates(
            scale=log_scale_ng.exp(),
            mu=(log_scale_ng + log_library_n[:, None]).exp(),
            theta=None
            if log_theta is None
            else log_theta.clamp(-LOG_THETA_BOUND, LOG_THETA_BOUND).exp(),
            zi_logits=zi_logits,
        )

    def log_library(self, batch: CountBatch, inference: Inference | None = None) -> Tensor:
        """Log of what scales the mean: size factor, observed library, or the mean of q(l|x)."""
        if batch.size_factor is not None:
            return batch.size_factor.log()
        if self.library_encoder is None:
            return batch.library.log()
        inference = inference or self.encode(batch)
        assert inference.library is not None
        return inference.library.mean[:, 0]

    # ---- the objective --------------------------------------------------

    def forward(
        self,
        batch: CountBatch,
        kl_weight: float,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """The objective on a minibatch, with one draw of z (and of a latent library) a cell."""
        inference = self.encode(batch, generator)
        point_nk = self.place(_drawn(inference.z, generator))
        kl = inference.z.kl().mean()
        if inference.library is None:
            reconstruction = self._nll(point_nk, batch, self.log_library(batch), "mean")
            loss = reconstruction + kl_weight * kl
        else:
            log_library_n = _drawn(inference.library, generator)[:, 0]
            reconstruction = self._nll(point_nk, batch, log_library_n, "mean")
            library_kl = self.library_kl(inference, batch).mean()
            loss = reconstruction + kl_weight * kl + library_kl
            kl = kl + library_kl
        return Losses(loss, reconstruction.detach(), kl.detach())

    def _nll(
        self,
        point_nk: Tensor,
        batch: CountBatch,
        log_library_n: Tensor | None,
        reduction: str,
    ) -> Tensor:
        hidden_nh, heads = self._decode(point_nk, batch)
        return count_nll(
            batch.counts,
            hidden_nh,
            heads,
            self.log_library(batch) if log_library_n is None else log_library_n,
            likelihood=self.config.gene_likelihood,
            activation=self.activation,
            reduction=reduction,  # type: ignore[arg-type]
            backend=self.backend if self.likelihood.counts else "auto",
        )

    def _decode(self, point_nk: Tensor, batch: CountBatch) -> tuple[Tensor, CountHeads]:
        """Hidden state and heads; what a cell's dispersion depends on is in the heads."""
        hidden_nh = self.decoder(point_nk, *self._covariates(batch))
        heads = self.decoder.heads(hidden_nh)
        if self.log_theta is None:
            return hidden_nh, heads
        row_n = self.theta_rows(batch)
        return hidden_nh, replace(heads, log_theta_g=self.log_theta, theta_row_n=row_n)

    def theta_rows(self, batch: CountBatch) -> Tensor | None:
        """Row of ``log_theta`` of each cell, shape (n,); None where all share one."""
        return {"gene-batch": batch.batch, "gene-label": batch.labels}.get(self.config.dispersion)

    def _covariates(self, batch: CountBatch) -> tuple[Tensor | None, Tensor | None]:
        """Continuous covariates with the embedding of the batch; one-hot ones, batch first."""
        dtype = self.decoder.scale.weight.dtype
        continuous = batch.continuous.to(dtype) if self.dims.n_continuous else None
        if self.batch_embedding is not None:
            continuous = joined(continuous, self.batch_embedding(batch.batch))
        if not len(self._offsets):
            return continuous, None
        codes = [batch.batch, *batch.categorical.unbind(1)]
        seen = [c for c, n in zip(codes, self.one_hot_sizes, strict=True) if n > 0]
        columns = torch.stack(seen, dim=1) + self._offsets
        shape = (len(columns), sum(self.one_hot_sizes))
        zeros = torch.zeros(shape, dtype=dtype, device=columns.device)
        return continuous, zeros.scatter_(1, columns, 1.0)


def _stored(posterior: StoredPosterior) -> Inference:
    library = None
    if posterior.library_mean is not None and posterior.library_variance is not None:
        library = Posterior(posterior.library_mean, posterior.library_variance)
    return Inference(Posterior(posterior.mean, posterior.variance), library)


def _drawn(posterior: Posterior, generator: torch.Generator | None) -> Tensor:
    return posterior.at(torch.empty_like(posterior.mean).normal_(generator=generator))
