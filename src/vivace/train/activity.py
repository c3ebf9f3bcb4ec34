"""How many latent dimensions of a trained network tell cells apart."""

from __future__ import annotations

import torch

from vivace.data import Rows, Source, minibatches
from vivace.nn import VAE
from vivace.seeds import numpy_generator

_LEAST_VARIANCE = 0.01  # the prior's is 1
_CELLS = 2_000
_BATCH = 1_000


@torch.no_grad()
def count_active_dimensions(network: VAE, source: Source, rows: Rows) -> int | None:
    """Dimensions whose posterior means have a variance over cells of more than 0.01.

    None is active where the posterior has collapsed onto the prior: the latent space is then
    the same for every cell. The answer is None for a single cell.

    Parameters
    ----------
    network
        VAE, in evaluation mode.
    source
        The data.
    rows
        Cells to encode; 2,000 of a larger number.

    Notes
    -----
    Source: Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519, section 5.2.
    """
    if len(rows) < 2:
        return None
    if len(rows) > _CELLS:
        rows = numpy_generator(0).choice(rows, _CELLS, replace=False)
    means = [
        network.encode(source.gather(part).to(network.device)).z.mean
        for part in minibatches(rows, _BATCH)
    ]
    return int((torch.cat(means).var(0, correction=0) > _LEAST_VARIANCE).sum())
