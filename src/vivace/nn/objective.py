"""The objective of training: the negative ELBO of a minibatch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vivace.data.batch import CountBatch
from vivace.nn.encoder import Inference
from vivace.ops.count_nll import Reduction


class Losses(NamedTuple):
    """Means over the cells of a minibatch, nats.

    A tuple, because Lightning Fabric looks for tensors in what a module returns.

    Parameters
    ----------
    loss
        Tensor, scalar, reconstruction + kl_weight * kl; differentiable.
    reconstruction, kl
        Tensors, scalar, detached; kl includes that of a latent library.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class LatentVariableModel(Protocol):
    """The interface that the objective needs of a network; :class:`~vivace.nn.VAE` explains the methods."""

    def encode(self, batch: CountBatch, generator: torch.Generator | None = None) -> Inference: ...

    def place(self, z_nk: Tensor) -> Tensor: ...

    def nll(
        self,
        point_nk: Tensor,
        batch: CountBatch,
        log_library_n: Tensor | None = None,
        *,
        reduction: Reduction = "none",
    ) -> Tensor: ...

    def library_kl(self, inference: Inference, batch: CountBatch) -> Tensor: ...


def negative_elbo(
    model: LatentVariableModel,
    batch: CountBatch,
    kl_weight: float,
    generator: torch.Generator | None = None,
) -> Losses:
    """Negative ELBO at one sample of z, and of a latent library, per cell.

    Parameters
    ----------
    model
        Network.
    batch
        Cells.
    kl_weight
        Weight of the KL divergence of z; that of a latent library has weight 1.
    generator
        Source of the noise; None for torch's global generator.
    """
    inference = model.encode(batch, generator)
    point_nk = model.place(inference.z.sample(generator))
    kl = inference.z.kl().mean()
    if inference.library is None:
        reconstruction = model.nll(point_nk, batch, None, reduction="mean")
        loss = reconstruction + kl_weight * kl
    else:
        log_library_n = inference.library.sample(generator)[:, 0]
        reconstruction = model.nll(point_nk, batch, log_library_n, reduction="mean")
        library_kl = model.library_kl(inference, batch).mean()
        loss = reconstruction + kl_weight * kl + library_kl
        kl = kl + library_kl
    return Losses(loss, reconstruction.detach(), kl.detach())
