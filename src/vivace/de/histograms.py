"""Numba kernels: the distribution of differences between samples, and sums of counts."""

from __future__ import annotations

import numpy as np
from numba import prange

from vivace.ops.math.fastmath import largest32, log32, smallest32
from vivace.ops.runtime.kernels import EXACT, inner_kernel, kernel, parallel_kernel
from vivace.ops.runtime.llvm import LINE, never_inline
from vivace.types import F32, F64, I32, Rows

_PER_LN2 = np.float32(1.4426950408889634)
_BINS = 512
_LANES = 64  # partial sums over samples: four vectors of 512 bits
_LEAST_WIDTH = 1e-7  # log2 units, of a bin
_PRECISION, _CLOSE, _MAX_STEPS = 1 / 64, 1e-6, 50  # of a median: bins, probability, steps
_TILE = 64  # samples transposed at a time
_GENES = 64  # genes per task of a thread
MEAN, MEDIAN, STD, MIN, MAX, PLUS, MINUS, ABOVE = range(8)  # columns of the output of describe
VARIANCE = STD  # of the samples of one segment, in moments


@parallel_kernel()
def write_by_gene(out_gm: F32, x_mg: F32) -> None:
    """Write the transpose: the samples of a gene are contiguous, as the kernels below read them."""
    n_samples, n_genes = x_mg.shape
    for tile in prange((n_samples + _TILE - 1) // _TILE):
        first, last = tile * _TILE, min((tile + 1) * _TILE, n_samples)
        part = np.empty((LINE, _TILE), np.float32)
        for start in range(0, n_genes, LINE):
            width = min(LINE, n_genes - start)
            for m in range(first, last):
                for j in range(width):
                    part[j, m - first] = x_mg[m, start + j]
            for j in range(width):
                for m in range(first, last):
                    out_gm[start + j, m] = part[j, m - first]


@inner_kernel(fastmath=EXACT)
def _log2(out_m: F32, x_m: F32, offset: float) -> None:
    never_inline()
    offset = np.float32(offset)
    for m in range(x_m.size):
        out_m[m] = log32(x_m[m] + offset) * _PER_LN2


@inner_kernel(fastmath=EXACT)
def _bin(bins: I32, x: F32, low: float, width: float) -> None:
    never_inline()
    low, per = np.float32(low), np.float32(1.0 / width)
    bottom, top = np.int32(0), np.int32(_BINS - 1)
    for i in range(x.size):
        bins[i] = max(min(np.int32((x[i] - low) * per), top), bottom)


@inner_kernel(fastmath=EXACT)
def _sum_lanes(lanes: F32) -> float:
    """The sum of the lanes, whose number is a power of two; overwrites them.

    The order of a sum that ends up in a result is fixed here and not left to LLVM. LLVM recompiles
    a kernel for each kernel that calls it and may choose another order each time: a kernel from
    the cache and the one that was compiled before could then differ in the last bit.
    """
    width = lanes.size // 2
    while width > 0:
        for i in range(width):
            lanes[i] += lanes[i + width]
        width //= 2
    return lanes[0]


@inner_kernel(fastmath=EXACT)
def _moments(moments: F64, x: F32, lanes: F32) -> None:
    """Mean, variance, minimum and maximum of the samples."""
    never_inline()
    whole = x.size // _LANES * _LANES
    lanes[:_LANES] = np.float32(0)
    for start in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] += x[start + i]
    for i in range(x.size - whole):
        lanes[i] += x[whole + i]
    mean = _sum_lanes(lanes[:_LANES]) / np.float32(x.size)
    lanes[:_LANES] = np.float32(0)
    for start in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] += (x[start + i] - mean) * (x[start + i] - mean)
    for i in range(x.size - whole):
        lanes[i] += (x[whole + i] - mean) * (x[whole + i] - mean)
    moments[MEAN], moments[VARIANCE] = mean, np.float64(_sum_lanes(lanes[:_LANES])) / x.size
    moments[MIN], moments[MAX] = smallest32(x), largest32(x)


