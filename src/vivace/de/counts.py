"""Sums of the counts of groups of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivace.cells import Cells
from vivace.de.histograms import add_counts
from vivace.types import F64, I64

SCALE = 1e4  # total of the normalised counts of a cell


@dataclass(frozen=True)
class CountSums:
    """Sums over the cells of p groups.

    Parameters
    ----------
    n_cells
        Number of cells, shape (p,).
    counts
        Molecules, shape (p, g).
    above_zero
        Cells with a non-zero count, shape (p, g).
    normalized
        Molecules after each cell was scaled to 10,000, shape (p, g).
    size
        Sum of the cells' libraries or size factors, which scale their expected counts, shape (p,).
    """

    n_cells: F64
    counts: F64
    above_zero: F64
    normalized: F64
    size: F64

    def means(self, groups: Sequence[int]) -> tuple[F64, F64, F64]:
        """Mean count, share of cells with a count, and mean normalised count of pooled groups."""
        rows = list(groups)
        n = self.n_cells[rows].sum()
        sums = (self.counts, self.above_zero, self.normalized)
        mean, share, normalized = (s[rows].sum(0) / n for s in sums)
        return mean, share, normalized


def sum_counts(cells: Cells, parts: Sequence[I64]) -> CountSums:
    """Sums of the counts of each part of the cells, in one pass in the order of the data."""
    sums = np.zeros((3, len(parts), cells.network.dims.n_genes))
    size = np.zeros(len(parts))
    rows = np.concatenate(parts)
    part = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    order = np.argsort(rows, kind="stable")
    part = part[order]
    for positions, batch in cells.take(rows[order]).batches("Counting"):
        csr = (batch.counts.indptr, batch.counts.genes, batch.counts.values)
        indptr, genes, values = (t.cpu().numpy() for t in csr)
        library = batch.library.cpu().numpy()
        scale = library if batch.size_factor is None else batch.size_factor.cpu().numpy()
        size += np.bincount(part[positions], scale, minlength=len(parts))
        add_counts(sums, part[positions], indptr, genes, values, library, SCALE)
    n_cells = np.array([len(p) for p in parts], float)
    return CountSums(n_cells, sums[0], sums[1], sums[2], size)
