"""Moments of the counts, at which the heads of a new decoder start.

A decoder that starts at a flat profile spends its first epochs learning the mean of
each gene; two moments of the counts provide it immediately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vivace.config import GeneLikelihood
from vivace.data.batch import CountBatch
from vivace.ops.count_nll import Activation
from vivace.types import F64

_LOG_THETA_RANGE = (-2.0, 4.0)
_ZI_LOGIT = -3.0


@dataclass(frozen=True)
class Moments:
    """Outputs that the heads should have for an average cell.

    Parameters
    ----------
    scale_logits_g
        Shape (g,), logits of the expected expression per unit of library.
    log_theta_g
        Shape (g,), log of the inverse dispersion, or of the standard deviation for "normal".
    """

    scale_logits_g: F64
    log_theta_g: F64

    @property
    def zi_logits_g(self) -> F64:
        """Shape (g,), logits of a small zero inflation; the counts do not determine it."""
        return np.full(len(self.scale_logits_g), _ZI_LOGIT)


def compute_moments(
    batch: CountBatch, likelihood: GeneLikelihood, activation: Activation
) -> Moments:
    """Match two moments of each gene.

    Parameters
    ----------
    batch
        Cells, on the CPU.
    likelihood
        "zinb", "nb", "poisson" or "normal".
    activation
        Function from logits to the expected expression.

    Notes
    -----
    With mu = l rho, moments give rho = sum x / sum l, and, since
    E[x (x - 1)] = (1 + 1/theta) E[mu^2], theta = 1 / (sum x (x - 1) / (rho^2 sum l^2) - 1).
    """
    counts = batch.counts.scipy().astype(np.float64)
    depth = batch.library if batch.size_factor is None else batch.size_factor
    library = depth.double().numpy()
    total = np.asarray(counts.sum(0)).ravel()
    rho = (np.maximum(total, 0.0) + 0.1) / library.sum()
    if likelihood == "normal":
        squares = np.asarray(counts.multiply(counts).sum(0)).ravel()
        cross = np.asarray(counts.multiply(library[:, None]).sum(0)).ravel()
        residual = squares - 2 * rho * cross + rho**2 * np.square(library).sum()
        log_theta = 0.5 * np.log(residual / len(library) + 1e-6)
    else:
        pairs = np.asarray(counts.multiply(counts - counts.sign()).sum(0)).ravel()
        excess = pairs / (rho**2 * np.square(library).sum()) - 1.0
        log_theta = np.clip(-np.log(np.maximum(excess, 1e-6)), *_LOG_THETA_RANGE)
    # the inverse of the activation
    logits = np.log(rho) if activation == "softmax" else rho + np.log(-np.expm1(-rho))
    return Moments(logits, log_theta)