@inner_kernel(fastmath=EXACT)
def _window_sum(share: F32, window: F32, fraction: float, lanes: F32) -> float:
    """The sum of ``share`` times the window, shifted by a fraction of a bin by interpolation."""
    never_inline()
    right = np.float32(fraction)
    left = np.float32(1) - right
    for i in range(_BINS):
        lanes[i] = share[i] * (window[i] * left + window[i + 1] * right)
    return np.float64(_sum_lanes(lanes))


@inner_kernel()
def _probability(share_kb: F32, below_kb: F32, shift: float, lanes: F32) -> float:
    """The probability that a sample of the first side exceeds one of the second by ``shift`` bins.

    It is the mean over the k categories. Samples are uniform within a bin. ``share`` is the
    histogram of the first side; ``below`` is the share of the second side below each edge, with
    ``_BINS`` zeros before and as many ones after.
    """
    if shift >= _BINS:
        return 0.0
    if shift < -_BINS:
        return 1.0
    offset = 0.5 - shift
    whole = int(np.floor(offset))
    start = _BINS + whole
    total = 0.0
    for k in range(len(share_kb)):
        window = below_kb[k, start : start + _BINS + 1]
        total += _window_sum(share_kb[k], window, offset - whole, lanes)
    return min(max(total / len(share_kb), 0.0), 1.0)


@inner_kernel()
def _median(share_kb: F32, below_kb: F32, left: float, right: float, lanes: F32) -> float:
    """The shift that is exceeded with probability 0.5, between ``left`` and ``right``, in bins."""
    above_left = _probability(share_kb, below_kb, left, lanes) - 0.5
    above_right = _probability(share_kb, below_kb, right, lanes) - 0.5
    for _ in range(_MAX_STEPS):  # false position (Illinois): halves the weight of an end that stays
        if right - left < _PRECISION or above_left == above_right:
            break
        middle = (left * above_right - right * above_left) / (above_right - above_left)
        middle = min(max(middle, left + 0.01 * (right - left)), right - 0.01 * (right - left))
        above = _probability(share_kb, below_kb, middle, lanes) - 0.5
        if abs(above) < _CLOSE:
            return middle
        if above > 0:
            left, above_left = middle, above
            above_right *= 0.5
        else:
            right, above_right = middle, above
            above_left *= 0.5
    return 0.5 * (left + right)


@inner_kernel(fastmath=EXACT)
def _add(out: F32, counts: I32, weight: float, first: bool) -> None:
    """Add weighted counts to the histogram, which the ``first`` call sets to zero."""
    never_inline()
    factor = np.float32(weight)
    if first:
        out[:] = np.float32(0)
    for i in range(_BINS):
        out[i] += factor * np.float32(counts[i])


@inner_kernel()
def _compare(
    out: F64,
    share: F32,
    below: F32,
    moments: F64,
    counts: I32,
    first: I32,
    second: I32,
    weight: F64,
    delta: float,
    width: float,
    lanes: F32,
) -> None:
    """One comparison of one gene: the mean over the categories that samples are decoded as."""
    never_inline()
    n_codes = first.size
    # The first two moments and the range of the mixture over k and j follow from those of
    # the segments; histograms are needed only for probabilities.
    mean, square, low, high = 0.0, 0.0, np.inf, -np.inf
    for k in range(n_codes):
        a = moments[first[k]]
        other, other_square, least, largest = 0.0, 0.0, np.inf, -np.inf
        _add(share[k], counts[first[k]], 1.0 / counts[first[k]].sum(), True)
        below[k, _BINS:] = np.float32(0)
        for j in range(weight.size):
            if weight[j] == 0.0:
                continue
            b, segment = moments[second[j, k]], second[j, k]
            other += weight[j] * b[MEAN]
            other_square += weight[j] * (b[VARIANCE] + b[MEAN] ** 2)
            least, largest = min(least, b[MIN]), max(largest, b[MAX])
            per_sample = weight[j] / counts[segment].sum()
            _add(below[k, _BINS + 1 : 2 * _BINS + 1], counts[segment], per_sample, False)
        total = 0.0
        for i in range(_BINS + 1, 2 * _BINS + 1):
            total += below[k, i]
            below[k, i] = total
        below[k, 2 * _BINS + 1 :] = np.float32(1)
        difference = a[MEAN] - other
        mean += difference / n_codes
        square += (a[VARIANCE] + other_square - other**2 + difference**2) / n_codes
        low, high = min(low, a[MIN] - largest), max(high, a[MAX] - least)
    out[MEAN], out[STD] = mean, np.sqrt(max(square - mean**2, 0.0))
    out[MIN], out[MAX] = low, high
    out[PLUS] = _probability(share, below, delta / width, lanes)
    out[MINUS] = 1.0 - _probability(share, below, -delta / width, lanes)
    out[ABOVE] = _probability(share, below, 0.0, lanes)
    # the median lies within a standard deviation of the mean
    left, right = (mean - out[STD]) / width - 1.0, (mean + out[STD]) / width + 1.0
    out[MEDIAN] = min(max(_median(share, below, left, right, lanes) * width, low), high)


