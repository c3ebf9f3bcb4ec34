"""Sparse counts as the operations read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import scipy.sparse as sp
import torch
from torch import Tensor

from vivace.errors import ShapeError


@dataclass(frozen=True)
class SparseCounts:
    """Counts of n cells x g genes as compressed sparse rows.

    Parameters
    ----------
    indptr
        Tensor, int64, shape (n + 1,), first entry of each cell.
    genes
        Tensor, int32, shape (nnz,), gene of each entry.
    values
        Tensor, float, shape (nnz,), molecules of each entry.
    n_genes
        Number of genes g.
    checked
        Whether the numbers are known to be in range. Operations check them otherwise, because
        kernels that follow a wrong one leave their arrays.

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
    checked: bool = field(default=False, repr=False, compare=False)

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def from_dense(cls, x_ng: Tensor) -> Self:
        """Keep the non-zero entries of a dense matrix, for tests and small inputs."""
        cells, genes = torch.nonzero(x_ng, as_tuple=True)
        per_cell = torch.bincount(cells, minlength=len(x_ng))
        indptr = torch.zeros(len(x_ng) + 1, dtype=torch.int64, device=x_ng.device)
        torch.cumsum(per_cell, 0, out=indptr[1:])
        return cls(indptr, genes.to(torch.int32), x_ng[cells, genes], x_ng.shape[1], checked=True)

    def check(self) -> None:
        """Refuse pointers and genes that are out of range, unless that is known.

        Raises
        ------
        ShapeError
            If a number is out of range, or the arrays differ in length.
        """
        if self.checked:
            return
        pointers, genes, n_entries = self.indptr, self.genes, len(self.values)
        if len(genes) != n_entries:
            raise ShapeError(f"counts have {len(genes)} genes for {n_entries} values.")
        if (
            not len(pointers)
            or pointers[0] < 0
            or pointers[-1] > n_entries
            or (pointers.diff() < 0).any()
        ):
            raise ShapeError(
                f"indptr of the counts must not fall, and lie between 0 and the {n_entries} entries."
            )
        if n_entries and not 0 <= genes.min() <= genes.max() < self.n_genes:
            raise ShapeError(
                f"genes of the counts must be from 0 to {self.n_genes - 1}, but are from "
                f"{genes.min().item()} to {genes.max().item()}."
            )

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
        """The counts as SciPy's CSR matrix, on the CPU, sharing memory."""
        arrays = (self.values.numpy(), self.genes.numpy(), self.indptr.numpy())
        return sp.csr_matrix(arrays, shape=(self.n_cells, self.n_genes))

    def to(self, device: torch.device) -> SparseCounts:
        """The same counts on ``device``."""
        return SparseCounts(
            self.indptr.to(device),
            self.genes.to(device),
            self.values.to(device),
            self.n_genes,
            self.checked,
        )
