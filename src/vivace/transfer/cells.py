"""Cells as a transfer of labels sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import softmax

from vivace.types import I64


@dataclass(frozen=True)
class LatentCells:
    """Cells as the transfer sees them.

    Parameters
    ----------
    mean, variance
        Shape (n, k), of q(z|x), before a softmax.
    expression
        Log-normalised counts, CSR, shape (n, g); None where genes are not asked.
    softmax
        The latent space is that of softmaxes (logistic-normal).
    """

    mean: NDArray[Any]
    variance: NDArray[Any]
    expression: sp.csr_matrix | None = None
    softmax: bool = False

    def __len__(self) -> int:
        return len(self.mean)

    def at(self, rows: NDArray[Any]) -> LatentCells:
        """Some of them."""
        genes = None if self.expression is None else self.expression[rows]
        return replace(self, mean=self.mean[rows], variance=self.variance[rows], expression=genes)

    def without_genes(self) -> LatentCells:
        """The same cells, whose genes are not asked."""
        return replace(self, expression=None)

    def places(self) -> NDArray[Any]:
        """Where they are."""
        return self._placed(self.mean)

    def draw(self, rng: np.random.Generator) -> NDArray[Any]:
        """Where they may be."""
        noise = rng.standard_normal(self.mean.shape, np.float32)
        return self._placed(self.mean + np.sqrt(self.variance) * noise)

    def _placed(self, z_nk: NDArray[Any]) -> NDArray[Any]:
        place: NDArray[Any] = softmax(z_nk, axis=1) if self.softmax else z_nk
        return place


@dataclass(frozen=True)
class Labelled:
    """Cells of the reference, the codes of their labels and batches, and how many labels there are."""

    cells: LatentCells
    labels: I64
    batches: I64
    n_labels: int

    def at(self, rows: NDArray[Any]) -> Labelled:
        """Some of them."""
        return Labelled(self.cells.at(rows), self.labels[rows], self.batches[rows], self.n_labels)
