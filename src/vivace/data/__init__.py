"""Where cells come from: sources, the order of rows, and minibatches."""

from vivace.data.batch import CountBatch, SparseCounts, StoredPosterior
from vivace.data.counts import check_counts, count_matrix, read_cells
from vivace.data.minified import Minified, minified_type, minify
from vivace.data.order import Rows, minibatches, split_rows
from vivace.data.source import MemorySource, Source

__all__ = [
    "CountBatch",
    "MemorySource",
    "Minified",
    "Rows",
    "Source",
    "SparseCounts",
    "StoredPosterior",
    "check_counts",
    "count_matrix",
    "minibatches",
    "minified_type",
    "minify",
    "read_cells",
    "split_rows",
]
