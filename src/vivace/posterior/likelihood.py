"""How well does the model explain each cell?"""

from __future__ import annotations

import numpy as np

from vivace.cells import Cells, draw, generators_of
from vivace.ops.runtime.threads import question
from vivace.types import F64


def elbo(cells: Cells, n_samples: int, seed: int) -> F64:
    """Evidence lower bound of each cell, nats, shape (n,); higher is better."""
    error, kl = _terms(cells, n_samples, seed)
    return -(error + kl)


def reconstruction(cells: Cells, n_samples: int, seed: int) -> F64:
    """Mean of -log p(x|z) over draws of z, of each cell, nats, shape (n,)."""
    return _terms(cells, n_samples, seed)[0]


@question
def _terms(cells: Cells, n_samples: int, seed: int) -> tuple[F64, F64]:
    network = cells.network
    generators = generators_of(seed, n_samples)
    error = np.zeros(len(cells))
    kl = np.empty(len(cells))
    for part, batch, inference in cells.encoded("Likelihood"):
        for generator in generators:
            point, log_library = draw(network, inference, generator)
            nll = network.nll(point, batch, log_library)
            error[part] += nll.cpu().double().numpy()
        total = inference.z.kl() + network.library_kl(inference, batch)
        kl[part] = total.cpu().double().numpy()
    return error / n_samples, kl
