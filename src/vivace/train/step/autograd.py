"""A training step by autograd and Lightning Fabric: any network, any device, any part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vivace.data import CountBatch
from vivace.session import quiet_torch
from vivace.train.flat import FlatWeights, Stretch
from vivace.train.recipe import Recipe
from vivace.train.subnormal import FLUSH_EVERY, flush_subnormal

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class AutogradStep:
    """One step by autograd.

    Adam moves the parameters in their flat buffer. Where only some rows of a parameter
    are trained it is given a view of them, and the others are out of its reach.

    Gradients stay where autograd puts them: adding them up in the flat buffer takes 5 %
    of a step on the CPU.

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
        self._views: list[tuple[nn.Parameter, slice, Tensor]] = []
        groups = []
        for is_matrix in (True, False):
            decay, factor = recipe.adam_settings(is_matrix)
            # Each parameter by itself, not the buffer as one: on the CPU torch rounds the last
            # numbers of a tensor in another way than the rest.
            leaves = [self._leaf(s) for s in weights.stretches if s.is_matrix == is_matrix]
            groups.append({"params": leaves, "weight_decay": decay, "lr_factor": factor})
        adam = torch.optim.Adam(groups, lr=recipe.lr, eps=recipe.eps, betas=betas, fused=True)
        self._network, self._adam = fabric.setup(weights.network, adam)
        self._steps = 0

    def _leaf(self, stretch: Stretch) -> Tensor:
        """What Adam is given: the parameter, or a view of some of its rows."""
        if stretch.rows is None:
            return stretch.parameter
        view = stretch.parameter.detach()[stretch.rows]
        self._views.append((stretch.parameter, stretch.rows, view))
        return view

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, generator: torch.Generator
    ) -> Tensor:
        """Loss, reconstruction and KL before the move, shape (3,), nats per cell."""
        for group in self._adam.param_groups:
            group["lr"] = lr * group["lr_factor"]
        losses: Any = self._network(batch, kl_weight, generator)
        self._fabric.backward(losses.loss)
        for parameter, rows, view in self._views:
            view.grad = None if parameter.grad is None else parameter.grad[rows]
        self._adam.step()
        self._network.zero_grad()
        self._steps += 1
        if self._steps % FLUSH_EVERY == 0:
            for weight, state in self._adam.state.items():
                flush_subnormal([weight, state["exp_avg"], state["exp_avg_sq"]])
        return torch.stack(losses).detach()


@quiet_torch()
def make_fabric(accelerator: str) -> Fabric:
    """Lightning Fabric on one device."""
    # lazy: importing Lightning Fabric takes a second, and training on the CPU rarely needs it
    from lightning_fabric import Fabric

    return Fabric(accelerator=accelerator, devices=1)
