"""What the count likelihoods share and where they differ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from vivace.config import GeneLikelihood

Activation = Literal["softmax", "softplus"]


@dataclass(frozen=True)
class Likelihood:
    """Which parameters a count likelihood has besides its mean.

    Parameters
    ----------
    name
        Its name in ``gene_likelihood``.
    code
        Its number in the kernels.
    dispersed
        It has an inverse dispersion theta, or a standard deviation in its place.
    zero_inflated
        It has zero-inflation logits, and with them a decoder head.
    counts
        It is one of counts, for which there are kernels.
    """

    name: GeneLikelihood
    code: int
    dispersed: bool
    zero_inflated: bool
    counts: bool = True


LIKELIHOODS: dict[str, Likelihood] = {
    "poisson": Likelihood("poisson", 0, dispersed=False, zero_inflated=False),
    "nb": Likelihood("nb", 1, dispersed=True, zero_inflated=False),
    "zinb": Likelihood("zinb", 2, dispersed=True, zero_inflated=True),
    "normal": Likelihood("normal", 3, dispersed=True, zero_inflated=False, counts=False),
}


@dataclass(frozen=True)
class CountHeads:
    """Weights that turn the decoder's hidden state into likelihood parameters.

    Parameters
    ----------
    scale_hg, scale_g
        Tensor, shapes (h, g) and (g,), head of the expected expression.
    log_theta_g
        Tensor, log of the inverse dispersion ("normal": of the standard deviation): shape (g,), or
        (c, g) where ``theta_row_n`` says which row a cell has; None for "poisson" and where a head
        gives it.
    dropout_hg, dropout_g
        Tensor, shapes (h, g) and (g,), head of the zero-inflation logits; None unless the
        likelihood is "zinb".
    theta_hg, theta_bias_g
        Tensor, shapes (h, g) and (g,), head of the log inverse dispersion of each cell and gene;
        None where ``log_theta_g`` gives it.
    theta_row_n
        Tensor, int64, shape (n,), row of ``log_theta_g`` of each cell; None where all share one.
    """

    scale_hg: Tensor
    scale_g: Tensor
    log_theta_g: Tensor | None = None
    dropout_hg: Tensor | None = None
    dropout_g: Tensor | None = None
    theta_hg: Tensor | None = None
    theta_bias_g: Tensor | None = None
    theta_row_n: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All weights, in the order of the fields."""
        return tuple(getattr(self, f.name) for f in fields(self))
