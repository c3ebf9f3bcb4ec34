"""Sources of cells: anything that can gather rows into a :class:`CountBatch`."""

from __future__ import annotations

from typing import Protocol

from vivace.data.batch import CountBatch
from vivace.types import Rows


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
