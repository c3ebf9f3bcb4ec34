"""Starting values of a new network from the data."""

from __future__ import annotations

import numpy as np

from vivace.data import Rows, Source
from vivace.nn import VAE, compute_moments

_MAX_CELLS = 10_000  # enough for the moments of a gene


def initialise_from_data(
    network: VAE, source: Source, rows: Rows, generator: np.random.Generator
) -> None:
    """Start the heads and the dispersion at the moments of at most 10,000 cells."""
    if len(rows) > _MAX_CELLS:
        rows = np.sort(generator.choice(rows, _MAX_CELLS, replace=False))
    batch = source.gather(rows)
    moments = compute_moments(batch, network.config.gene_likelihood, network.activation)
    network.initialise_from_moments(moments)
