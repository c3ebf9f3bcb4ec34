"""Copies of the weights: of the last epoch that was finite, and of the best one."""

from __future__ import annotations

import torch
from torch import Tensor

from vivace.train.flat import FlatWeights

_Copy = tuple[Tensor, Tensor]  # values, counters


class Checkpoints:
    """Copies of a network's weights that can be restored.

    Parameters
    ----------
    weights
        The network's weights; their initial values are the first copy.
    keep_best
        Whether the copy of the best epoch is kept.
    """

    def __init__(self, weights: FlatWeights, *, keep_best: bool) -> None:
        self._weights = weights
        self._keep_best = keep_best
        self._last = self._copy()
        self._best: _Copy | None = None

    def save(self) -> None:
        """Copy the weights as they are now, after an epoch that was finite."""
        self._last = self._copy()

    def mark_best(self) -> None:
        """Mark the last copy as the best so far."""
        if self._keep_best:
            self._best = self._last

    def restore_last(self) -> None:
        """Go back to the last copy."""
        self._restore(self._last)

    def restore_best(self) -> None:
        """Go back to the best copy if one is kept and is not the last."""
        if self._best is not None and self._best is not self._last:
            self._restore(self._best)

    def restore_interrupted(self) -> None:
        """Go back to the best copy if one is kept, else to the last."""
        self._restore(self._last if self._best is None else self._best)

    def _copy(self) -> _Copy:
        return self._weights.values.clone(), self._weights.counters.clone()

    @torch.no_grad()
    def _restore(self, copy: _Copy) -> None:
        values, counters = copy
        self._weights.values.copy_(values)
        self._weights.counters.copy_(counters)
