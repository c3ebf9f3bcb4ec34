"""How well do points of the latent space represent a group of cells?"""

from __future__ import annotations

import inspect
import math
from typing import Any, TypedDict, cast

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from vivace.cells import Cells, child_seeds, question
from vivace.core import Core
from vivace.errors import OptionError, ShapeError
from vivace.questions.latent import sample_cells
from vivace.questions.marginal import marginal_ll
from vivace.types import F64, I64, Indices
from vivace.validate import COUNT, FLAG, Check, float_tensor, refuse_unknown


class Weighting(TypedDict, total=False):
    """Options of importance weights; see :func:`get_importance_weights`."""

    max_cells: int
    truncation: bool
    n_mc_samples: int
    n_mc_samples_per_pass: int


_CHECKS: dict[str, Check] = {
    "max_cells": COUNT,
    "truncation": FLAG,
    "n_mc_samples": COUNT,
    "n_mc_samples_per_pass": COUNT,
}


@question(**_CHECKS)
def get_importance_weights(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    zs: NDArray[Any] | Tensor | None = None,
    *,
    max_cells: int = 1024,
    truncation: bool = False,
    n_mc_samples: int = 500,
    n_mc_samples_per_pass: int = 250,
    batch_size: int | None = None,
    seed: int | None = None,
    silent: bool = False,
) -> F64:
    """How well points of the latent space represent a group of cells.

    A point has a large weight if cells of the group make it more likely than sampling
    from their q(z|x) does.

    Parameters
    ----------
    adata, indices, batch_size, silent
        The group, as in :meth:`get_latent_representation`.
    zs
        Points, shape (m, k), before a logistic-normal's softmax; None for one sample of each
        cell.
    max_cells
        Maximum number of cells that represent the group, sampled from it.
    truncation
        Truncate weights at their mean times the square root of m.
    n_mc_samples
        Samples for the marginal likelihood of each of those cells.
    n_mc_samples_per_pass
        Accepted as in scvi-tools; has no effect.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    Array, float64, shape (m,), which sums to 1.

    Raises
    ------
    ShapeError
        If ``zs`` is not of shape (m, k).

    Notes
    -----
    Source: Boyeau et al. 2023, doi:10.1073/pnas.2209124120.
    """
    cells = self._cells(adata, indices, batch_size, silent, counts=True)
    first_seed = self._seeds.take(seed)
    if zs is None:
        z_mk, _ = sample_cells(cells, 1, first_seed)
    else:
        z_mk = float_tensor("zs", zs)
        k = self.config.n_latent
        if z_mk.ndim != 2 or z_mk.shape[1] != k:
            raise ShapeError(
                f"zs has shape {tuple(z_mk.shape)}, but points of {k} latent dimensions need "
                f"(m, {k})."
            )
    weighting = Weighting(max_cells=max_cells, truncation=truncation, n_mc_samples=n_mc_samples)
    return importance_weights(cells, z_mk, first_seed, weighting)


def check_weighting(function: str, given: Any) -> Weighting:
    """The options of importance weights that ``function`` was given, with defaults for others."""
    refuse_unknown(function, set(given), _CHECKS)
    parameters = inspect.signature(get_importance_weights).parameters
    weighting = {name: parameters[name].default for name in _CHECKS} | given
    return cast("Weighting", {name: _CHECKS[name](name, v) for name, v in weighting.items()})


def sample_group(
    cells: Cells, n_samples_overall: int, seed: int, weighting: Weighting | None
) -> tuple[I64, Tensor, Tensor]:
    """Samples that represent a group: positions of cells, z before a softmax, log libraries.

    Without ``weighting``, a sample of z from each of ``n_samples_overall`` cells that are sampled
    with replacement; with it, samples of every cell are resampled by their importance weights.
    Shapes (n_samples_overall,), (n_samples_overall, k), (n_samples_overall,).
    """
    if len(cells) == 0:
        raise OptionError("indices selects no cells; samples of a group need at least one.")
    choice_seed, z_seed, weights_seed = child_seeds(seed, 3)
    rng = np.random.default_rng(choice_seed)
    if weighting is None:
        positions = rng.integers(len(cells), size=n_samples_overall)
        return positions, *sample_cells(cells.take(positions), 1, z_seed)
    z_mk, log_library_m = sample_cells(cells, math.ceil(n_samples_overall / len(cells)), z_seed)
    weights_m = importance_weights(cells, z_mk, weights_seed, weighting)
    chosen = rng.choice(len(z_mk), n_samples_overall, p=weights_m)
    return chosen % len(cells), z_mk[chosen], log_library_m[chosen]


