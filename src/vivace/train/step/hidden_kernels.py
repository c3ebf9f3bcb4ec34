"""Kernels of batch norm, ReLU and dropout, which follow a hidden linear map.

README.md has the formulas and the names.
"""

from __future__ import annotations

import math

import numpy as np

from vivace.ops.runtime.kernels import EXACT, inner_kernel, kernel
from vivace.ops.runtime.llvm import vector_loop
from vivace.types import F32, F64, I16, I64

_ZERO = np.float32(0)


@inner_kernel(fastmath=EXACT)
def _add_row(total: F64, row: F32) -> None:
    vector_loop()
    for c in range(row.size):
        total[c] += row[c]


@inner_kernel(fastmath=EXACT)
def _add_square(total: F64, row: F32, mean: F64) -> None:
    vector_loop()
    for c in range(row.size):
        gap = row[c] - mean[c]
        total[c] += gap * gap


@inner_kernel(fastmath=EXACT)
def _norm_relu(row: F32, mean: F32, factor: F32, shift: F32, out: F32) -> None:
    vector_loop()
    for c in range(row.size):
        y = (row[c] - mean[c]) * factor[c] + shift[c]
        out[c] = _ZERO if y <= _ZERO else y  # NaN stays NaN


@inner_kernel(fastmath=EXACT)
def _drop(row: F32, bits: I16, threshold: int, keep_scale: float) -> None:
    vector_loop()
    lowest, scale = np.int16(threshold), np.float32(keep_scale)
    for c in range(row.size):
        row[c] = row[c] * scale if bits[c] >= lowest else _ZERO


@kernel(fastmath=EXACT)
def forward_hidden(
    x_nh: F32,
    bias: F32,
    weight: F32,
    shift: F32,
    running_mean: F32,
    running_variance: F32,
    tracked: I64,
    uses_minibatch: bool,
    eps: float,
    momentum: float,
    bits_nh: I16,
    threshold: int,
    keep_scale: float,
    out_nh: F32,
    mean: F32,
    inv_std: F32,
) -> None:
    """Write the output, the mean of x (not of x + bias), and 1 / standard deviation.

    With ``uses_minibatch`` the statistics are the minibatch's, the running ones move, and
    ``tracked`` counts it. Otherwise they are the running ones. ``out_nh`` may have more
    columns than x; the others are left alone.
    """
    n, h = x_nh.shape
    if uses_minibatch:
        tracked[0] += 1
        totals = np.zeros(h, np.float64)
        squares = np.zeros(h, np.float64)
        for i in range(n):
            _add_row(totals, x_nh[i])
        for c in range(h):
            totals[c] /= n
        for i in range(n):
            _add_square(squares, x_nh[i], totals)
        for c in range(h):
            variance = squares[c] / n
            with_bias = totals[c] + (bias[c] if bias.size > 0 else 0.0)
            mean[c] = totals[c]
            inv_std[c] = 1.0 / math.sqrt(variance + eps)
            running_mean[c] += momentum * (with_bias - running_mean[c])
            running_variance[c] += momentum * (squares[c] / (n - 1) - running_variance[c])
    else:
        for c in range(h):
            mean[c] = running_mean[c] - (bias[c] if bias.size > 0 else _ZERO)
            inv_std[c] = 1.0 / math.sqrt(running_variance[c] + eps)
    factor = weight * inv_std
    for i in range(n):
        _norm_relu(x_nh[i], mean, factor, shift, out_nh[i, :h])
    if bits_nh.size > 0:
        for i in range(n):
            _drop(out_nh[i, :h], bits_nh[i], threshold, keep_scale)


@inner_kernel(fastmath=EXACT)
def _relu_gradient(out: F32, upstream: F32, keep_scale: float, d: F32) -> None:
    """Write the gradient before dropout and ReLU, which left ``out``."""
    vector_loop()
    scale = np.float32(keep_scale)
    for c in range(out.size):
        d[c] = upstream[c] * scale if out[c] > _ZERO else _ZERO


@inner_kernel(fastmath=EXACT)
def _standardise(row: F32, mean: F32, inv_std: F32, hat: F32) -> None:
    vector_loop()
    for c in range(row.size):
        hat[c] = (row[c] - mean[c]) * inv_std[c]


@inner_kernel(fastmath=EXACT)
def _add_product(total: F64, a: F32, b: F32) -> None:
    vector_loop()
    for c in range(a.size):
        total[c] += np.float64(a[c]) * np.float64(b[c])


@inner_kernel(fastmath=EXACT)
def _centre(d: F32, hat: F32, mean_shift: F32, mean_weight: F32, factor: F32) -> None:
    """Turn the gradient before the ReLU into that in x, in place."""
    vector_loop()
    for c in range(d.size):
        d[c] = factor[c] * (d[c] - mean_shift[c] - hat[c] * mean_weight[c])


@kernel(fastmath=EXACT)
def backward_hidden(
    x_nh: F32,
    out_nh: F32,
    upstream_nh: F32,
    weight: F32,
    mean: F32,
    inv_std: F32,
    uses_minibatch: bool,
    keep_scale: float,
    grad_x_nh: F32,
    grad_weight: F32,
    grad_shift: F32,
    grad_bias: F32,
) -> None:
    """Write the gradients in x, weight, shift and bias.

    ``out_nh`` and ``upstream_nh`` may have more columns than x; the others are not read.
    """
    n, h = x_nh.shape
    hat = np.empty(h, np.float32)
    weights = np.zeros(h, np.float64)
    shifts = np.zeros(h, np.float64)
    for i in range(n):
        _relu_gradient(out_nh[i, :h], upstream_nh[i, :h], keep_scale, grad_x_nh[i])
        _standardise(x_nh[i], mean, inv_std, hat)
        _add_row(shifts, grad_x_nh[i])
        _add_product(weights, grad_x_nh[i], hat)
    factor = weight * inv_std
    mean_shift = np.zeros(h, np.float32)
    mean_weight = np.zeros(h, np.float32)
    for c in range(h):
        grad_weight[c] = weights[c]
        grad_shift[c] = shifts[c]
        if uses_minibatch:
            mean_shift[c] = shifts[c] / n
            mean_weight[c] = weights[c] / n
    for i in range(n):
        _standardise(x_nh[i], mean, inv_std, hat)
        _centre(grad_x_nh[i], hat, mean_shift, mean_weight, factor)
    for c in range(grad_bias.size):
        grad_bias[c] = 0.0 if uses_minibatch else factor[c] * shifts[c]
