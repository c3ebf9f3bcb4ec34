"""What are the parameters of the likelihood in each cell?"""

from __future__ import annotations

import numpy as np
import torch

from vivace.cells import Cells
from vivace.data.schema import Codes
from vivace.distributions import Poisson, ZeroInflatedNegativeBinomial
from vivace.ops.runtime.threads import question
from vivace.posterior.decode import Observation, decoded
from vivace.types import F32


@question
def likelihood_parameters(cells: Cells, n_draws: int, give_mean: bool, seed: int) -> dict[str, F32]:
    """Parameters of n cells x g genes, under scvi-tools' names.

    "mean"; "dispersions" but for "poisson" ("normal": the standard deviation);
    "dropout", probabilities, for "zinb".  Each of shape (n, g), or (draws, n, g) where
    there are several draws and ``give_mean`` is False.  With ``n_draws`` 0, those at the
    mean of q(z|x).
    """
    found: dict[str, F32] = {}
    each = n_draws > 1 and not give_mean
    for part, i, observation in decoded(cells, Codes(), n_draws, seed, "Parameters"):
        for name, value in _named(observation).items():
            if name not in found:
                shape = (len(cells), value.shape[1])
                found[name] = np.zeros((n_draws, *shape) if each else shape, np.float32)
            if each:
                found[name][i, part] = value
            else:
                found[name][part] += value / max(n_draws, 1)
    return found


def _named(observation: Observation) -> dict[str, F32]:
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