def importance_weights(cells: Cells, z_mk: Tensor, seed: int, weighting: Weighting) -> F64:
    """Weights of m points z, before a logistic-normal's softmax, which sum to 1.

    With the cells a (``max_cells`` of them at most, sampled without replacement):
    w(z) = sum_a p(z) p(x_a|z) / p(x_a) / sum_a q(z|x_a). Each cell is decoded with its own
    covariates and library (the mean of q(l|x) where that is latent).

    Notes
    -----
    Source: Boyeau et al. 2023, doi:10.1073/pnas.2209124120; truncation: Ionides 2008,
    doi:10.1198/106186008X320456.
    """
    from vivace.progress import PassingBar  # lazy: importing Numba takes a second

    if len(cells) == 0:
        raise OptionError("indices selects no cells; importance weights need at least one.")
    if len(z_mk) == 0:
        raise OptionError("zs holds no points; give at least one, or leave it None.")
    choice_seed, marginal_seed = child_seeds(seed, 2)
    network, max_cells = cells.network, weighting["max_cells"]
    if len(cells) > max_cells:
        rng = np.random.default_rng(choice_seed)
        cells = cells.take(np.sort(rng.choice(len(cells), max_cells, replace=False)))
    log_px = torch.from_numpy(marginal_ll(cells, weighting["n_mc_samples"], marginal_seed))
    z_mk = z_mk.to(network.device)
    point_mk = network.place(z_mk)
    # log sums over cells of p(x_a|z) / p(x_a), and of q(z|x_a)
    log_ratios_m = torch.full((len(z_mk),), -math.inf, dtype=torch.float64)
    log_proposals_m = log_ratios_m.clone()
    with PassingBar("Importance weights", len(cells), "cells", not cells.silent) as bar:
        for part, batch, inference in cells.quiet().encoded():
            log_library_n = network.log_library(batch, inference)
            for i in range(batch.n_cells):
                deviation = inference.z.variance[i].sqrt()
                log_q_m = _log_normal(z_mk, inference.z.mean[i], deviation)
                log_proposals_m = torch.logaddexp(log_proposals_m, log_q_m)
                position = part.start + i
                cell = cells.take(np.array([position]))
                log_px_z_m = _log_likelihood(cell, point_mk, log_library_n[i])
                log_ratios_m = torch.logaddexp(log_ratios_m, log_px_z_m - log_px[position])
                bar.done(1)
    log_weight_m = _log_normal(z_mk, 0.0, 1.0) + log_ratios_m - log_proposals_m
    if weighting["truncation"]:
        log_m = math.log(len(log_weight_m))
        log_mean = torch.logsumexp(log_weight_m, 0) - log_m
        log_weight_m = log_weight_m.clamp(max=float(log_mean) + 0.5 * log_m)
    weights_m: F64 = torch.softmax(log_weight_m, 0).numpy()
    return weights_m


def _log_normal(z_mk: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """Log density of a normal distribution at m points, float64 on the CPU, shape (m,)."""
    density: Tensor = Normal(mean, deviation).log_prob(z_mk)  # type: ignore[no-untyped-call]
    return density.sum(1).cpu().double()


def _log_likelihood(cell: Cells, point_mk: Tensor, log_library: Tensor) -> Tensor:
    """Log p(x|z) of one cell at m points, float64 on the CPU, shape (m,)."""
    network, parts = cell.network, []
    for points in torch.split(point_mk, cell.batch_size):
        batch = cell.source.gather(np.repeat(cell.rows, len(points))).to(network.device)
        nll = network.nll(points, batch, log_library.expand(len(points)))
        parts.append(-nll.cpu().double())
    return torch.cat(parts)
