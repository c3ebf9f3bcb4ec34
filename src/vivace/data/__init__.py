"""Where cells come from: sources, the order of rows, and minibatches."""

from vivace.data.batch import CountBatch, SparseCounts
from vivace.data.counts import check_counts, count_matrix, read_cells
from vivace.data.order import Rows, minibatches, split_rows
from vivace.data.source import MemorySource, Source

__all__ = [
    "CountBatch",
    "MemorySource",
    "Rows",
    "Source",
    "SparseCounts",
    "check_counts",
    "count_matrix",
    "minibatches",
    "read_cells",
    "split_rows",
]
