"""How well do draws of z stand for a whole group of cells?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vivace.cells import Cells, children
from vivace.errors import OptionError
from vivace.ops.runtime.threads import question
from vivace.posterior.latent import draws
from vivace.posterior.marginal import marginal_ll
from vivace.types import F64, I64


def group_draws(
    cells: Cells, n_overall: int, seed: int, weighting: Mapping[str, Any] | None
) -> tuple[I64, Tensor, Tensor]:
    """Draws that stand for a group: places of cells, z before a softmax, log libraries.

    Without ``weighting`` each is a draw of a cell that is drawn itself; with it, draws of
    every cell are drawn by their importance weights, of which it holds the arguments.
    Shapes (n_overall,), (n_overall, k), (n_overall,).
    """
    if len(cells) == 0:
        raise OptionError("indices names no cells; draws of a group need at least one.")
    choice, of_z, of_weights = children(seed, 3)
    rng = np.random.default_rng(choice)
    if weighting is None:
        places = rng.integers(len(cells), size=n_overall)
        return places, *draws(cells.at(places), 1, of_z)
    z, log_library = draws(cells, math.ceil(n_overall / len(cells)), of_z)
    weights = importance_weights(cells, z, seed=of_weights, **weighting)
    chosen = rng.choice(len(z), n_overall, p=weights)
    return chosen % len(cells), z[chosen], log_library[chosen]


@question
def importance_weights(
    cells: Cells,
    z_mk: Tensor,
    *,
    max_cells: int,
    truncation: bool,
    n_mc_samples: int,
    seed: int,
) -> F64:
    """Weights of m points z, before a logistic-normal's softmax, that add up to 1.

    With the cells a (``max_cells`` of them at most, drawn without replacement):
    w(z) = sum_a p(z) p(x_a|z) / p(x_a) / sum_a q(z|x_a).  A point counts for much where
    cells find it more likely than it was to be drawn from their q(z|x).  Each cell is
    decoded with its own covariates and library (the mean of q(l|x) where that is latent).

    Parameters
    ----------
    cells
        The group.
    z_mk
        Tensor, shape (m, k), on the CPU.
    max_cells
        Cells that speak for the group.
    truncation
        Weights above their mean times the root of m are cut to that.
    n_mc_samples
        Draws behind each p(x_a).
    seed
        Of the draws.

    Notes
    -----
    Source: Boyeau et al. 2023, doi:10.1073/pnas.2209124120; truncation: Ionides 2008,
    doi:10.1198/106186008X320456.
    """
    if len(cells) == 0:
        raise OptionError("indices names no cells; importance weights need at least one.")
    if len(z_mk) == 0:
        raise OptionError("zs holds no points; give at least one, or leave it None.")
    from vivace.progress import PassingBar  # the compiler: only those who ask wait

    choice, of_marginal = children(seed, 2)
    network = cells.network
    if len(cells) > max_cells:
        rng = np.random.default_rng(choice)
        cells = cells.at(np.sort(rng.choice(len(cells), max_cells, replace=False)))
    log_px = torch.from_numpy(marginal_ll(cells, n_mc_samples, of_marginal))
    z_mk = z_mk.to(network.device)
    point_mk = network.place(z_mk)
    likely = torch.full((len(z_mk),), -math.inf, dtype=torch.float64)
    proposed = likely.clone()
    with PassingBar("Importance weights", len(cells), "cells", not cells.silent) as bar:
        for part, batch, inference in cells.quiet().encoded():
            log_library = network.log_library(batch, inference)
            for i in range(batch.n_cells):
                log_q = _log_normal(z_mk, inference.z.mean[i], inference.z.variance[i].sqrt())
                proposed = torch.logaddexp(proposed, log_q)
                place = part.start + i
                log_px_z = _log_likelihood(cells.at(np.array([place])), point_mk, log_library[i])
                likely = torch.logaddexp(likely, log_px_z - log_px[place])
                bar.done(1)
    prior = _log_normal(z_mk, 0.0, 1.0)
    log_weight = prior + likely - proposed
    if truncation:
        mean = torch.logsumexp(log_weight, 0) - math.log(len(log_weight))
        log_weight = log_weight.clamp(max=float(mean) + 0.5 * math.log(len(log_weight)))
    weights: F64 = torch.softmax(log_weight, 0).numpy()
    return weights


def _log_normal(z_mk: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """Log density of a normal at m points, float64 on the CPU, shape (m,)."""
    density: Tensor = Normal(mean, deviation).log_prob(z_mk)  # type: ignore[no-untyped-call]
    return density.sum(1).cpu().double()


def _log_likelihood(cell: Cells, point_mk: Tensor, log_library: Tensor) -> Tensor:
    """Log p(x|z) of one cell at m points, float64 on the CPU, shape (m,)."""
    network, found = cell.network, []
    for points in torch.split(point_mk, cell.batch_size):
        rows = np.repeat(cell.rows, len(points))
        batch = cell.source.gather(rows).to(network.device)
        found.append(-network.nll(points, batch, log_library.expand(len(points))).cpu().double())
    return torch.cat(found)
