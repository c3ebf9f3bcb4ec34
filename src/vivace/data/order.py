"""Splits and minibatches: which rows are read, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from vivace.errors import OptionError
from vivace.types import Rows


def minibatches(
    rows: Rows, batch_size: int, shuffle: np.random.Generator | None = None
) -> Iterator[Rows]:
    """Cut ``rows`` into minibatches, in order or shuffled by the generator ``shuffle``.

    Every row occurs exactly once. A single cell left over joins the last minibatch, because
    batch normalisation needs a variance.

    Examples
    --------
    >>> [list(map(int, b)) for b in minibatches(np.arange(5), 2)]
    [[0, 1], [2, 3, 4]]
    """
    if shuffle is not None:
        rows = shuffle.permutation(rows)
    n = len(rows)
    if n == 0:
        return
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        yield rows[start:stop]


def split_rows(
    n_cells: int,
    train_size: float,
    validation_size: float | None,
    generator: np.random.Generator,
) -> tuple[Rows, Rows]:
    """Choose training and validation rows at random; the other rows are test rows.

    The number of training cells is rounded up and that of validation cells down, as in
    scvi-tools. There is always at least one training cell.

    Parameters
    ----------
    n_cells
        Number of cells.
    train_size
        Fraction of the cells to train on, above 0 and at most 1.
    validation_size
        Fraction to validate on; None uses all other cells.
    generator
        NumPy generator that chooses the cells.

    Returns
    -------
    Training and validation rows, each sorted.

    Raises
    ------
    OptionError
        If a fraction is out of range, or their sum exceeds 1.

    Examples
    --------
    >>> train, validation = split_rows(10, 0.9, None, np.random.default_rng(0))
    >>> len(train), len(validation)
    (9, 1)
    """
    if not 0 < train_size <= 1:
        raise OptionError(f"train_size must be above 0 and at most 1, not {train_size}.")
    if validation_size is not None and not 0 <= validation_size < 1:
        raise OptionError(f"validation_size must be at least 0 and below 1, not {validation_size}.")
    if validation_size is not None and train_size + validation_size > 1 + 1e-9:
        raise OptionError(
            f"train_size ({train_size}) and validation_size ({validation_size}) add up to more "
            "than 1; lower one of them."
        )
    n_train = min(n_cells, max(1, math.ceil(n_cells * train_size - 1e-9)))
    left = n_cells - n_train
    n_validation = left if validation_size is None else min(left, int(n_cells * validation_size))
    order = generator.permutation(n_cells).astype(np.int64)
    return np.sort(order[:n_train]), np.sort(order[n_train : n_train + n_validation])
