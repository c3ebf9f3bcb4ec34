"""Pass over cells in evaluation mode, a minibatch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vivace.data import CountBatch, Rows, Source
from vivace.nn import VAE, Inference


def encoded(
    network: VAE, source: Source, rows: Rows, batch_size: int
) -> Iterator[tuple[slice, CountBatch, Inference]]:
    """The place in ``rows``, the cells, and q(z, l|x) of each minibatch."""
    network.eval()
    for start in range(0, len(rows), batch_size):
        part = slice(start, min(start + batch_size, len(rows)))
        batch = source.gather(rows[part]).to(network.device)
        yield part, batch, network.encode(batch)


def noise_of(inference: Inference, generator: np.random.Generator) -> torch.Tensor:
    """Standard normal noise for one draw a cell: (n, k), and a column more for a latent library.

    NumPy's stream is consumed cell by cell, so that a cell's draw does not
    depend on how the cells were cut into minibatches, nor on the device.
    """
    mean = inference.z.mean
    n, k = mean.shape
    extra = 0 if inference.library is None else 1
    noise = torch.from_numpy(generator.standard_normal((n, k + extra), dtype=np.float32))
    return noise.to(mean.device, mean.dtype)


def draw(
    network: VAE, inference: Inference, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One draw a cell: the point that the decoder sees, (n, k), and a latent log library, (n,)."""
    noise = noise_of(inference, generator)
    k = inference.z.mean.shape[1]
    point = network.place(inference.z.at(noise[:, :k]))
    return point, None if inference.library is None else inference.library.at(noise[:, k:])[:, 0]


def children(seed: int, n: int) -> list[int]:
    """One seed for each draw, so that draws do not depend on the minibatches."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n, np.uint64) >> 1]
