"""A training step: one minibatch, forward, backward and the optimiser.

There are two implementations. ``fused_cpu`` is a list of kernel calls for the usual
networks on a CPU; ``autograd`` runs any network on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vivace.data import CountBatch
from vivace.nn import VAE
from vivace.train.flat import FlatWeights
from vivace.train.recipe import Recipe
from vivace.train.step.autograd import AutogradStep, make_fabric


class Step(Protocol):
    """Moves a network by one minibatch; it owns its optimiser."""

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, generator: torch.Generator
    ) -> Tensor:
        """Loss, reconstruction and KL before the move, shape (3,), nats per cell."""
        ...


# makes a step, whose optimiser has no memory yet, from weights, a recipe and Adam's betas
MakeStep = Callable[[FlatWeights, Recipe, tuple[float, float]], Step]


def choose_step(network: VAE, accelerator: str) -> MakeStep:
    """The implementation for this network, which is moved to its device.

    Parameters
    ----------
    network
        VAE to be trained.
    accelerator
        Lightning Fabric's name of a kind of device, or "auto".
    """
    if _is_cpu(accelerator):
        network.to("cpu")
        # lazy: importing Numba takes a second
        from vivace.train.step.fused_cpu import FusedCpuStep, supports

        if supports(network):
            return FusedCpuStep
    fabric = make_fabric(accelerator)
    network.to(fabric.device)
    return partial(AutogradStep, fabric)


def _is_cpu(accelerator: str) -> bool:
    """Whether Fabric would take the CPU."""
    has_other = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not has_other)
