"""Latent variables to the hidden state and heads of the count likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.nn.layers import Activation, BatchNorm, Linear, joined
from vivace.ops import CountHeads
from vivace.ops.runtime.products import linear


class Decoder(nn.Module):
    """Hidden layers from [z, covariates], and the heads over genes.

    The heads' products with the hidden state are left to
    :func:`vivace.ops.count_nll`, which goes from them to the loss in one pass.

    Parameters
    ----------
    n_latent, n_hidden, n_genes, n_layers
        Sizes.
    n_continuous, n_onehot
        Columns of continuous and one-hot covariates.
    zero_inflated
        Whether there is a head for the zero-inflation logits.
    dispersed
        Whether there is a head for the dispersion of each cell and gene.
    inject
        One-hot covariates enter every layer, not only the first.
    batch_norm, layer_norm
        See :class:`~vivace.nn.layers.Activation`; no dropout.

    Shape
    -----
    z (n, k) -> hidden state (n, h).

    Examples
    --------
    >>> decoder = Decoder(n_latent=2, n_hidden=8, n_genes=3, n_layers=1).eval()
    >>> hidden = decoder(torch.zeros(4, 2))
    >>> hidden.shape, decoder.heads(hidden).scale_hg.shape
    (torch.Size([4, 8]), torch.Size([8, 3]))

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        n_genes: int,
        n_layers: int,
        *,
        n_continuous: int = 0,
        n_onehot: int = 0,
        zero_inflated: bool = True,
        dispersed: bool = False,
        inject: bool = True,
        batch_norm: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.inject = inject
        deeper = n_hidden + (n_onehot if inject else 0)
        self.linears = nn.ModuleList(
            Linear(n_latent + n_continuous + n_onehot if i == 0 else deeper, n_hidden)
            for i in range(n_layers)
        )
        self.activations = nn.ModuleList(
            Activation(n_hidden, batch_norm=batch_norm, layer_norm=layer_norm, dropout=0.0)
            for _ in range(n_layers)
        )
        self.scale = Linear(n_hidden, n_genes)
        self.dropout = Linear(n_hidden, n_genes) if zero_inflated else None
        self.theta = Linear(n_hidden, n_genes) if dispersed else None

    def forward(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, onehot_nc: Tensor | None = None
    ) -> Tensor:
        x_nh = joined(z_nk, continuous_nd, onehot_nc)
        for i, (layer, activation) in enumerate(zip(self.linears, self.activations, strict=True)):
            inputs = joined(x_nh, onehot_nc) if i > 0 and self.inject else x_nh
            x_nh = activation(layer(inputs))
        return x_nh

    def heads(self, hidden_nh: Tensor) -> CountHeads:
        """The weights that :func:`vivace.ops.count_nll` takes with this hidden state."""
        return CountHeads(
            self.scale.weight,
            self.scale.bias,
            None,
            None if self.dropout is None else self.dropout.weight,
            None if self.dropout is None else self.dropout.bias,
            None if self.theta is None else self.theta.weight,
            None if self.theta is None else self.theta.bias,
        )


class LinearDecoder(nn.Module):
    """One linear map from [z, covariates] to each head, batch norm after it, no hidden layer.

    Batch norm after a linear map is another linear map: the mean and variance
    of ``x @ weight`` over a minibatch follow from those of x, which has few
    columns.  So the heads that this decoder gives are those of
    :func:`vivace.ops.count_nll` too, and no array of cells x genes is made.

    Parameters
    ----------
    n_latent, n_genes
        Sizes.
    n_continuous, n_onehot
        Columns of continuous and one-hot covariates.
    zero_inflated
        Whether there is a head for the zero-inflation logits.
    dispersed
        Whether there is a head for the dispersion of each cell and gene.
    batch_norm
        Whether batch norm follows; without it the heads have no bias.

    Notes
    -----
    Source: Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169.
    """

    def __init__(
        self,
        n_latent: int,
        n_genes: int,
        *,
        n_continuous: int = 0,
        n_onehot: int = 0,
        zero_inflated: bool = False,
        dispersed: bool = False,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        n_in = n_latent + n_continuous + n_onehot
        self.scale = LinearHead(n_in, n_genes, batch_norm)
        self.dropout = LinearHead(n_in, n_genes, batch_norm) if zero_inflated else None
        self.theta = LinearHead(n_in, n_genes, batch_norm) if dispersed else None

    def forward(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, onehot_nc: Tensor | None = None
    ) -> Tensor:
        return joined(z_nk, continuous_nd, onehot_nc)

    def heads(self, hidden_nh: Tensor) -> CountHeads:
        """The weights that :func:`vivace.ops.count_nll` takes with these inputs."""
        scale_hg, scale_g = self.scale(hidden_nh)
        dropout_hg, dropout_g = _folded(self.dropout, hidden_nh)
        theta_hg, theta_bias_g = _folded(self.theta, hidden_nh)
        return CountHeads(
            scale_hg,
            scale_g,
            dropout_hg=dropout_hg,
            dropout_g=dropout_g,
            theta_hg=theta_hg,
            theta_bias_g=theta_bias_g,
        )


class LinearHead(nn.Module):
    """``batch_norm(x @ weight)`` as the weight and bias of a linear map."""

    def __init__(self, n_in: int, n_genes: int, batch_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(Linear(n_in, n_genes).weight.detach())
        self.batch_norm = BatchNorm(n_genes) if batch_norm else None

    def forward(self, x_nk: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.batch_norm
        if norm is None:
            return self.weight, self.weight.new_zeros(self.weight.shape[1])
        if self.training and norm.uses_minibatch(len(x_nk)):
            mean_k = x_nk.mean(0)
            centred = x_nk - mean_k
            covariance = linear(centred.T, centred) / len(x_nk)
            mean_g = linear(mean_k[None], self.weight)[0]
            variance_g = (linear(covariance, self.weight) * self.weight).sum(0)
            norm.track(mean_g.detach(), variance_g.detach(), len(x_nk))
        else:
            mean_g, variance_g = norm.running_mean, norm.running_var
        factor_g = norm.weight * torch.rsqrt(variance_g + norm.eps)
        return self.weight * factor_g, norm.bias - mean_g * factor_g

    def loadings(self, n_latent: int) -> Tensor:
        """Weight of each latent dimension on each gene, shape (g, k), batch norm included."""
        weight_kg = self.weight[:n_latent]
        if self.batch_norm is None:
            return weight_kg.T
        norm = self.batch_norm
        return (weight_kg * norm.weight * torch.rsqrt(norm.running_var + norm.eps)).T


def _folded(head: LinearHead | None, x_nk: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if head is None else head(x_nk)
