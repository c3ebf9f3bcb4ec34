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
from vivace.types import F32, Rows

NameHashes = NDArray[np.uint64]


def hash_names(adata: AnnData) -> str:
    """One hash of the names of all cells, in their order."""
    return hashlib.sha256(b"\n".join(_encode_names(adata))).hexdigest()


def hash_cells(adata: AnnData, library_n: F32) -> NameHashes:
    """A hash of the name of each cell, shape (n,).

    Where names are only numbers, as pandas gives them to the rows of any data, the molecules of
    each cell are part of its name.
    """
    names = _encode_names(adata)
    if _are_numbers(adata):
        names = [b"%b:%.9g" % pair for pair in zip(names, library_n.tolist(), strict=True)]
    hashes: NameHashes = pd.util.hash_array(np.array(names, object), categorize=False)
    return hashes


def _encode_names(adata: AnnData) -> list[bytes]:
    """The names of the cells in UTF-8, whatever characters they hold."""
    return [str(name).encode(errors="surrogatepass") for name in adata.obs_names]


def _are_numbers(adata: AnnData) -> bool:
    return bool(len(adata.obs_names)) and all(str(n).isdecimal() for n in adata.obs_names)


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
    def from_state(
        cls, state: TrainState, adata: AnnData | None, library_n: F32 | None = None
    ) -> Self | None:
        """Find the cells of a training so far in ``adata``.

        Cells keep their place if all names are the same in the same order; otherwise each is
        looked up by its name. The answer is None if that is impossible: names repeat, or are
        numbers that other data have too, or the model does not have them, as one of scvi-tools,
        which stores only the number of cells.

        Parameters
        ----------
        state
            The training so far.
        adata
            The data at hand; None, also for ``library_n``, for those of the training.
        library_n
            Array, float32, shape (n,), molecules of each cell of ``adata``.
        """
        as_before = cls(state.train_rows, state.validation_rows, np.zeros(0, np.int64))
        if not state.trained or adata is None or library_n is None:
            return as_before
        if state.name_hashes is None:
            return as_before if _has_same_cells(state, adata) else None
        now = hash_cells(adata, library_n)
        if np.array_equal(now, state.name_hashes):
            return as_before
        if not (pd.Index(now).is_unique and pd.Index(state.name_hashes).is_unique):
            return None
        train, validation = (np.flatnonzero(np.isin(now, hashes)) for hashes in seen_cells(state))
        known = np.isin(now, np.concatenate([state.name_hashes, *state.earlier]))
        if not known.all() and (_are_numbers(adata) or state.summary.get("unknown_cells", False)):
            return None
        return cls(train, validation, np.flatnonzero(~known))

    def extended(
        self,
        train_size: float,
        validation_size: float | None,
        generator: np.random.Generator,
    ) -> Self:
        """A split to train on: new cells are split at random, the others keep their part.

        If there is none to train on, all cells are split anew.
        """
        if len(self.new) == 0 and len(self.train) > 0:
            return self
        if len(self.new) == 0:
            everything = type(self).untrained(len(self.validation))
            return everything.extended(train_size, validation_size, generator)
        parts = split_rows(len(self.new), train_size, validation_size, generator)
        train, validation = (
            np.union1d(rows, self.new[part])
            for rows, part in zip((self.train, self.validation), parts, strict=True)
        )
        return type(self)(train, validation, self.new[:0])


def seen_cells(state: TrainState) -> tuple[NameHashes, NameHashes]:
    """Hashes of all cells that were trained on, and of those only used for validation."""
    hashes = state.name_hashes
    assert hashes is not None
    train = np.concatenate([hashes[state.train_rows], state.earlier[0]])
    validation = np.concatenate([hashes[state.validation_rows], state.earlier[1]])
    return train, np.setdiff1d(validation, train)


def _has_same_cells(state: TrainState, adata: AnnData) -> bool:
    """Whether the model was trained on these cells; scvi-tools stores only their number."""
    summary = state.summary
    if "scvi_tools" in summary and summary["cell_names"] is None:
        return bool(adata.n_obs == summary["cells"])
    return hash_names(adata) == summary.get("cell_names")
