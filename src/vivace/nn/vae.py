"""The variational auto-encoder of scVI, read top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn.category_rows import CategoryRows, TableRows, one_hot_sizes
from vivace.nn.decoders import Decoder, build_decoder
from vivace.nn.encoder import Encoder, Inference
from vivace.nn.layers import BatchEmbedding, fill, join_columns
from vivace.nn.moments import Moments
from vivace.nn.objective import Losses, negative_elbo
from vivace.nn.surgery import Surgery
from vivace.ops import Backend, CountHeads, count_nll
from vivace.ops.count_nll import LIKELIHOODS, Activation, Reduction
from vivace.ops.count_nll.reference import LOG_THETA_BOUND, log_dispersion, log_scale
from vivace.ops.runtime.products import linear
from vivace.types import F64, I64

_SMALL_VARIANCE = 1e-6
_LEAST_LIBRARY_VARIANCE = 0.01  # with less, the KL of a new network is too large to train with


@dataclass(frozen=True)
class Dimensions:
    """Sizes that the network takes from the data.

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
        Whether a size factor scales the mean in place of the library.
    n_labels
        Categories of the label column.
    """

    n_genes: int
    n_batches: int = 1
    n_categories: tuple[int, ...] = ()
    n_continuous: int = 0
    size_factor: bool = False
    n_labels: int = 1


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
    """scVI's network: q(z|x) and p(x|z, s).

    Parameters
    ----------
    config
        Options.
    dims
        Sizes of the data.
    backend
        Implementation of the two hot operations.
    generator
        Of the initial values; None for torch's global one.

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    library_mean: Tensor
    library_variance: Tensor
    _offsets: Tensor

    def __init__(
        self,
        config: ModelConfig,
        dims: Dimensions,
        backend: Backend = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dims = dims
        self.backend: Backend = backend
        self.surgery: Surgery | None = None  # set in a network for a query
        self.likelihood = LIKELIHOODS[config.gene_likelihood]
        self.activation: Activation = "softplus" if dims.size_factor else "softmax"
        self.category_rows: dict[str, CategoryRows] = {}  # of the tensors of this module itself

        embedded = config.batch_representation == "embedding"
        self.one_hot_sizes = one_hot_sizes((0 if embedded else dims.n_batches, *dims.n_categories))
        n_continuous = dims.n_continuous + (config.batch_embedding_dim if embedded else 0)
        # the order of construction is that of the random initial values
        self.encoder = self._build_encoder(
            n_continuous, config.n_latent, config.n_layers, generator
        )
        latent_library = not (config.use_observed_lib_size or dims.size_factor)
        self.library_encoder = (
            self._build_encoder(n_continuous, 1, 1, generator) if latent_library else None
        )
        self.decoder: Decoder = build_decoder(
            config, dims.n_genes, n_continuous, self.one_hot_sizes, generator
        )
        self.batch_embedding = (
            BatchEmbedding(dims.n_batches, config.batch_embedding_dim, generator)
            if embedded
            else None
        )
        self.log_theta = self._build_log_theta(generator)
        if latent_library:
            self.register_buffer("library_mean", torch.zeros(dims.n_batches, dtype=torch.float32))
            self.register_buffer(
                "library_variance", torch.ones(dims.n_batches, dtype=torch.float32)
            )
            for name in ("library_mean", "library_variance"):
                self.category_rows[name] = TableRows("batch", new_from="initial")

        # first one-hot column of each covariate that has any
        sizes = [n for n in self.one_hot_sizes if n > 0]
        offsets = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.int64)
        self.register_buffer("_offsets", offsets, persistent=False)

    def _build_encoder(
        self, n_continuous: int, n_latent: int, n_layers: int, generator: torch.Generator | None
    ) -> Encoder:
        config = self.config
        reads_covariates = config.encode_covariates
        return Encoder(
            self.dims.n_genes,
            config.n_hidden,
            n_latent,
            n_layers,
            n_continuous=n_continuous if reads_covariates else 0,
            one_hot_sizes=self.one_hot_sizes if reads_covariates else (),
            inject=config.deeply_inject_covariates,
            log1p=config.log_variational,
            batch_norm=config.use_batch_norm in ("encoder", "both"),
            layer_norm=config.use_layer_norm in ("encoder", "both"),
            dropout=config.dropout_rate,
            var_activation=config.var_activation,
            generator=generator,
        )

    def _build_log_theta(self, generator: torch.Generator | None) -> nn.Parameter | None:
        dispersion = self.config.dispersion
        if not self.likelihood.dispersed or dispersion == "gene-cell":
            return None
        if dispersion == "gene":
            shape: tuple[int, ...] = (self.dims.n_genes,)
        else:
            uses_batch = dispersion == "gene-batch"
            self.category_rows["log_theta"] = TableRows("batch" if uses_batch else "label")
            n_rows = self.dims.n_batches if uses_batch else self.dims.n_labels
            shape = (n_rows, self.dims.n_genes)
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32))

    @property
    def device(self) -> torch.device:
        return self.encoder.latent.weight.device

    # ---- starting values from the data ----------------------------------

    def initialise_from_moments(self, moments: Moments) -> None:
        """Start the heads of the decoder and the dispersion at the moments of the counts."""
        self.decoder.initialise_from_moments(moments)
        fill(self.log_theta, moments.log_theta_g)

    def set_library_prior(self, log_library_n: F64, batch_n: I64) -> None:
        """Set the prior of a latent library to the moments of its log in each batch.

        A batch without cells keeps its prior. A batch whose cells all have the same library
        (a single cell, say) takes the variance over all cells. No variance is below 0.01: a
        spread of 10 %.

        Parameters
        ----------
        log_library_n
            Shape (n,), log of the library of each cell.
        batch_n
            Shape (n,), batch codes.
        """
        n_batches = self.dims.n_batches
        n_cells = np.bincount(batch_n, minlength=n_batches)
        present, n_cells = n_cells > 0, np.maximum(n_cells, 1)
        mean = np.bincount(batch_n, log_library_n, minlength=n_batches) / n_cells
        squares = np.square(log_library_n - mean[batch_n])
        variance = np.bincount(batch_n, squares, minlength=n_batches) / n_cells
        overall = log_library_n.var() + _SMALL_VARIANCE
        variance = np.where(variance > _SMALL_VARIANCE, variance, overall)
        variance = np.maximum(variance, _LEAST_LIBRARY_VARIANCE)
        for prior, moment in ((self.library_mean, mean), (self.library_variance, variance)):
            fill(prior, np.where(present, moment, prior.numpy(force=True)))

    # ---- q(z, l | x) ----------------------------------------------------

    def encode(self, batch: CountBatch, generator: torch.Generator | None = None) -> Inference:
        """q(z|x), and q(log l|x) where the library is latent; a stored posterior is returned."""
        if batch.posterior is not None:
            return Inference.from_stored(batch.posterior)
        covariates = self._covariates(batch) if self.encoder.uses_covariates else (None, None)
        inputs = (batch.counts, *covariates, generator, self.backend)
        library = None if self.library_encoder is None else self.library_encoder(*inputs)
        return Inference(self.encoder(*inputs), library)

    def place(self, z_nk: Tensor) -> Tensor:
        """The point that the decoder takes: z, or its softmax for a logistic-normal latent."""
        return z_nk.softmax(-1) if self.config.latent_distribution == "ln" else z_nk

    def library_kl(self, inference: Inference, batch: CountBatch) -> Tensor:
        """KL divergence of q(log l|x) from the prior of the batch, nats, shape (n,).

        Zero where the library is observed.
        """
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
        *,
        reduction: Reduction = "none",
    ) -> Tensor:
        """-log p(x|z, l) of each cell, nats, shape (n,).

        Parameters
        ----------
        point_nk
            Shape (n, k), what the decoder takes (:meth:`place`).
        batch
            Cells.
        log_library_n
            Shape (n,); None for :meth:`log_library`.
        reduction
            "none", or "sum" or "mean" over cells.
        """
        hidden_nh, heads = self._decode(point_nk, batch)
        return count_nll(
            batch.counts,
            hidden_nh,
            heads,
            self.log_library(batch) if log_library_n is None else log_library_n,
            likelihood=self.config.gene_likelihood,
            activation=self.activation,
            reduction=reduction,
            backend=self.backend if self.likelihood.counts else "auto",
        )

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

        The softmax of the logits takes one fewer pass over cells x genes than the exponential
        of :meth:`log_scale`. The result may be written to ``out_ng``, because the memory
        pages of a new tensor cost as much as the product.
        """
        hidden_nh, heads = self._decode(point_nk, batch)
        logits_ng = linear(hidden_nh, heads.scale_hg, heads.scale_g)
        if self.activation == "softmax":
            return torch.softmax(logits_ng, -1, out=out_ng)
        return torch.exp(log_scale(logits_ng, self.activation), out=out_ng)

    def log_normaliser(self, point_nk: Tensor, batch: CountBatch) -> Tensor:
        """Log of the divisor of the softmax over genes, shape (n,); 0 if there is no softmax."""
        hidden_nh, heads = self._decode(point_nk, batch)
        if self.activation != "softmax":
            return hidden_nh.new_zeros(len(hidden_nh))
        return linear(hidden_nh, heads.scale_hg, heads.scale_g).logsumexp(-1)

    def partial_scale(
        self, point_nk: Tensor, batch: CountBatch, genes: slice, log_normaliser_n: Tensor
    ) -> Tensor:
        """:meth:`scale` of some genes only, given :meth:`log_normaliser`."""
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
        """Log of the factor of the mean, shape (n,).

        The factor is the size factor, the observed library, or exp of the mean of q(log l|x).
        """
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
        """See :func:`vivace.nn.objective.negative_elbo`."""
        return negative_elbo(self, batch, kl_weight, generator)

    # ---- covariates -----------------------------------------------------

    def _decode(self, point_nk: Tensor, batch: CountBatch) -> tuple[Tensor, CountHeads]:
        """Hidden state and heads, with the dispersion of each cell among the heads."""
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
        """Continuous covariates with the embedding of the batch; one-hot columns, batch first."""
        dtype = self.encoder.latent.weight.dtype
        continuous = batch.continuous.to(dtype) if self.dims.n_continuous else None
        if self.batch_embedding is not None:
            continuous = join_columns(continuous, self.batch_embedding(batch.batch))
        if not len(self._offsets):
            return continuous, None
        codes = [batch.batch, *batch.categorical.unbind(1)]
        read = [c for c, n in zip(codes, self.one_hot_sizes, strict=True) if n > 0]
        columns = torch.stack(read, dim=1) + self._offsets
        shape = (len(columns), sum(self.one_hot_sizes))
        zeros = torch.zeros(shape, dtype=dtype, device=columns.device)
        return continuous, zeros.scatter_(1, columns, 1.0)
