"""The interface that the network expects of a decoder."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vivace.nn.moments import Moments
from vivace.ops import CountHeads


class Decoder(Protocol):
    """Latent variables and covariates to the weights of the count likelihood.

    A decoder is an ``nn.Module``. Its layers declare ``category_rows`` and ``role``
    (:class:`~vivace.nn.layers.CategoryLinear`, :class:`~vivace.nn.layers.BatchNorm`), from
    which :mod:`vivace.nn.freeze` determines how to grow and freeze them.
    """

    def __call__(
        self, z_nk: Tensor, continuous_nd: Tensor | None = None, one_hot_nc: Tensor | None = None
    ) -> Tensor:
        """Hidden state, shape (n, h)."""
        ...

    def heads(self, hidden_nh: Tensor) -> CountHeads:
        """Weights that :func:`vivace.ops.count_nll` takes with this hidden state."""
        ...

    def initialise_from_moments(self, moments: Moments) -> None:
        """Start the biases of the heads at the moments of the counts."""
        ...
