"""Which cells of the data at hand a model was trained on, followed by their names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from vivace.data import split_rows
from vivace.state import TrainState
from vivace.types import Rows

NameHashes = NDArray[np.uint64]


def hash_names(adata: AnnData) -> str:
    """One hash of the names of all cells, in their order."""
    return hashlib.sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()


def hash_each_name(adata: AnnData) -> NameHashes:
    """A hash of the name of each cell, shape (n,)."""
    names = adata.obs_names.astype(str).to_numpy(object)
    hashes: NameHashes = pd.util.hash_array(names, categorize=False)
    return hashes


@dataclass(frozen=True)
class Split:
    """Rows of the data at hand by what training did with their cells.

    Parameters
    ----------
    train, validation
        Cells that the model was trained on, and validated with.
    new
        Cells that the training data did not have.
    """

    train: Rows
    validation: Rows
    new: Rows

    @classmethod
    def untrained(cls, n_cells: int) -> Self:
        """A split of cells that are all new."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, np.arange(n_cells))

    @classmethod
    def from_state(cls, state: TrainState, adata: AnnData | None) -> Self | None:
        """Find the cells of a training so far in ``adata``.

        Cells keep their place if all names are the same in the same order; otherwise each is
        looked up by its name. The answer is None if that is impossible: names repeat, or the
        model does not have them, as one of scvi-tools, which stores only the number of cells.

        Parameters
        ----------
        state
            The training so far.
        adata
            The data at hand; None for those of the training.
        """
        nothing = np.zeros(0, np.int64)
        if not state.trained or adata is None or _has_same_cells(state, adata):
            return cls(state.train_rows, state.validation_rows, nothing)
        if state.name_hashes is None:
            return None
        before = pd.Index(state.name_hashes)
        now = pd.Index(hash_each_name(adata))
        if not (before.is_unique and now.is_unique):
            return None
        rows = before.get_indexer(now)  # in the training data; -1 for new cells
        train, validation = (
            np.flatnonzero(np.isin(rows, used))
            for used in (state.train_rows, state.validation_rows)
        )
        return cls(train, validation, np.flatnonzero(rows < 0))

    def extended(
        self,
        train_size: float,
        validation_size: float | None,
        generator: np.random.Generator,
    ) -> Self:
        """A split to train on: new cells are split at random, the others keep their part."""
        if len(self.new) == 0:
            return self
        parts = split_rows(len(self.new), train_size, validation_size, generator)
        train, validation = (
            np.union1d(rows, self.new[part])
            for rows, part in zip((self.train, self.validation), parts, strict=True)
        )
        return type(self)(train, validation, self.new[:0])


def _has_same_cells(state: TrainState, adata: AnnData) -> bool:
    """Whether the model was trained on these cells; scvi-tools stores only their number."""
    summary = state.summary
    if "scvi_tools" in summary and summary["cell_names"] is None:
        return bool(adata.n_obs == summary["cells"])
    return hash_names(adata) == summary.get("cell_names")
