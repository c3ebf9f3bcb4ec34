"""A decoder with hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivace.nn.layers import Linear, hidden_layers, join_columns
from vivace.nn.moments import Moments
from vivace.nn.surgery import Role
from vivace.ops import CountHeads


class MLPDecoder(nn.Module):
    """Hidden layers from [z, covariates], and the heads over genes.

    The products of the heads with the hidden state are left to
    :func:`vivace.ops.count_nll`, which goes from them to the loss in one pass.

    Parameters
    ----------
    n_latent, n_hidden, n_genes, n_layers
        Sizes.
    n_continuous
        Columns of continuous covariates.
    one_hot_sizes
        One-hot columns of each categorical covariate.
    zero_inflated
        Whether there is a head for the zero-inflation logits.
    dispersed
        Whether there is a head for the dispersion of each cell and gene.
    inject
        Whether one-hot covariates enter every layer, or only the first.
    batch_norm, layer_norm
        See :class:`~vivace.nn.layers.Activation`; there is no dropout.
    generator
        Of the initial values; None for torch's global one.

    Shape
    -----
    z (n, k) -> hidden state (n, h).

    Examples
    --------
    >>> import torch
    >>> decoder = MLPDecoder(n_latent=2, n_hidden=8, n_genes=3, n_layers=1).eval()
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
        one_hot_sizes: tuple[int, ...] = (),
        zero_inflated: bool = True,
        dispersed: bool = False,
        inject: bool = True,
        batch_norm: bool = True,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.inject = inject
        self.linears, self.activations = hidden_layers(
            n_latent + n_continuous,
            n_hidden,
            n_layers,
            one_hot_sizes,
            inject=inject,
            batch_norm=batch_norm,
            layer_norm=layer_norm,
            dropout=0.0,
            input_role=Role.DECODER_INPUT,
            norm_role=Role.DECODER_NORM,
            generator=generator,
        )
        self.scale = Linear(n_hidden, n_genes, generator)
        self.dropout = Linear(n_hidden, n_genes, generator) if zero_inflated else None
        self.theta = Linear(n_hidden, n_genes, generator) if dispersed else None

    def forward(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, one_hot_nc: Tensor | None = None
    ) -> Tensor:
        x_nh = join_columns(z_nk, continuous_nd, one_hot_nc)
        for i, (layer, activation) in enumerate(zip(self.linears, self.activations, strict=True)):
            inputs = join_columns(x_nh, one_hot_nc) if i > 0 and self.inject else x_nh
            x_nh = activation(layer(inputs))
        return x_nh

    def heads(self, hidden_nh: Tensor) -> CountHeads:
        """Weights that :func:`vivace.ops.count_nll` takes with this hidden state."""
        return CountHeads(
            scale_hg=self.scale.weight,
            scale_g=self.scale.bias,
            dropout_hg=None if self.dropout is None else self.dropout.weight,
            dropout_g=None if self.dropout is None else self.dropout.bias,
            theta_hg=None if self.theta is None else self.theta.weight,
            theta_bias_g=None if self.theta is None else self.theta.bias,
        )

    def initialise_from_moments(self, moments: Moments) -> None:
        """Start the biases of the heads at the moments of the counts."""
        self.scale.fill_bias(moments.scale_logits_g)
        if self.dropout is not None:
            self.dropout.fill_bias(moments.zi_logits_g)
        if self.theta is not None:
            self.theta.fill_bias(moments.log_theta_g)
