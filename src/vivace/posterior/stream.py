"""Pass over cells in evaluation mode, a minibatch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vivace.data import CountBatch, Rows, Source
from vivace.nn import VAE, Posterior


def encoded(
    network: VAE, source: Source, rows: Rows, batch_size: int
) -> Iterator[tuple[slice, CountBatch, Posterior]]:
    """The place in ``rows``, the cells, and q(z|x) of each minibatch."""
    network.eval()
    for start in range(0, len(rows), batch_size):
        part = slice(start, min(start + batch_size, len(rows)))
        batch = source.gather(rows[part]).to(network.device)
        yield part, batch, network.encode(batch)


def draw(posterior: Posterior, generator: np.random.Generator) -> torch.Tensor:
    """One draw of z a cell, shape (n, k).

    NumPy's stream is consumed cell by cell, so that a cell's draw does not
    depend on how the cells were cut into minibatches, nor on the device.
    """
    mean = posterior.mean
    noise = generator.standard_normal(tuple(mean.shape), dtype=np.float32)
    return posterior.at(torch.from_numpy(noise).to(mean.device))
