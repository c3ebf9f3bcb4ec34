"""What the likelihoods share and where they differ."""

from __future__ import annotations

from dataclasses import dataclass

from vivace.config import GeneLikelihood


@dataclass(frozen=True)
class Likelihood:
    """Which parameters a likelihood has besides its mean.

    Parameters
    ----------
    name
        Its name in ``gene_likelihood``.
    dispersed
        It has an inverse dispersion theta, or a standard deviation in its place.
    zero_inflated
        It has zero-inflation logits, and with them a decoder head.
    counts
        It is a likelihood of counts; those have kernels.
    """

    name: GeneLikelihood
    dispersed: bool
    zero_inflated: bool
    counts: bool = True


LIKELIHOODS: dict[str, Likelihood] = {
    "poisson": Likelihood("poisson", dispersed=False, zero_inflated=False),
    "nb": Likelihood("nb", dispersed=True, zero_inflated=False),
    "zinb": Likelihood("zinb", dispersed=True, zero_inflated=True),
    "normal": Likelihood("normal", dispersed=True, zero_inflated=False, counts=False),
}
