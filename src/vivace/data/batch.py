"""A minibatch of cells, the same whatever source it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import scipy.sparse as sp
import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseCounts:
    """Counts of n cells x g genes as compressed sparse rows.

    Parameters
    ----------
    indptr : Tensor, int64, shape (n + 1,), where each cell's entries begin
    genes : Tensor, int32, shape (nnz,), gene of each entry
    values : Tensor, float, shape (nnz,), molecules of each entry
    n_genes : number of genes g

    Examples
    --------
    >>> counts = SparseCounts.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> counts.values, counts.n_cells
    (tensor([2., 3.]), 2)
    """

    indptr: Tensor
    genes: Tensor
    values: Tensor
    n_genes: int

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def from_dense(cls, x_ng: Tensor) -> Self:
        """Keep the non-zero entries of a dense matrix (for tests and small inputs)."""
        cells, genes = torch.nonzero(x_ng, as_tuple=True)
        per_cell = torch.bincount(cells, minlength=len(x_ng))
        indptr = torch.zeros(len(x_ng) + 1, dtype=torch.int64, device=x_ng.device)
        torch.cumsum(per_cell, 0, out=indptr[1:])
        return cls(indptr, genes.to(torch.int32), x_ng[cells, genes], x_ng.shape[1])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The counts as a dense tensor, shape (n, g)."""
        cells = torch.repeat_interleave(
            torch.arange(self.n_cells, device=self.indptr.device), self.indptr.diff()
        )
        out = torch.zeros(
            (self.n_cells, self.n_genes),
            dtype=dtype or self.values.dtype,
            device=self.values.device,
        )
        out[cells, self.genes.long()] = self.values.to(out.dtype)
        return out

    def scipy(self) -> sp.csr_matrix:
        """The counts as SciPy's CSR; of the same memory, on the CPU."""
        arrays = (self.values.numpy(), self.genes.numpy(), self.indptr.numpy())
        return sp.csr_matrix(arrays, shape=(self.n_cells, self.n_genes))

    def to(self, device: torch.device) -> SparseCounts:
        """The same counts on ``device``."""
        return SparseCounts(
            self.indptr.to(device), self.genes.to(device), self.values.to(device), self.n_genes
        )


@dataclass(frozen=True)
class StoredPosterior:
    """What the encoders said about n cells, kept when their counts were dropped.

    Parameters
    ----------
    mean, variance : Tensor, float32, shape (n, k), of q(z|x), before a logistic-normal's softmax
    library_mean, library_variance : Tensor, float32, shape (n, 1), of q(log l|x); None where
        the library is observed
    """

    mean: Tensor
    variance: Tensor
    library_mean: Tensor | None = None
    library_variance: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> StoredPosterior:
        """The same with every tensor changed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: change(t) for n, t in given.items() if t is not None})


@dataclass(frozen=True)
class CountBatch:
    """Everything the network reads about n cells.

    Parameters
    ----------
    counts : SparseCounts, n cells x g genes
    library : Tensor, float32, shape (n,), molecules of the cell over these genes
    batch : Tensor, int64, shape (n,), batch codes
    labels : Tensor, int64, shape (n,), label codes
    categorical : Tensor, int64, shape (n, c), codes of further categorical covariates
    continuous : Tensor, float32, shape (n, d), continuous covariates
    size_factor : Tensor, float32, shape (n,), or None where none is declared
    posterior : StoredPosterior of n cells, which stands for encoding them, or None
    """

    counts: SparseCounts
    library: Tensor
    batch: Tensor
    labels: Tensor
    categorical: Tensor
    continuous: Tensor
    size_factor: Tensor | None = None
    posterior: StoredPosterior | None = None

    @property
    def n_cells(self) -> int:
        return self.counts.n_cells

    def to(self, device: torch.device) -> CountBatch:
        """The same cells on ``device``; itself if it is there already."""
        if self.library.device == device:
            return self
        return CountBatch(
            counts=self.counts.to(device),
            library=self.library.to(device),
            batch=self.batch.to(device),
            labels=self.labels.to(device),
            categorical=self.categorical.to(device),
            continuous=self.continuous.to(device),
            size_factor=None if self.size_factor is None else self.size_factor.to(device),
            posterior=None
            if self.posterior is None
            else self.posterior.each(lambda t: t.to(device)),
        )
