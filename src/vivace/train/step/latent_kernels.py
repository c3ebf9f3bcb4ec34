"""Kernels of the latent variables: sample, KL divergence, and their gradient.

README.md has the formulas and the names.
"""

from __future__ import annotations

import math

import numpy as np

from vivace.nn.encoder import LOG_VARIANCE_BOUND, VARIANCE_FLOOR
from vivace.ops.runtime.kernels import kernel
from vivace.types import F32, I64


@kernel()
def sample_latent(
    heads_nk: F32,
    noise_nk: F32,
    softplus: bool,
    z_nk: F32,
    variance_nk: F32,
    slope_nk: F32,
) -> float:
    """Write a sample, the variance, and its derivative in the raw head.

    Returns the mean KL divergence. ``z_nk`` may have more columns than k; the others are
    left alone.
    """
    n, k = noise_nk.shape
    kl = 0.0
    for i in range(n):
        for j in range(k):
            mean = np.float64(heads_nk[i, j])
            raw = np.float64(heads_nk[i, k + j])
            bounded = min(max(raw, -LOG_VARIANCE_BOUND), LOG_VARIANCE_BOUND)
            bounded = bounded if raw == raw else raw  # NaN stays NaN
            e = math.exp(bounded)
            variance = (math.log1p(e) if softplus else e) + VARIANCE_FLOOR
            z_nk[i, j] = mean + math.sqrt(variance) * noise_nk[i, j]
            kl += variance + mean * mean - math.log(variance) - 1.0
            variance_nk[i, j] = variance
            inside = abs(raw) <= LOG_VARIANCE_BOUND
            slope_nk[i, j] = (e / (1.0 + e) if softplus else e) if inside else 0.0
    mean_kl: float = 0.5 * kl / n
    return mean_kl


@kernel()
def backward_latent(
    grad_z_nk: F32,
    grad_kl: float,
    heads_nk: F32,
    noise_nk: F32,
    variance_nk: F32,
    slope_nk: F32,
    grad_heads_nk: F32,
    grad_bias_k: F32,
) -> None:
    """Write the gradient in the heads, and in their bias, which is its sum over the cells.

    ``grad_kl`` is the gradient in the divergence of every cell. ``grad_z_nk`` may have more
    columns than k; the others are not read.
    """
    n, k = noise_nk.shape
    totals = np.zeros(2 * k, np.float64)
    for i in range(n):
        for j in range(k):
            grad_z, variance = np.float64(grad_z_nk[i, j]), np.float64(variance_nk[i, j])
            grad_heads_nk[i, j] = grad_z + grad_kl * heads_nk[i, j]
            grad_variance = 0.5 * (
                grad_z * noise_nk[i, j] / math.sqrt(variance) + grad_kl * (1.0 - 1.0 / variance)
            )
            grad_heads_nk[i, k + j] = grad_variance * slope_nk[i, j]
        for j in range(2 * k):
            totals[j] += grad_heads_nk[i, j]
    for j in range(2 * k):
        grad_bias_k[j] = totals[j]


@kernel()
def fill_onehot(inputs_nk: F32, start: int, sizes: I64, batch_n: I64, categorical_nc: I64) -> None:
    """Write the one-hot columns of each covariate, batch first, from column ``start`` on.

    ``sizes`` are the numbers of columns; a covariate with none is left out.
    """
    n, k = inputs_nk.shape
    for i in range(n):
        for j in range(start, k):
            inputs_nk[i, j] = 0.0
        column = start
        for c in range(sizes.size):
            code = batch_n[i] if c == 0 else categorical_nc[i, c - 1]
            if sizes[c] > 0:
                inputs_nk[i, column + code] = 1.0
            column += sizes[c]
