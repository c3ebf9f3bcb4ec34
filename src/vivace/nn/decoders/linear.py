"""A decoder without hidden layers, whose weights can be read as loadings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.nn.category_rows import OneHotRows
from vivace.nn.layers import BatchNorm, Linear, fill, join_columns
from vivace.nn.moments import Moments
from vivace.nn.surgery import Role
from vivace.ops import CountHeads
from vivace.ops.runtime.products import linear
from vivace.types import F64


class LinearDecoder(nn.Module):
    """One linear map from [z, covariates] to each head, followed by batch norm.

    Batch norm after a linear map is another linear map: the mean and variance of
    ``x @ weight`` over a minibatch follow from those of x, which has few columns.
    Therefore the heads of this decoder are also heads of
    :func:`vivace.ops.count_nll`, and no array of cells x genes is made.

    Parameters
    ----------
    n_latent, n_genes
        Sizes.
    n_continuous
        Columns of continuous covariates.
    one_hot_sizes
        One-hot columns of each categorical covariate.
    zero_inflated
        Whether there is a head for the zero-inflation logits.
    dispersed
        Whether there is a head for the dispersion of each cell and gene.
    batch_norm
        Whether batch norm follows; without it the heads have no bias.
    generator
        Of the initial values; None for torch's global one.

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
        one_hot_sizes: tuple[int, ...] = (),
        zero_inflated: bool = False,
        dispersed: bool = False,
        batch_norm: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()

        def head() -> LinearHead:
            return LinearHead(
                n_latent + n_continuous,
                n_genes,
                one_hot_sizes,
                batch_norm=batch_norm,
                generator=generator,
            )

        self.scale = head()
        self.dropout = head() if zero_inflated else None
        self.theta = head() if dispersed else None

    def forward(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, one_hot_nc: Tensor | None = None
    ) -> Tensor:
        return join_columns(z_nk, continuous_nd, one_hot_nc)

    def heads(self, hidden_nh: Tensor) -> CountHeads:
        """Weights that :func:`vivace.ops.count_nll` takes with these inputs."""
        scale_hg, scale_g = self.scale(hidden_nh)
        dropout_hg, dropout_g = (None, None) if self.dropout is None else self.dropout(hidden_nh)
        theta_hg, theta_bias_g = (None, None) if self.theta is None else self.theta(hidden_nh)
        return CountHeads(
            scale_hg=scale_hg,
            scale_g=scale_g,
            dropout_hg=dropout_hg,
            dropout_g=dropout_g,
            theta_hg=theta_hg,
            theta_bias_g=theta_bias_g,
        )

    def initialise_from_moments(self, moments: Moments) -> None:
        """Start the biases of batch norm at the moments of the counts."""
        self.scale.fill_bias(moments.scale_logits_g)
        if self.dropout is not None:
            self.dropout.fill_bias(moments.zi_logits_g)
        if self.theta is not None:
            self.theta.fill_bias(moments.log_theta_g)


class LinearHead(nn.Module):
    """``batch_norm(x @ weight)`` as the weight and bias of a linear map.

    Parameters
    ----------
    n_in, n_genes
        Inputs before the one-hot columns, and outputs.
    one_hot_sizes
        One-hot columns of each categorical covariate.
    batch_norm
        Whether batch norm follows.
    generator
        Of the initial values.
    """

    role = Role.DECODER_INPUT  # the only layer is the first

    def __init__(
        self,
        n_in: int,
        n_genes: int,
        one_hot_sizes: tuple[int, ...] = (),
        *,
        batch_norm: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        initial = Linear(n_in + sum(one_hot_sizes), n_genes, generator)
        self.weight = nn.Parameter(initial.weight.detach())
        self.batch_norm = BatchNorm(n_genes, Role.DECODER_NORM) if batch_norm else None
        self.category_rows = {"weight": OneHotRows(one_hot_sizes)}

    def forward(self, x_nk: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.batch_norm
        if norm is None:
            return self.weight, self.weight.new_zeros(self.weight.shape[1])
        if self.training and norm.uses_minibatch(len(x_nk)):
            # moments of x @ weight over the minibatch, from those of x
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

    def fill_bias(self, values: F64) -> None:
        """Start at these outputs, shape (g,), where the inputs are average.

        Without batch norm there is no bias, and nothing changes.
        """
        if self.batch_norm is not None:
            fill(self.batch_norm.bias, values)
