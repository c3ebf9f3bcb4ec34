"""Numba kernels: what the differences of draws are like, and sums of counts."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from vivace.jit import EXACT, LINE, SUMS, kernel, never_inline, parallel_kernel
from vivace.ops.fastmath import largest32, log32, smallest32

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Counts = NDArray[np.int32]

_PER_LN2 = np.float32(1.4426950408889634)
_BINS = 512
_PER_WIDTH = np.float32(_BINS * 0.9999)  # the largest number is in the last bin
_TILE = 64  # draws
_GENES = 64  # handed to a thread at a time
MEAN, MEDIAN, STD, MIN, MAX, PLUS, MINUS, ABOVE = range(8)  # rows of what describe writes


@parallel_kernel()
def write_by_gene(out_gm: Floats, x_mg: Floats) -> None:
    """Write the transpose, draws of a gene side by side, as everything below reads them."""
    n_draws, n_genes = x_mg.shape
    for tile in prange((n_draws + _TILE - 1) // _TILE):
        first, last = tile * _TILE, min((tile + 1) * _TILE, n_draws)
        part = np.empty((LINE, _TILE), np.float32)
        for start in range(0, n_genes, LINE):
            width = min(LINE, n_genes - start)
            for m in range(first, last):
                for j in range(width):
                    part[j, m - first] = x_mg[m, start + j]
            for j in range(width):
                for m in range(first, last):
                    out_gm[start + j, m] = part[j, m - first]


@kernel(fastmath=EXACT)
def _log2(out_m: Floats, x_m: Floats, offset: float) -> None:
    never_inline()
    offset = np.float32(offset)
    for m in range(x_m.size):
        out_m[m] = log32(x_m[m] + offset) * _PER_LN2


@kernel(fastmath=EXACT)
def _differences(out_p: Floats, x_m: Floats, first: Counts, second: Counts) -> None:
    never_inline()
    for p in range(first.size):
        out_p[p] = x_m[first[p]] - x_m[second[p]]


@kernel(fastmath=SUMS)
def _moments(x: Floats, delta: float, out: NDArray[np.float64]) -> None:
    """Everything but the median; short loops, which LLVM vectorises."""
    never_inline()
    n = x.size
    upper, lower, zero = np.float32(delta), np.float32(-delta), np.float32(0)
    total, square = zero, zero
    plus, minus, above = np.int32(0), np.int32(0), np.int32(0)
    for i in range(n):
        total += x[i]
    for i in range(n):
        plus = np.int32(plus + np.int32(x[i] >= upper))
    for i in range(n):
        minus = np.int32(minus + np.int32(x[i] < lower))
    for i in range(n):
        above = np.int32(above + np.int32(x[i] > zero))
    mean = np.float32(total / np.float32(n))
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    out[MEAN], out[STD] = np.float64(total) / n, np.sqrt(np.float64(square) / n)
    out[MIN], out[MAX] = smallest32(x), largest32(x)
    out[PLUS], out[MINUS], out[ABOVE] = plus / n, minus / n, above / n


@kernel(fastmath=EXACT)
def _bin(x: Floats, low: float, high: float, bins: Counts, counts: Counts) -> None:
    """The bin of each number between low and high, and how many each bin holds."""
    never_inline()
    low, width = np.float32(low), np.float32(high) - np.float32(low)
    per = _PER_WIDTH / width if width > 0 else np.float32(0)
    for i in range(x.size):
        bins[i] = np.int32((x[i] - low) * per)
    counts[:] = 0
    for i in range(x.size):
        counts[bins[i]] += 1


@kernel()
def _median(x: Floats, bins: Counts, counts: Counts, inside: Floats) -> float:
    """The median, found in the bin or the two that hold the middle; ``inside`` is for work."""
    upper = x.size // 2
    lower = upper - 1 + x.size % 2
    first, before = 0, 0
    while before + counts[first] <= lower:
        before += counts[first]
        first += 1
    last, beyond = first, before
    while beyond + counts[last] <= upper:
        beyond += counts[last]
        last += 1
    n = 0
    for i in range(x.size):
        if first <= bins[i] <= last:
            inside[n] = x[i]
            n += 1
    inside[:n].sort()
    return 0.5 * (np.float64(inside[lower - before]) + np.float64(inside[upper - before]))


@parallel_kernel()
def describe(
    out_cgs: NDArray[np.float64],
    x_gm: Floats,
    pseudocount: float,
    first_cp: Counts,
    second_cp: Counts,
    delta_c: NDArray[np.float64],
) -> None:
    """What the log2 fold changes of each gene are like over pairs, for each comparison.

    With y = log2(x + pseudocount), of ``y[:, first] - y[:, second]``: mean, median, standard
    deviation, least and largest, and the shares of pairs at or above ``delta``, below
    ``-delta`` and above zero, shape (comparisons, g, 8).  ``x + pseudocount`` must be
    positive normal numbers.
    """
    n_genes, n = x_gm.shape[0], first_cp.shape[1]
    for task in prange((n_genes + _GENES - 1) // _GENES):
        logs = np.empty(x_gm.shape[1], np.float32)
        x, inside = np.empty(n, np.float32), np.empty(n, np.float32)
        bins, counts = np.empty(n, np.int32), np.empty(_BINS, np.int32)
        for g in range(task * _GENES, min((task + 1) * _GENES, n_genes)):
            _log2(logs, x_gm[g], pseudocount)
            for c in range(first_cp.shape[0]):
                out = out_cgs[c, g]
                _differences(x, logs, first_cp[c], second_cp[c])
                _moments(x, delta_c[c], out)
                _bin(x, out[MIN], out[MAX], bins, counts)
                out[MEDIAN] = _median(x, bins, counts, inside)


@kernel()
def add_counts(
    sums_spg: NDArray[np.float64], part: Rows, indptr: Rows, genes: Counts, values: Floats,
    library: Floats, total: float,
) -> None:  # fmt: skip
    """Add cells to the sums of their parts: counts, cells with a count, and normalised counts."""
    for n in range(part.size):
        p, scale = part[n], total / library[n]
        for i in range(indptr[n], indptr[n + 1]):
            g, value = genes[i], np.float64(values[i])
            sums_spg[0, p, g] += value
            sums_spg[1, p, g] += value != 0
            sums_spg[2, p, g] += value * scale
