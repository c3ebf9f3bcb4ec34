"""Where is each cell in the latent space?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vivace.data import Rows, Source
from vivace.nn import VAE
from vivace.posterior.stream import draw, encoded
from vivace.seeds import numpy_generator

Floats = NDArray[np.float32]


@torch.no_grad()
def latent(
    network: VAE, source: Source, rows: Rows, batch_size: int, seed: int | None
) -> tuple[Floats, Floats]:
    """Mean and variance of q(z|x), shape (n, k) each, before a logistic-normal's softmax.

    With a ``seed`` the first is one draw of z instead of the mean, on the
    simplex where the latent is logistic-normal.
    """
    generator = None if seed is None else numpy_generator(seed)
    place = np.empty((len(rows), network.config.n_latent), np.float32)
    variance = np.empty_like(place)
    for part, _, inference in encoded(network, source, rows, batch_size):
        point = inference.z.mean if generator is None else draw(network, inference, generator)[0]
        place[part] = point.cpu().numpy()
        variance[part] = inference.z.variance.cpu().numpy()
    return place, variance


@torch.no_grad()
def latent_mean(
    network: VAE, source: Source, rows: Rows, batch_size: int, mc_samples: int, seed: int
) -> Floats:
    """Mean of a logistic-normal z over ``mc_samples`` draws, on the simplex, shape (n, k)."""
    generator = numpy_generator(seed)
    mean = np.empty((len(rows), network.config.n_latent), np.float32)
    for part, _, inference in encoded(network, source, rows, batch_size):
        z = inference.z
        for i in range(len(z.mean)):  # cell by cell, as the stream is consumed
            noise = generator.standard_normal((mc_samples, mean.shape[1]), dtype=np.float32)
            draws = z.mean[i] + z.variance[i].sqrt() * torch.from_numpy(noise).to(z.mean.device)
            mean[part.start + i] = network.place(draws).mean(0).cpu().numpy()
    return mean
