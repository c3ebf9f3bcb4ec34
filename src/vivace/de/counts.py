"""What was counted in each group of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivace.cells import Cells
from vivace.types import F64, I64

SCALE = 1e4  # molecules that normalised counts of a cell add up to


@dataclass(frozen=True)
class CountSums:
    """Sums over the cells of p groups, shape (p, g); ``n_cells`` (p,).

    Parameters
    ----------
    n_cells
        Cells of each group.
    counts
        Molecules.
    above_zero
        Cells with a count.
    normalized
        Molecules where each cell's add up to 10,000.
    size
        What scales the expected counts of the cells: their library, or size factors; (p,).
    """

    n_cells: F64
    counts: F64
    above_zero: F64
    normalized: F64
    size: F64

    def of(self, groups: Sequence[int]) -> tuple[F64, F64, F64]:
        """Mean count, share of cells with a count and mean normalised count of groups together."""
        at = list(groups)
        n = self.n_cells[at].sum()
        sums = (self.counts, self.above_zero, self.normalized)
        mean, share, normalized = (s[at].sum(0) / n for s in sums)
        return mean, share, normalized


def count_sums(cells: Cells, parts: Sequence[I64]) -> CountSums:
    """Sums of the counts of each part of the cells, a stretch of cells at a time."""
    from vivace.de.histograms import add_counts  # the compiler: only those who ask wait

    found = np.zeros((3, len(parts), cells.network.dims.n_genes))
    rows = np.concatenate(parts)
    part = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    order = np.argsort(rows, kind="stable")
    size = np.zeros(len(parts))
    part = part[order]
    for place, batch in cells.take(rows[order]).batches("Counting"):
        csr = (batch.counts.indptr, batch.counts.genes, batch.counts.values)
        indptr, genes, values = (t.cpu().numpy() for t in csr)
        library = batch.library.cpu().numpy()
        scaled_by = library if batch.size_factor is None else batch.size_factor.cpu().numpy()
        size += np.bincount(part[place], scaled_by, minlength=len(parts))
        add_counts(found, part[place], indptr, genes, values, library, SCALE)
    n_cells = np.array([len(p) for p in parts], float)
    return CountSums(n_cells, found[0], found[1], found[2], size)
