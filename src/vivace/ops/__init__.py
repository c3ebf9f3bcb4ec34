"""The two hot operations, each with a plain reference and a fast CPU kernel.

* :mod:`vivace.ops.sparse_linear`: sparse counts times a dense weight.
* :mod:`vivace.ops.count_nll`: decoder state and head weights to the negative
  log-likelihood of every cell, with all gradients.

The reference runs on any torch device and in any float type; the kernel on CPU
in float32.  ``backend="auto"`` takes the kernel wherever it applies.
"""

from vivace.ops.backend import Backend
from vivace.ops.count_nll import CountHeads, count_nll
from vivace.ops.sparse_linear import sparse_linear

__all__ = ["Backend", "CountHeads", "count_nll", "sparse_linear"]
