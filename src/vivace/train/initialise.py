"""Start the output bias and the dispersion at the data's moments.

A decoder that starts at a flat profile spends its first epochs on learning how
much of each gene there is; two moments of the counts give it that at once.
"""

from __future__ import annotations

import numpy as np
import torch

from vivace.data import CountBatch, Rows, Source
from vivace.nn import VAE
from vivace.nn.decoder import LinearHead
from vivace.nn.layers import Linear

_CELLS = 10_000  # enough for the moments of a gene
_LOG_THETA_RANGE = (-2.0, 4.0)
_ZI_LOGIT = -3.0
_SMALL_VARIANCE = 1e-6


def initialise_from_data(
    network: VAE, source: Source, rows: Rows, generator: np.random.Generator
) -> None:
    """Set scale bias, dispersion and zero-inflation bias from at most 10,000 cells.

    With mu = l rho, moments give rho = sum x / sum l, and, since
    E[x (x - 1)] = (1 + 1/theta) E[mu^2], theta = 1 / (sum x (x - 1) / (rho^2 sum l^2) - 1).
    """
    if len(rows) > _CELLS:
        rows = np.sort(generator.choice(rows, _CELLS, replace=False))
    batch = source.gather(rows)
    counts, library = batch.counts.scipy().astype(np.float64), _depth(batch)
    total = np.asarray(counts.sum(0)).ravel()
    rho = (np.maximum(total, 0.0) + 0.1) / library.sum()
    pairs = np.asarray(counts.multiply(counts - counts.sign()).sum(0)).ravel()
    excess = pairs / (rho**2 * np.square(library).sum()) - 1.0
    log_theta = np.clip(-np.log(np.maximum(excess, 1e-6)), *_LOG_THETA_RANGE)
    if network.config.gene_likelihood == "normal":
        squares = np.asarray(counts.multiply(counts).sum(0)).ravel()
        cross = np.asarray(counts.multiply(library[:, None]).sum(0)).ravel()
        residual = squares - 2 * rho * cross + rho**2 * np.square(library).sum()
        log_theta = 0.5 * np.log(residual / len(library) + 1e-6)  # of the standard deviation
    bias = np.log(rho) if network.activation == "softmax" else rho + np.log(-np.expm1(-rho))
    decoder = network.decoder
    with torch.no_grad():
        _fill(_bias(decoder.scale), bias)
        if network.log_theta is not None:
            _fill(network.log_theta, log_theta)
        if decoder.theta is not None:
            _fill(_bias(decoder.theta), log_theta)
        if decoder.dropout is not None:
            _fill(_bias(decoder.dropout), np.full(len(bias), _ZI_LOGIT))


def set_library_prior(network: VAE, source: Source) -> None:
    """Prior of a latent library: mean and variance of its log over the cells of each batch.

    A batch without cells keeps the prior that it has.

    A batch whose cells all have the same library (a single one, say) takes the
    variance over all cells, since a prior without variance has no density.
    """
    log_library = np.log(source.library.astype(np.float64))
    n = np.bincount(source.batch, minlength=network.dims.n_batches)
    there, n = n > 0, np.maximum(n, 1)
    mean = np.bincount(source.batch, log_library, minlength=len(n)) / n
    spread = np.square(log_library - mean[source.batch])
    variance = np.bincount(source.batch, spread, minlength=len(n)) / n
    variance = np.where(variance > _SMALL_VARIANCE, variance, log_library.var() + _SMALL_VARIANCE)
    _fill(network.library_mean, np.where(there, mean, network.library_mean.numpy(force=True)))
    _fill(
        network.library_variance,
        np.where(there, variance, network.library_variance.numpy(force=True)),
    )


def _bias(head: Linear | LinearHead) -> torch.Tensor | None:
    """What a head gives where its inputs are average; None for a linear map without bias."""
    if isinstance(head, Linear):
        return head.bias
    return None if head.batch_norm is None else head.batch_norm.bias


def _fill(parameter: torch.Tensor | None, values: np.ndarray) -> None:
    frozen = isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad
    if parameter is not None and not frozen:
        parameter.copy_(torch.from_numpy(values).to(parameter.dtype))  # one row, or all the same


def _depth(batch: CountBatch) -> np.ndarray:
    depth = batch.library if batch.size_factor is None else batch.size_factor
    return depth.double().numpy()
