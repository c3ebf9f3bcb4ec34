"""Sources of cells: what training and questions need, whether the counts are in memory or not."""

from __future__ import annotations

from typing import Protocol

from anndata import AnnData

from vivace.data.batch import CountBatch
from vivace.types import F32, I64, Rows


class Source(Protocol):
    """Cells that can be read by row, in any order and with repeats.

    A few numbers per cell are held in memory, whatever holds the counts.
    """

    @property
    def n_cells(self) -> int:
        """Number of cells n."""
        ...

    @property
    def n_genes(self) -> int:
        """Number of genes g of the model."""
        ...

    @property
    def has_counts(self) -> bool:
        """Whether there are counts; if not, there is a posterior."""
        ...

    @property
    def smallest(self) -> float:
        """The smallest value, at most 0; below 0 only where negative values are allowed."""
        ...

    @property
    def library(self) -> F32:
        """Float32, shape (n,), molecules of each cell over the model's genes."""
        ...

    @property
    def batch(self) -> I64:
        """Int64, shape (n,), batch code of each cell."""
        ...

    def without_posterior(self) -> Source:
        """The same cells, to be encoded from their counts."""
        ...

    def gather(self, rows: Rows, *, counts: bool = True) -> CountBatch:
        """The cells at ``rows``, in that order; without ``counts``, with no counts in them."""
        ...

    def check_unchanged(self, adata: AnnData | None = None) -> None:
        """Raise an error if the data changed after they were read.

        The cost does not depend on the number of cells.

        Parameters
        ----------
        adata
            The AnnData that the cells were read from, as it is now; None checks the counts
            alone.

        Raises
        ------
        DataError
            If something changed; the message says what, and the fix.
        """
        ...
