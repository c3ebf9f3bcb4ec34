"""Latent variables to the hidden state and heads of the count likelihood."""

from __future__ import annotations

from torch import Tensor, nn

from vivace.nn.layers import Activation, Linear, joined
from vivace.ops import CountHeads


class Decoder(nn.Module):
    """Hidden layers from [z, covariates], and the heads over genes.

    The heads' products with the hidden state are left to
    :func:`vivace.ops.count_nll`, which goes from them to the loss in one pass.

    Parameters
    ----------
    n_latent, n_hidden, n_genes, n_layers : sizes
    n_continuous, n_onehot : columns of continuous and one-hot covariates
    zero_inflated : whether there is a head for the zero-inflation logits
    inject : one-hot covariates enter every layer, not only the first
    batch_norm, layer_norm : see :class:`~vivace.nn.layers.Activation`; no dropout

    Shape
    -----
    z (n, k) -> hidden state (n, h).

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

    def forward(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, onehot_nc: Tensor | None = None
    ) -> Tensor:
        x_nh = joined(z_nk, continuous_nd, onehot_nc)
        for i, (linear, activation) in enumerate(zip(self.linears, self.activations, strict=True)):
            inputs = joined(x_nh, onehot_nc) if i > 0 and self.inject else x_nh
            x_nh = activation(linear(inputs))
        return x_nh

    def heads(self, log_theta_g: Tensor | None) -> CountHeads:
        """The weights that :func:`vivace.ops.count_nll` takes."""
        return CountHeads(
            self.scale.weight,
            self.scale.bias,
            log_theta_g,
            None if self.dropout is None else self.dropout.weight,
            None if self.dropout is None else self.dropout.bias,
        )
