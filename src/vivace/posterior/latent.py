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
    """Mean and variance of q(z|x), shape (n, k) each.

    With a ``seed`` the first is one draw of z instead of the mean.
    """
    generator = None if seed is None else numpy_generator(seed)
    place = np.empty((len(rows), network.config.n_latent), np.float32)
    variance = np.empty_like(place)
    for part, _, posterior in encoded(network, source, rows, batch_size):
        z = posterior.mean if generator is None else draw(posterior, generator)
        place[part] = z.cpu().numpy()
        variance[part] = posterior.variance.cpu().numpy()
    return place, variance
