"""A training step by autograd and Lightning Fabric: any network, any device, any part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vivace.data import CountBatch
from vivace.train.flat import FlatWeights
from vivace.train.recipe import Recipe
from vivace.train.subnormal import FLUSH_EVERY, flush_subnormal

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class AutogradStep:
    """One step by autograd.

    Autograd adds every gradient to its place in the flat buffer. Adam is given views of
    the stretches that are trained; the rows between them are out of its reach.

    Parameters
    ----------
    fabric
        Runs the network on its device.
    weights
        The network in flat buffers, on that device.
    recipe
        Settings of Adam.
    betas
        Adam's decays.
    """

    def __init__(
        self, fabric: Fabric, weights: FlatWeights, recipe: Recipe, betas: tuple[float, float]
    ) -> None:
        self._fabric = fabric
        self._gradients = weights.gradients
        for parameter, gradient in weights.gradient_views():
            parameter.grad = gradient
        groups = []
        for is_matrix in (True, False):
            decay, factor = recipe.adam_settings(is_matrix)
            # A view for each stretch, not one for all: on the CPU torch rounds the last numbers
            # of a tensor in another way than the rest.
            views = [
                _view(weights, s.start, s.stop)
                for s in weights.stretches
                if s.is_matrix == is_matrix
            ]
            groups.append({"params": views, "weight_decay": decay, "lr_factor": factor})
        adam = torch.optim.Adam(groups, lr=recipe.lr, eps=recipe.eps, betas=betas, fused=True)
        self._network, self._adam = fabric.setup(weights.network, adam)
        self._steps = 0

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, generator: torch.Generator
    ) -> Tensor:
        """Loss, reconstruction and KL before the move, shape (3,), nats per cell."""
        for group in self._adam.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self._gradients.zero_()
        losses: Any = self._network(batch, kl_weight, generator)
        self._fabric.backward(losses.loss)
        self._adam.step()
        self._steps += 1
        if self._steps % FLUSH_EVERY == 0:
            for weight, state in self._adam.state.items():
                flush_subnormal([weight, state["exp_avg"], state["exp_avg_sq"]])
        return torch.stack(losses).detach()


def make_fabric(accelerator: str) -> Fabric:
    """Lightning Fabric on one device."""
    # lazy: importing Lightning Fabric takes a second, and training on the CPU rarely needs it
    from lightning_fabric import Fabric

    return Fabric(accelerator=accelerator, devices=1)


def _view(weights: FlatWeights, start: int, stop: int) -> Tensor:
    """A stretch of the weights, with its gradient."""
    view = weights.values[start:stop]
    view.grad = weights.gradients[start:stop]
    return view
