"""Cells as a transfer of labels uses them."""

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
    """Cells in the latent space, perhaps with their expression.

    Parameters
    ----------
    mean, variance
        Mean and variance of q(z|x) before a softmax, shape (n, k) each.
    expression
        Log-normalised counts, CSR, shape (n, g); None if genes are not used.
    softmax
        Whether the latent space is that of softmaxes (logistic-normal).
    """

    mean: NDArray[Any]
    variance: NDArray[Any]
    expression: sp.csr_matrix | None = None
    softmax: bool = False

    def __len__(self) -> int:
        return len(self.mean)

    def take(self, rows: NDArray[Any]) -> LatentCells:
        """Some of the cells."""
        genes = None if self.expression is None else self.expression[rows]
        return replace(self, mean=self.mean[rows], variance=self.variance[rows], expression=genes)

    def without_genes(self) -> LatentCells:
        """The same cells without their expression."""
        return replace(self, expression=None)

    def points(self) -> NDArray[Any]:
        """The points of the means, shape (n, k)."""
        return self._place(self.mean)

    def sample(self, rng: np.random.Generator) -> NDArray[Any]:
        """A random sample of the points, shape (n, k)."""
        noise = rng.standard_normal(self.mean.shape, np.float32)
        return self._place(self.mean + np.sqrt(self.variance) * noise)

    def _place(self, z_nk: NDArray[Any]) -> NDArray[Any]:
        point_nk: NDArray[Any] = softmax(z_nk, axis=1) if self.softmax else z_nk
        return point_nk


@dataclass(frozen=True)
class LabelledCells:
    """Cells of the reference with their labels.

    Parameters
    ----------
    cells
        The cells.
    labels, batches
        Codes of their labels and batches, shape (n,) each.
    n_labels
        Number of labels.
    """

    cells: LatentCells
    labels: I64
    batches: I64
    n_labels: int

    def take(self, rows: NDArray[Any]) -> LabelledCells:
        """Some of the cells."""
        return LabelledCells(
            self.cells.take(rows), self.labels[rows], self.batches[rows], self.n_labels
        )
