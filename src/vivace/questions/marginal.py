"""How likely is each cell, with its latent variables integrated out?"""

from __future__ import annotations

import math

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells, child_generators, question, standard_noise
from vivace.core import Core
from vivace.data import CountBatch
from vivace.nn import VAE, Inference
from vivace.questions.likelihood import mean_over_cells
from vivace.types import F64, Indices
from vivace.validate import COUNT


@question(n_mc_samples=COUNT, n_mc_samples_per_pass=COUNT)
def get_marginal_ll(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    n_mc_samples: int = 1000,
    batch_size: int | None = None,
    return_mean: bool = True,
    n_mc_samples_per_pass: int = 1,
    *,
    seed: int | None = None,
    silent: bool = False,
) -> float | F64:
    """Marginal log-likelihood, log p(x), nats, by importance sampling; higher is better.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    n_mc_samples
        Samples per cell; with more, the estimate rises towards the exact value.
    return_mean
        The mean over cells; False gives one value per cell, shape (n,).
    n_mc_samples_per_pass
        As in scvi-tools. Samples are taken one at a time, so it has no effect.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    A number, or an array, float64, shape (n,).

    Raises
    ------
    OptionError, ArgumentTypeError
        If a number of samples is not an integer of at least 1.

    Notes
    -----
    Source: Burda et al. 2016, arXiv:1509.00519.
    """
    cells = self._cells(adata, indices, batch_size, silent, counts=True)
    log_px_n = marginal_ll(cells, n_mc_samples, self._seeds.take(seed))
    return mean_over_cells(log_px_n) if return_mean else log_px_n


def marginal_ll(cells: Cells, n_samples: int, seed: int) -> F64:
    """Log p(x) of each cell by importance sampling from q(z, l|x), nats, shape (n,).

    log 1/S sum_s p(x|z_s, l_s) p(z_s) p(l_s) / (q(z_s|x) q(l_s|x)) is a lower bound in
    expectation that rises to log p(x) with the number of samples S. The sum is accumulated
    sample by sample in log space, so memory does not grow with S, except for a kilobyte per
    generator.

    Notes
    -----
    Source: Burda et al. 2016, arXiv:1509.00519.
    """
    from vivace.progress import PassingBar  # lazy: importing Numba takes a second

    generators = child_generators(seed, n_samples)
    log_px_n = np.empty(len(cells))
    with PassingBar(
        "Marginal likelihood", len(cells) * n_samples, "samples", not cells.silent
    ) as bar:
        for part, batch, inference in cells.quiet().encoded():
            total_n = torch.full((len(inference.z.mean),), -math.inf, dtype=torch.float64)
            for generator in generators:
                log_weight_n = _log_weight(cells.network, batch, inference, generator)
                total_n = torch.logaddexp(total_n, log_weight_n)
                bar.done(batch.n_cells)
            log_px_n[part] = total_n.numpy() - math.log(n_samples)
    return log_px_n


def _log_weight(
    network: VAE,
    batch: CountBatch,
    inference: Inference,
    generator: np.random.Generator,
) -> Tensor:
    """Log of p(x, z, l) / q(z, l|x) at one sample per cell, float64 on the CPU, shape (n,).

    The densities of z are those of the normal sample, before a logistic-normal's softmax. Both
    are taken in the same coordinates, so their ratio is that of the points on the simplex.
    """
    noise = standard_noise(inference, generator)
    k = inference.z.mean.shape[1]
    z_nk = inference.z.at(noise[:, :k])
    ratio_n = _log_ratio(noise[:, :k], z_nk, inference.z.variance).sum(1)
    log_library_n = None
    if inference.library is not None:
        log_library_n = inference.library.at(noise[:, k:])[:, 0]
        prior_mean_n = network.library_mean[batch.batch]
        prior_variance_n = network.library_variance[batch.batch]
        standard_n = (log_library_n - prior_mean_n) / prior_variance_n.sqrt()
        variance_n = inference.library.variance[:, 0] / prior_variance_n
        ratio_n += _log_ratio(noise[:, k], standard_n, variance_n)
    nll_n = network.nll(network.place(z_nk), batch, log_library_n)
    return ratio_n - nll_n.cpu().double()


def _log_ratio(noise: Tensor, value: Tensor, variance: Tensor) -> Tensor:
    """Log of the standard normal density at ``value`` over the density that it was sampled from."""
    noise, value, variance = (t.cpu().double() for t in (noise, value, variance))
    return 0.5 * (noise.square() + variance.log() - value.square())
