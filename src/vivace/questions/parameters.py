"""What are the parameters of the likelihood in each cell?"""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData

from vivace.cells import question
from vivace.core import Core
from vivace.data.schema import Codes
from vivace.distributions import Poisson, ZeroInflatedNegativeBinomial
from vivace.questions.decode import Observation, decode_cells
from vivace.types import F32, Indices
from vivace.validate import COUNT


@question(n_samples=COUNT)
def get_likelihood_parameters(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
    silent: bool = False,
) -> dict[str, F32]:
    """Parameters of the likelihood of each cell and gene.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    n_samples
        Samples of z per cell.
    give_mean
        The mean over the samples; with one sample, the parameters at the mean of q(z|x).
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    Dict of arrays, float32, shape (n, g), or (samples, n, g) for several samples without
    ``give_mean``: "mean", molecules; "dispersions" (theta; the standard deviation of
    "normal"; not for "poisson"); "dropout", probabilities, for "zinb".
    """
    cells = self._cells(adata, indices, batch_size, silent)
    uses_mean = n_samples == 1 and give_mean
    first_seed = self._seed(seed, random=not uses_mean)
    parameters: dict[str, F32] = {}
    each_sample = n_samples > 1 and not give_mean
    samples = decode_cells(cells, Codes(), 0 if uses_mean else n_samples, first_seed, "Parameters")
    for part, i, observation in samples:
        for name, value_ng in _name_parameters(observation).items():
            if name not in parameters:
                shape = (len(cells), value_ng.shape[1])
                shape = (n_samples, *shape) if each_sample else shape  # type: ignore[assignment]
                parameters[name] = np.zeros(shape, np.float32)
            if each_sample:
                parameters[name][i, part] = value_ng
            else:
                parameters[name][part] += value_ng / n_samples
    return parameters


def _name_parameters(observation: Observation) -> dict[str, F32]:
    """Parameters of a distribution under scvi-tools' names, shape (n, g) each."""
    shape = observation.batch_shape
    if isinstance(observation, Poisson):
        tensors = {"mean": observation.rate}
    elif isinstance(observation, torch.distributions.Normal):
        tensors = {"mean": observation.loc, "dispersions": observation.scale}
    else:
        tensors = {"mean": observation.mu, "dispersions": observation.theta}
    if isinstance(observation, ZeroInflatedNegativeBinomial):
        tensors["dropout"] = observation.zi_probs
    return {name: t.expand(shape).cpu().numpy() for name, t in tensors.items()}
