"""The two operations that take most of the time, each as a reference and as CPU kernels.

* :mod:`vivace.ops.sparse_linear`: sparse counts times a dense weight.
* :mod:`vivace.ops.count_nll`: the decoder's hidden state and head weights to the negative
  log-likelihood of every cell, with all gradients.

The reference runs on any torch device and in any float type, the kernels on the CPU in
float32. ``backend="auto"`` uses the kernels where they apply.
"""

from vivace.ops.backend import Backend
from vivace.ops.count_nll import CountHeads, count_nll
from vivace.ops.csr import SparseCounts
from vivace.ops.sparse_linear import sparse_linear

__all__ = ["Backend", "CountHeads", "SparseCounts", "count_nll", "sparse_linear"]
