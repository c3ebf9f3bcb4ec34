"""Why numbers that are too small are set to zero, and how."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLUSH_EVERY = 100  # steps of an optimiser that does not do it itself
TINY = 1e-30  # far below what moves a weight or a product, far above subnormal numbers


@torch.no_grad()
def flush_subnormal(tensors: Iterable[Tensor]) -> None:
    """Set numbers below 1e-30 to zero, in place.

    The L2 penalty shrinks a weight that the data do not move (of a gene without
    counts, of a hidden unit that is always off) by a factor in each step, down to
    subnormal numbers. A processor takes a hundred times as long for a product with
    one: after ten thousand steps, training had become ten times slower.
    """
    for tensor in tensors:
        tensor.masked_fill_(tensor.abs() < TINY, 0.0)
