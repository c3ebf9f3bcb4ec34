"""Where are the cells of a group in the latent space, and which group is a place typical of?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from vivace.cells import Cells
from vivace.posterior.latent import latent
from vivace.types import F32

_AT_ONCE = 1 << 24  # numbers of points x components x dimensions held at a time


def aggregated_posterior(cells: Cells, dof: float | None) -> MixtureSameFamily:
    """The mixture of q(z|x) over cells, before a logistic-normal's softmax.

    Each component has the mean and the standard deviation of one q(z|x) as its place and
    scale: normal, or Student's t with ``dof`` degrees of freedom.
    """
    return mixture_of(*latent(cells, None), dof)


def mixture_of(mean_nk: F32, variance_nk: F32, dof: float | None) -> MixtureSameFamily:
    """The same from the means and variances of q(z|x)."""
    mean, scale = torch.from_numpy(mean_nk), torch.from_numpy(variance_nk).sqrt()
    parts = Normal(mean, scale) if dof is None else StudentT(dof, mean, scale)
    return MixtureSameFamily(
        Categorical(logits=torch.zeros(len(mean))), Independent(parts, 1), validate_args=False
    )


def log_density(mixture: MixtureSameFamily, z_mk: Tensor) -> F32:
    """Log density of a mixture at m points, shape (m,), in bounded memory."""
    components, k = mixture.mixture_distribution.probs.shape[0], z_mk.shape[1]
    step = max(1, _AT_ONCE // (components * k))
    found: list[Tensor] = [
        mixture.log_prob(part)  # type: ignore[no-untyped-call]
        for part in torch.split(z_mk, step)
    ]
    return torch.cat(found).numpy()
