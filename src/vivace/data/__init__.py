"""Data: columns and counts of an AnnData, sources of cells, the order of rows, minibatches."""

from typing import TYPE_CHECKING

from vivace.data.batch import CountBatch, StoredPosterior
from vivace.data.checks import check_counts
from vivace.data.memory import MemorySource, count_matrix, read_cells
from vivace.data.minified import Minified, minified_type, minify
from vivace.data.order import minibatches, split_rows
from vivace.data.source import Source
from vivace.errors import MissingNameError, instead
from vivace.ops.csr import SparseCounts
from vivace.types import Rows

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

if not TYPE_CHECKING:  # type checkers know the names

    def __getattr__(name: str) -> object:
        """Say what takes the place of scvi-tools' functions."""
        raise MissingNameError(
            f"vivace.data has no {name!r}; {instead(name, __all__, 'vivace.data')}"
        )
