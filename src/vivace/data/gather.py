"""Numba kernel: rows of a CSR matrix, in any order.

SciPy's indexing spends 0.2 ms per minibatch on checks that were made when the data were
read. A training step takes only two to three milliseconds.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from vivace.ops.runtime.kernels import parallel_kernel
from vivace.ops.runtime.llvm import LINE, prefetch
from vivace.types import F32, I32, I64

_ROWS = 16  # rows per thread at a time


@parallel_kernel()
def gather_rows(
    indptr: NDArray[np.integer], genes: NDArray[np.integer], values: F32, rows: I64
) -> tuple[I64, I32, F32]:
    """``indptr, genes, values`` of the given rows; positions are 64-bit.

    Rows in random order are not cached. Prefetching a block of them first halves the time
    (0.09 to 0.04 ms for 128 rows of 100 entries).
    """
    n = rows.size
    starts = np.empty(n + 1, np.int64)
    starts[0] = 0
    for i in range(n):
        starts[i + 1] = starts[i] + np.int64(indptr[rows[i] + 1]) - np.int64(indptr[rows[i]])
    picked_genes = np.empty(starts[n], np.int32)
    picked_values = np.empty(starts[n], np.float32)
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for k in range(np.int64(indptr[rows[i]]), np.int64(indptr[rows[i] + 1]), LINE):
                prefetch(genes, k)
                prefetch(values, k)
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            first, begin, end = np.int64(indptr[rows[i]]), starts[i], starts[i + 1]
            for k in range(end - begin):
                picked_genes[begin + k] = genes[first + k]
            for k in range(end - begin):
                picked_values[begin + k] = values[first + k]
    return starts, picked_genes, picked_values
