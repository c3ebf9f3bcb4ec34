"""How well does the model explain each cell?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vivace.data import Rows, Source
from vivace.nn import VAE
from vivace.posterior.stream import children, draw, encoded
from vivace.seeds import numpy_generator


def elbo(
    network: VAE, source: Source, rows: Rows, batch_size: int, n_samples: int, seed: int
) -> NDArray[np.float64]:
    """Evidence lower bound of each cell, nats, shape (n,); higher is better."""
    error, kl = _terms(network, source, rows, batch_size, n_samples, seed)
    return -(error + kl)


def reconstruction(
    network: VAE, source: Source, rows: Rows, batch_size: int, n_samples: int, seed: int
) -> NDArray[np.float64]:
    """Mean of -log p(x|z) over draws of z, of each cell, nats, shape (n,)."""
    return _terms(network, source, rows, batch_size, n_samples, seed)[0]


@torch.no_grad()
def _terms(
    network: VAE, source: Source, rows: Rows, batch_size: int, n_samples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generators = [numpy_generator(s) for s in children(seed, n_samples)]
    error = np.zeros(len(rows))
    kl = np.empty(len(rows))
    for part, batch, inference in encoded(network, source, rows, batch_size):
        for generator in generators:
            point, log_library = draw(network, inference, generator)
            error[part] += network.nll(point, batch, log_library).cpu().double().numpy()
        total = inference.z.kl() + network.library_kl(inference, batch)
        kl[part] = total.cpu().double().numpy()
    return error / n_samples, kl
