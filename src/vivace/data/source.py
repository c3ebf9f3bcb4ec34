"""Sources of cells: anything that can gather rows into a :class:`CountBatch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from vivace.data.batch import CountBatch, SparseCounts, StoredPosterior
from vivace.data.order import Rows
from vivace.errors import DataError

Csr = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


class Source(Protocol):
    """Cells that can be read by row, in any order, with repeats."""

    @property
    def n_cells(self) -> int: ...

    @property
    def has_counts(self) -> bool:
        """Whether there are counts; where not, there is a posterior."""
        ...

    def gather(self, rows: Rows, *, counts: bool = True) -> CountBatch:
        """The cells at ``rows``, in that order; without ``counts`` as if each had none."""
        ...


@dataclass(frozen=True)
class MemorySource:
    """Counts and covariates held in memory.

    Parameters
    ----------
    counts : CSR matrix, float32, n cells x g genes, the model's genes in its order
    library : array, float32, shape (n,), molecules of each cell
    batch, labels : arrays, int64, shape (n,), codes
    categorical : array, int64, shape (n, c), codes
    continuous : array, float32, shape (n, d)
    size_factor : array, float32, shape (n,), or None
    posterior : StoredPosterior of all cells, which stands for encoding them, or None
    has_counts : whether the counts are there; if not, ``counts`` is empty
    total : molecules in all, by which a change in place is noticed
    """

    counts: sp.csr_matrix
    library: NDArray[np.float32]
    batch: NDArray[np.int64]
    labels: NDArray[np.int64]
    categorical: NDArray[np.int64]
    continuous: NDArray[np.float32]
    size_factor: NDArray[np.float32] | None = None
    posterior: StoredPosterior | None = None
    has_counts: bool = True
    total: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self._sum())

    @property
    def n_cells(self) -> int:
        return int(self.counts.shape[0])

    def check_unchanged(self) -> None:
        """Refuse counts that were changed in place after they had been checked.

        CSR float32 counts are shared with the AnnData, not copied, so that
        ``sc.pp.log1p(adata)`` would reach them.
        """
        if self._sum() != self.total:
            raise DataError(
                "The counts were changed in place after the model was made; keep them in a layer "
                "(adata.layers['counts'] = adata.X.copy(), layer='counts') and make the model again."
            )

    def _sum(self) -> float:
        return float(self.counts.data.sum(dtype=np.float64))

    def gather(self, rows: Rows, *, counts: bool = True) -> CountBatch:
        """The cells at ``rows``, in that order; without ``counts`` as if each had none."""
        if counts:
            indptr, genes, values = self._stretch(rows) or self._picked(rows)
        else:
            indptr, genes = np.zeros(len(rows) + 1, np.int64), np.empty(0, np.int32)
            values = np.empty(0, np.float32)
        sparse = SparseCounts(
            torch.from_numpy(indptr),
            torch.from_numpy(genes),
            torch.from_numpy(values),
            int(self.counts.shape[1]),
        )
        size_factor = None if self.size_factor is None else torch.from_numpy(self.size_factor[rows])
        places = torch.from_numpy(rows)
        posterior = None if self.posterior is None else self.posterior.each(lambda t: t[places])
        return CountBatch(
            counts=sparse,
            library=torch.from_numpy(self.library[rows]),
            batch=torch.from_numpy(self.batch[rows]),
            labels=torch.from_numpy(self.labels[rows]),
            categorical=torch.from_numpy(self.categorical[rows]),
            continuous=torch.from_numpy(self.continuous[rows]),
            size_factor=size_factor,
            posterior=posterior,
        )

    def _picked(self, rows: Rows) -> Csr:
        from vivace.data.gather import gather_rows  # compiles: only when it is needed

        return gather_rows(self.counts.indptr, self.counts.indices, self.counts.data, rows)

    def _stretch(self, rows: Rows) -> Csr | None:
        """Rows that follow each other, copied as one piece; None where they do not."""
        x, n = self.counts, len(rows)
        if n == 0 or rows[-1] - rows[0] != n - 1 or not (np.diff(rows) == 1).all():
            return None
        starts = x.indptr[rows[0] : rows[0] + n + 1].astype(np.int64)
        here = slice(starts[0], starts[-1])
        return starts - starts[0], x.indices[here].astype(np.int32), x.data[here].copy()
