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
    name : its name in ``gene_likelihood``
    code : its number in the kernels
    dispersed : it has an inverse dispersion theta
    zero_inflated : it has zero-inflation logits, and with them a decoder head
    """

    name: GeneLikelihood
    code: int
    dispersed: bool
    zero_inflated: bool


LIKELIHOODS: dict[str, Likelihood] = {
    "poisson": Likelihood("poisson", 0, dispersed=False, zero_inflated=False),
    "nb": Likelihood("nb", 1, dispersed=True, zero_inflated=False),
    "zinb": Likelihood("zinb", 2, dispersed=True, zero_inflated=True),
}


@dataclass(frozen=True)
class CountHeads:
    """Weights that turn the decoder's hidden state into likelihood parameters.

    Parameters
    ----------
    scale_hg, scale_g : Tensor, shapes (h, g) and (g,), head of the expected expression
    log_theta_g : Tensor, shape (g,), log of the inverse dispersion; None for "poisson"
    dropout_hg, dropout_g : Tensor, shapes (h, g) and (g,), head of the
        zero-inflation logits; None unless the likelihood is "zinb"
    """

    scale_hg: Tensor
    scale_g: Tensor
    log_theta_g: Tensor | None = None
    dropout_hg: Tensor | None = None
    dropout_g: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The fields in order."""
        return tuple(getattr(self, f.name) for f in fields(self))
