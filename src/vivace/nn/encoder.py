"""Counts to the posterior of the latent variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from vivace.config import VarActivation
from vivace.data.batch import StoredPosterior
from vivace.nn.layers import Linear, hidden_layers, join_columns
from vivace.nn.surgery import Role, Surgery
from vivace.ops import Backend, sparse_linear
from vivace.ops.csr import SparseCounts
from vivace.ops.runtime.products import linear
from vivace.ops.sparse_linear import Transform

VARIANCE_FLOOR = 1e-4
LOG_VARIANCE_BOUND = 15.0
_POSITIVE: dict[VarActivation, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "softplus": torch.nn.functional.softplus,
}


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal posterior q(z|x) of n cells.

    Parameters
    ----------
    mean, variance
        Tensor, shape (n, k).
    """

    mean: Tensor
    variance: Tensor

    def at(self, noise_nk: Tensor) -> Tensor:
        """The sample that standard normal ``noise_nk`` gives, shape (n, k)."""
        return torch.addcmul(self.mean, self.variance.sqrt(), noise_nk)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random sample for each cell, shape (n, k)."""
        return self.at(torch.empty_like(self.mean).normal_(generator=generator))

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, nats, shape (n,)."""
        per_dimension = torch.addcmul(self.variance, self.mean, self.mean) - self.variance.log()
        return 0.5 * (per_dimension.sum(-1) - self.mean.shape[-1])

    def kl_from(self, mean_n: Tensor, variance_n: Tensor) -> Tensor:
        """KL divergence from a normal of each cell, for k = 1; nats, shape (n,)."""
        variance, mean = self.variance[:, 0], self.mean[:, 0]
        ratio = variance / variance_n
        return 0.5 * (ratio + (mean - mean_n).square() / variance_n - 1.0 - ratio.log())


@dataclass(frozen=True)
class Inference:
    """The posteriors of n cells.

    Parameters
    ----------
    z
        q(z|x), k dimensions, before the softmax of a logistic-normal latent variable.
    library
        q(log l|x), one dimension; None where the library is observed.
    """

    z: Posterior
    library: Posterior | None

    @classmethod
    def from_stored(cls, stored: StoredPosterior) -> Self:
        """The posteriors that were kept when counts were dropped."""
        library = None
        if stored.library_mean is not None and stored.library_variance is not None:
            library = Posterior(stored.library_mean, stored.library_variance)
        return cls(Posterior(stored.mean, stored.variance), library)


class Encoder(nn.Module):
    """Hidden layers and two heads, mean and log-variance of q(z|x).

    The first layer is sparse: it reads only the nonzero counts of a cell.

    Parameters
    ----------
    n_genes, n_hidden, n_latent, n_layers
        Sizes.
    n_continuous
        Columns of continuous covariates; 0 where the encoder does not read them.
    one_hot_sizes
        One-hot columns of each categorical covariate; empty where the encoder does not read them.
    inject
        Whether one-hot covariates enter every layer, or only the first.
    log1p
        Whether the first layer reads log(1 + counts), or counts.
    batch_norm, layer_norm, dropout
        See :class:`~vivace.nn.layers.Activation`.
    var_activation
        "exp" or "softplus"; the variance is this function of its head, plus 1e-4.
    generator
        Of the initial values; None for torch's global one.

    Shape
    -----
    Counts of n cells x g genes -> Posterior of shape (n, k).

    Examples
    --------
    >>> encoder = Encoder(n_genes=3, n_hidden=8, n_latent=2, n_layers=1).eval()
    >>> counts = SparseCounts.from_dense(torch.tensor([[0.0, 2.0, 1.0]]))
    >>> encoder(counts).mean.shape
    torch.Size([1, 2])

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    def __init__(
        self,
        n_genes: int,
        n_hidden: int,
        n_latent: int,
        n_layers: int,
        *,
        n_continuous: int = 0,
        one_hot_sizes: tuple[int, ...] = (),
        inject: bool = True,
        log1p: bool = True,
        batch_norm: bool = True,
        layer_norm: bool = False,
        dropout: float = 0.1,
        var_activation: VarActivation = "exp",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.positive = _POSITIVE[var_activation]
        self.n_genes = n_genes
        self.uses_covariates = n_continuous + sum(one_hot_sizes) > 0
        self.inject = inject
        self.log1p = log1p
        self.genes_frozen = False  # skips the gradient of the weights of genes
        self.linears, self.activations = hidden_layers(
            n_genes + n_continuous,
            n_hidden,
            n_layers,
            one_hot_sizes,
            inject=inject,
            batch_norm=batch_norm,
            layer_norm=layer_norm,
            dropout=dropout,
            input_role=Role.ENCODER_INPUT,
            norm_role=Role.ENCODER_NORM,
            generator=generator,
        )
        self.latent = Linear(
            n_hidden, 2 * n_latent, generator
        )  # mean, then log-variance: one product

    def forward(
        self,
        counts: SparseCounts,
        continuous_nd: Tensor | None = None,
        one_hot_nc: Tensor | None = None,
        generator: torch.Generator | None = None,
        backend: Backend = "auto",
    ) -> Posterior:
        x_nh = self._first(counts, continuous_nd, one_hot_nc, backend)
        x_nh = self.activations[0](x_nh, generator)
        for i in range(1, len(self.linears)):  # slicing a ModuleList would build a new one
            inputs = (
                join_columns(x_nh, one_hot_nc) if self.uses_covariates and self.inject else x_nh
            )
            x_nh = self.activations[i](self.linears[i](inputs), generator)
        mean, log_variance = self.latent(x_nh).chunk(2, dim=1)
        bounded = log_variance.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
        return Posterior(mean, self.positive(bounded) + VARIANCE_FLOOR)

    def freeze(self, surgery: Surgery) -> None:
        """Compute no gradient of the weights of genes, where the flags freeze them."""
        self.genes_frozen = not surgery.trains(Role.ENCODER_INPUT)

    def _first(
        self,
        counts: SparseCounts,
        continuous_nd: Tensor | None,
        one_hot_nc: Tensor | None,
        backend: Backend,
    ) -> Tensor:
        """First linear map: sparse genes, then dense covariates."""
        first: Linear = self.linears[0]  # type: ignore[assignment]
        transform: Transform = "log1p" if self.log1p else "none"
        weight_gh = first.weight[: self.n_genes] if self.uses_covariates else first.weight
        if self.genes_frozen:
            weight_gh = weight_gh.detach()
        genes_nh = sparse_linear(counts, weight_gh, transform=transform, backend=backend)
        if not self.uses_covariates:
            return genes_nh + first.bias
        covariates = join_columns(continuous_nd, one_hot_nc)
        return genes_nh + linear(covariates, first.weight[self.n_genes :], first.bias)
