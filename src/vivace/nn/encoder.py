"""Counts to the posterior of the latent variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivace.config import VarActivation
from vivace.nn.layers import Activation, Linear, joined
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
    """A diagonal normal posterior q(z|x) for n cells.

    Parameters
    ----------
    mean, variance
        Tensor, shape (n, k).
    """

    mean: Tensor
    variance: Tensor

    def at(self, noise_nk: Tensor) -> Tensor:
        """The draw that standard normal ``noise_nk`` gives, shape (n, k)."""
        return torch.addcmul(self.mean, self.variance.sqrt(), noise_nk)

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, nats, shape (n,)."""
        per_dimension = torch.addcmul(self.variance, self.mean, self.mean) - self.variance.log()
        return 0.5 * (per_dimension.sum(-1) - self.mean.shape[-1])

    def kl_from(self, mean_n: Tensor, variance_n: Tensor) -> Tensor:
        """KL divergence from normals with their own moments, where k is 1; nats, shape (n,)."""
        variance, mean = self.variance[:, 0], self.mean[:, 0]
        ratio = variance / variance_n
        return 0.5 * (ratio + (mean - mean_n).square() / variance_n - 1.0 - ratio.log())


class Encoder(nn.Module):
    """Hidden layers and two heads, mean and log-variance, of q(z|x).

    The first layer is sparse: it reads only the genes that a cell has counts of.

    Parameters
    ----------
    n_genes, n_hidden, n_latent, n_layers
        Sizes.
    n_continuous, n_onehot
        Columns of continuous and one-hot covariates; 0 where the encoder does not see them.
    inject
        One-hot covariates enter every layer, not only the first.
    log1p
        The first layer reads log(1 + counts).
    batch_norm, layer_norm, dropout
        See :class:`~vivace.nn.layers.Activation`.
    var_activation
        "exp" or "softplus": variance = that of its head + 1e-4.

    Shape
    -----
    n cells x g genes of counts -> Posterior of shape (n, k).

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
        n_onehot: int = 0,
        inject: bool = True,
        log1p: bool = True,
        batch_norm: bool = True,
        layer_norm: bool = False,
        dropout: float = 0.1,
        var_activation: VarActivation = "exp",
    ) -> None:
        super().__init__()
        self.positive = _POSITIVE[var_activation]
        self.n_genes = n_genes
        self.uses_covariates = n_continuous + n_onehot > 0
        self.inject = inject
        self.log1p = log1p
        self.genes_frozen = False  # no gradient of the genes' weights is wanted
        deeper = n_hidden + (n_onehot if inject else 0)
        self.linears = nn.ModuleList(
            Linear(n_genes + n_continuous + n_onehot if i == 0 else deeper, n_hidden)
            for i in range(n_layers)
        )
        self.activations = nn.ModuleList(
            Activation(n_hidden, batch_norm=batch_norm, layer_norm=layer_norm, dropout=dropout)
            for _ in range(n_layers)
        )
        self.latent = Linear(n_hidden, 2 * n_latent)  # mean, then log-variance: one product

    def forward(
        self,
        counts: SparseCounts,
        continuous_nd: Tensor | None = None,
        onehot_nc: Tensor | None = None,
        generator: torch.Generator | None = None,
        backend: Backend = "auto",
    ) -> Posterior:
        x_nh = self._first(counts, continuous_nd, onehot_nc, backend)
        x_nh = self.activations[0](x_nh, generator)
        for i in range(1, len(self.linears)):  # a slice of a ModuleList would be built anew
            inputs = joined(x_nh, onehot_nc) if self.uses_covariates and self.inject else x_nh
            x_nh = self.activations[i](self.linears[i](inputs), generator)
        mean, log_variance = self.latent(x_nh).chunk(2, dim=1)
        bounded = log_variance.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
        return Posterior(mean, self.positive(bounded) + VARIANCE_FLOOR)

    def _first(
        self,
        counts: SparseCounts,
        continuous_nd: Tensor | None,
        onehot_nc: Tensor | None,
        backend: Backend,
    ) -> Tensor:
        """First linear map: genes sparse, covariates (which follow them) dense."""
        first: Linear = self.linears[0]  # type: ignore[assignment]
        transform: Transform = "log1p" if self.log1p else "none"
        weight_gh = first.weight[: self.n_genes] if self.uses_covariates else first.weight
        if self.genes_frozen:
            weight_gh = weight_gh.detach()
        genes_nh = sparse_linear(counts, weight_gh, transform=transform, backend=backend)
        if not self.uses_covariates:
            return genes_nh + first.bias
        covariates = joined(continuous_nd, onehot_nc)
        return genes_nh + linear(covariates, first.weight[self.n_genes :], first.bias)
