"""Start the output bias and the dispersion at the data's moments.

A decoder that starts at a flat profile spends its first epochs on learning how
much of each gene there is; two moments of the counts give it that at once.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from vivace.data import CountBatch, Rows, Source
from vivace.nn import VAE

_CELLS = 10_000  # enough for the moments of a gene
_LOG_THETA_RANGE = (-2.0, 4.0)
_ZI_LOGIT = -3.0


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
    counts, library = _matrix(batch), _depth(batch)
    total = np.asarray(counts.sum(0)).ravel()
    rho = (total + 0.1) / library.sum()
    pairs = np.asarray(counts.multiply(counts - counts.sign()).sum(0)).ravel()
    excess = pairs / (rho**2 * np.square(library).sum()) - 1.0
    log_theta = np.clip(-np.log(np.maximum(excess, 1e-6)), *_LOG_THETA_RANGE)
    bias = np.log(rho) if network.activation == "softmax" else rho + np.log(-np.expm1(-rho))
    with torch.no_grad():
        _fill(network.decoder.scale.bias, bias)
        if network.log_theta is not None:
            _fill(network.log_theta, log_theta)
        if network.decoder.dropout is not None:
            network.decoder.dropout.bias.fill_(_ZI_LOGIT)


def _fill(parameter: torch.Tensor, values: np.ndarray) -> None:
    parameter.copy_(torch.from_numpy(values).to(parameter.dtype))


def _matrix(batch: CountBatch) -> sp.csr_matrix:
    c = batch.counts
    arrays = (c.values.double().numpy(), c.genes.numpy(), c.indptr.numpy())
    return sp.csr_matrix(arrays, shape=(c.n_cells, c.n_genes))


def _depth(batch: CountBatch) -> np.ndarray:
    depth = batch.library if batch.size_factor is None else batch.size_factor
    return depth.double().numpy()
