"""How likely is each cell, whatever its latent variables are?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vivace.cells import Cells, generators_of, noise_of
from vivace.data import CountBatch
from vivace.nn import VAE, Inference
from vivace.ops.runtime.threads import question
from vivace.types import F64


@question
def marginal_ll(cells: Cells, n_samples: int, seed: int) -> F64:
    """Log p(x) of each cell by importance sampling from q(z, l|x), nats, shape (n,).

    log 1/S sum_s p(x|z_s, l_s) p(z_s) p(l_s) / (q(z_s|x) q(l_s|x)): a lower bound in
    expectation that rises to log p(x) with the number of draws S.  The sum is kept
    as a maximum and a remainder, one draw after the other, so that memory
    does not grow with S, but for the generator of each draw, a kilobyte.

    Notes
    -----
    Source: Burda et al. 2016, arXiv:1509.00519.
    """
    from vivace.progress import PassingBar  # the compiler: only those who ask wait

    generators = generators_of(seed, n_samples)
    found = np.empty(len(cells))
    draws = len(cells) * n_samples
    with PassingBar("Marginal likelihood", draws, "draws", not cells.silent) as bar:
        for part, batch, inference in cells.quiet().encoded():
            total = torch.full((len(inference.z.mean),), -math.inf, dtype=torch.float64)
            for generator in generators:
                log_weight = _log_weight(cells.network, batch, inference, generator)
                total = torch.logaddexp(total, log_weight)
                bar.done(batch.n_cells)
            found[part] = total.numpy() - math.log(n_samples)
    return found


def _log_weight(
    network: VAE,
    batch: CountBatch,
    inference: Inference,
    generator: np.random.Generator,
) -> Tensor:
    """Log of p(x, z, l) / q(z, l|x) at one draw a cell, float64 on the CPU, shape (n,).

    The densities of z are those of the normal draw, before a logistic-normal's softmax:
    they are taken in the same coordinates, and their ratio is that of the points.
    """
    noise = noise_of(inference, generator)
    k = inference.z.mean.shape[1]
    z = inference.z.at(noise[:, :k])
    ratio = _log_ratio(noise[:, :k], z, inference.z.variance).sum(1)
    log_library = None
    if inference.library is not None:
        log_library = inference.library.at(noise[:, k:])[:, 0]
        mean, variance = network.library_mean[batch.batch], network.library_variance[batch.batch]
        standard = (log_library - mean) / variance.sqrt()
        own_variance = inference.library.variance[:, 0] / variance
        ratio += _log_ratio(noise[:, k], standard, own_variance)
    return ratio - network.nll(network.place(z), batch, log_library).cpu().double()


def _log_ratio(noise: Tensor, value: Tensor, variance: Tensor) -> Tensor:
    """Log of the standard normal density at ``value`` over that it was drawn from."""
    noise, value, variance = (t.cpu().double() for t in (noise, value, variance))
    return 0.5 * (noise.square() + variance.log() - value.square())
