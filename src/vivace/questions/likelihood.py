"""How well does the model explain each cell?"""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from vivace.cells import Cells, child_generators, question, sample_latent
from vivace.core import Core
from vivace.errors import OptionError
from vivace.types import F64, Indices
from vivace.validate import COUNT


@question(n_samples=COUNT)
def get_elbo(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    batch_size: int | None = None,
    *,
    return_mean: bool = True,
    n_samples: int = 1,
    seed: int | None = None,
    silent: bool = False,
) -> float | F64:
    """Evidence lower bound, nats; higher is better.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    return_mean
        The mean over cells; False gives one value per cell, shape (n,).
    n_samples
        Samples of z per cell.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    A number, or an array, float64, shape (n,).
    """
    cells = self._cells(adata, indices, batch_size, silent, counts=True)
    error_n, kl_n = elbo_terms(cells, n_samples, self._seeds.take(seed))
    elbo_n = -(error_n + kl_n)
    return mean_over_cells(elbo_n) if return_mean else elbo_n


@question(n_samples=COUNT)
def get_reconstruction_error(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    batch_size: int | None = None,
    *,
    return_mean: bool = True,
    n_samples: int = 1,
    seed: int | None = None,
    silent: bool = False,
) -> dict[str, float | F64]:
    """Reconstruction error, -E[log p(x|z)], nats; lower is better.

    The arguments are those of :meth:`get_elbo`.

    Returns
    -------
    Dict with one entry, ``"reconstruction_loss"``: the mean over cells, or
    one value per cell with ``return_mean=False``.
    """
    cells = self._cells(adata, indices, batch_size, silent, counts=True)
    error_n, _ = elbo_terms(cells, n_samples, self._seeds.take(seed))
    return {"reconstruction_loss": mean_over_cells(error_n) if return_mean else error_n}


def elbo_terms(cells: Cells, n_samples: int, seed: int) -> tuple[F64, F64]:
    """Mean of -log p(x|z) over samples of z, and the KL divergence, nats, shape (n,) each."""
    network = cells.network
    generators = child_generators(seed, n_samples)
    error_n = np.zeros(len(cells))
    kl_n = np.empty(len(cells))
    for part, batch, inference in cells.encoded("Likelihood"):
        for generator in generators:
            point_nk, log_library_n = sample_latent(network, inference, generator)
            nll_n = network.nll(point_nk, batch, log_library_n)
            error_n[part] += nll_n.cpu().double().numpy()
        total = inference.z.kl() + network.library_kl(inference, batch)
        kl_n[part] = total.cpu().double().numpy()
    return error_n / n_samples, kl_n


def mean_over_cells(values_n: F64) -> float:
    """The mean of one value per cell; there must be a cell."""
    if len(values_n) == 0:
        raise OptionError("There are no cells to average over; indices must select at least one.")
    return float(values_n.mean())
