"""Where do groups of cells lie in the latent space, and which samples is a place typical of?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from vivace.cells import question
from vivace.core import Core
from vivace.data.columns import code_column, describe_missing_texts
from vivace.errors import OptionError, warn
from vivace.questions.latent import encode
from vivace.types import F32, Indices
from vivace.validate import OPTIONAL_COUNT, Number

_AT_ONCE = 1 << 24  # numbers of points x components x dimensions held at a time
_DOF = Number(above=0, optional=True)


@question(dof=_DOF)
def get_aggregated_posterior(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    batch_size: int | None = None,
    dof: float | None = 3.0,
    *,
    silent: bool = False,
) -> MixtureSameFamily:
    """The mixture of q(z|x) over cells: where a group of them lies.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    dof
        Degrees of freedom of Student's t, whose tails are heavier; None for normal
        components.

    Returns
    -------
    A torch distribution over points z, shape (k,), before a logistic-normal's softmax.
    """
    cells = self._cells(adata, indices, batch_size, silent)
    if len(cells) == 0:
        raise OptionError("indices selects no cells; an aggregated posterior needs one.")
    return mixture(*encode(cells), dof)


@question(num_cells_posterior=OPTIONAL_COUNT, dof=_DOF)
def differential_abundance(
    self: Core,
    adata: AnnData | None = None,
    sample_key: str | None = None,
    batch_size: int | None = None,
    num_cells_posterior: int | None = None,
    dof: float | None = None,
    *,
    indices: Indices | None = None,
    seed: int | None = None,
    silent: bool = False,
) -> pd.DataFrame:
    """How typical each cell's position in the latent space is of each sample.

    The log density, at the mean of a cell's q(z|x), of the aggregated posterior of
    the cells of each sample. Differences between columns say in which samples such
    cells are common. For all cells (``indices=None``) it is also written to
    ``adata.obsm["da_log_probs"]``.

    Parameters
    ----------
    adata
        Cells, aligned by gene name; None for the model's own.
    sample_key
        Column of obs with the sample of each cell.
    batch_size, indices, silent
        As in :meth:`get_latent_representation`; samples consist of these cells too.
    num_cells_posterior
        Maximum number of cells used per sample, chosen at random.
    dof
        As in :meth:`get_aggregated_posterior`.
    seed
        Random seed of that choice; None uses the model's next seed.

    Returns
    -------
    Frame, cells x samples, nats.

    Raises
    ------
    MissingColumnError
        If obs has no such column.

    Notes
    -----
    Source: Boyeau et al. 2024 (MrVI), doi:10.1101/2022.10.04.510898.
    """
    cells = self._cells(adata, indices, batch_size, silent)
    data = self._resolve_adata(adata)
    samples = code_column(data, "sample_key", sample_key)
    if sentence := describe_missing_texts(samples):
        warn(sentence)
    sample_n = samples.codes[cells.rows]
    rng = np.random.default_rng(self._seed(seed, random=num_cells_posterior is not None))
    mean_nk, variance_nk = encode(cells)
    densities = {}
    for code in pd.unique(sample_n):
        rows = np.flatnonzero(sample_n == code)
        if num_cells_posterior is not None and len(rows) > num_cells_posterior:
            rows = np.sort(rng.choice(rows, num_cells_posterior, replace=False))
        posterior = mixture(mean_nk[rows], variance_nk[rows], dof)
        densities[str(samples.categories[code])] = log_density(posterior, torch.from_numpy(mean_nk))
    frame = pd.DataFrame(densities, index=data.obs_names[cells.rows])
    if indices is None:
        data.obsm["da_log_probs"] = frame
    return frame


def mixture(mean_nk: F32, variance_nk: F32, dof: float | None) -> MixtureSameFamily:
    """A mixture with one component per cell: normal, or Student's t with ``dof`` degrees of freedom.

    The location and scale of a component are the mean and standard deviation of one q(z|x).
    """
    mean, scale = torch.from_numpy(mean_nk), torch.from_numpy(variance_nk).sqrt()
    components = Normal(mean, scale) if dof is None else StudentT(dof, mean, scale)
    return MixtureSameFamily(
        Categorical(logits=torch.zeros(len(mean), dtype=torch.float32)),
        Independent(components, 1),
        validate_args=False,
    )


def log_density(mixture: MixtureSameFamily, z_mk: Tensor) -> F32:
    """Log density of a mixture at m points, shape (m,), in bounded memory."""
    n_components, k = mixture.mixture_distribution.probs.shape[0], z_mk.shape[1]
    step = max(1, _AT_ONCE // (n_components * k))
    parts: list[Tensor] = [
        mixture.log_prob(part)  # type: ignore[no-untyped-call]
        for part in torch.split(z_mk, step)
    ]
    return torch.cat(parts).numpy()
