"""Numbers that are too small: why they are set to zero, and how."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLUSH_EVERY = 100  # steps of an optimiser that does not do it by itself
TINY = 1e-30  # far below what moves a weight or a product, far above subnormal numbers


@torch.no_grad()
def flush_subnormal(tensors: Iterable[Tensor]) -> None:
    """Set what is smaller than 1e-30 to zero, in place.

    The L2 penalty shrinks a weight that the data do not move (of a gene without
    counts, of a hidden unit that is off) by a factor each step, down to subnormal
    numbers, and a processor takes a hundred times as long for each product with one:
    after ten thousand steps, training had become ten times slower.
    """
    for tensor in tensors:
        tensor.masked_fill_(tensor.abs() < TINY, 0.0)