@parallel_kernel()
def describe(
    out_cgs: F64,
    x_gm: F32,
    pseudocount: float,
    starts: I32,
    first_ck: I32,
    second_cjk: I32,
    weight_cj: F64,
    delta_c: F64,
) -> None:
    """The distribution of the log2 fold change of each gene, for each comparison.

    The fold change is log2(x + pseudocount) of a sample of the first side minus that of a sample
    of the second, over all pairs of samples.

    Parameters
    ----------
    out_cgs
        The output, shape (comparisons, g, 8): mean, median, standard deviation, minimum and
        maximum, and the probabilities that the change is at least ``delta``, below ``-delta``
        and above zero; the last axis is indexed by ``MEAN`` and so on.
    x_gm
        Expression in each sample; with the pseudocount added, positive normal numbers.
    pseudocount
        Added to the expression.
    starts
        Where each segment begins, and the end of the last. A segment is the consecutive samples
        of one group that are decoded alike.
    first_ck
        Segment of the first side, for each of the categories that are decoded.
    second_cjk
        The same for each group of the second side.
    weight_cj
        Weights of those groups; 0 pads a comparison that has fewer groups.
    delta_c
        Thresholds.

    Notes
    -----
    All pairs are compared, at the cost of one histogram per segment. Probabilities and medians
    are those of histograms of 512 bins over the range of the gene's samples, with samples uniform
    within a bin. The other numbers are exact.
    """
    n_genes, n_segments = x_gm.shape[0], starts.size - 1
    for task in prange((n_genes + _GENES - 1) // _GENES):
        logs, bins = np.empty(x_gm.shape[1], np.float32), np.empty(x_gm.shape[1], np.int32)
        counts = np.empty((n_segments, _BINS), np.int32)
        moments = np.empty((n_segments, 8))
        share = np.empty((first_ck.shape[1], _BINS), np.float32)
        below = np.zeros((first_ck.shape[1], 3 * _BINS + 2), np.float32)
        lanes = np.empty(_BINS, np.float32)
        for g in range(task * _GENES, min((task + 1) * _GENES, n_genes)):
            # One binning of the gene's samples serves the histograms of all segments.
            _log2(logs, x_gm[g], pseudocount)
            low, high = np.float64(smallest32(logs)), np.float64(largest32(logs))
            width = max((high - low) / _BINS, _LEAST_WIDTH)
            _bin(bins, logs, low, width)
            counts[:] = 0
            for s in range(n_segments):
                _moments(moments[s], logs[starts[s] : starts[s + 1]], lanes)
                for m in range(starts[s], starts[s + 1]):
                    counts[s, bins[m]] += 1
            for c in range(first_ck.shape[0]):
                _compare(
                    out_cgs[c, g], share, below, moments, counts, first_ck[c], second_cjk[c],
                    weight_cj[c], delta_c[c], width, lanes,
                )  # fmt: skip


@kernel()
def add_counts(
    sums_spg: F64, part: Rows, indptr: Rows, genes: I32, values: F32,
    library: F32, total: float,
) -> None:  # fmt: skip
    """Add cells to the sums of their parts: counts, cells with a count, and normalised counts."""
    for n in range(part.size):
        p, scale = part[n], total / library[n]
        for i in range(indptr[n], indptr[n + 1]):
            g, value = genes[i], np.float64(values[i])
            sums_spg[0, p, g] += value
            sums_spg[1, p, g] += value != 0
            sums_spg[2, p, g] += value * scale
