"""Adam with little to do between the kernel calls of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` whose steps, after the first, go straight to the kernel.

    On a CPU torch spends 0.2 ms a step on grouping the parameters by device and
    type and on profiler hooks, as long as a matrix product of the model.  State,
    parameter groups and results are those of ``torch.optim.Adam``.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> adam = FusedAdam([weight], lr=0.1)
    >>> weight.grad = torch.ones(1)
    >>> adam.step()
    >>> weight.data
    tensor([0.9000])
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, fused=True, **settings)
        self._groups: list[_Group] = []

    def step(self, closure: Any = None) -> Any:
        """One step; the first goes through torch, which makes the state."""
        grads = [[p.grad for p in group.params if p.grad is not None] for group in self._groups]
        complete = all(len(g) == len(of.params) for g, of in zip(grads, self._groups, strict=True))
        if closure is not None or not grads or not complete:
            result = super().step(closure)
            self._groups = self._collected()
            return result
        with torch.no_grad():
            for group, its_grads in zip(self._groups, grads, strict=True):
                group.steps.add_(1)
                torch._fused_adam_(
                    group.params, its_grads, group.averages, group.squares, [], group.step_of,
                    lr=group.settings["lr"],
                    beta1=group.settings["betas"][0],
                    beta2=group.settings["betas"][1],
                    weight_decay=group.settings["weight_decay"],
                    eps=group.settings["eps"],
                    amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
                )  # fmt: skip
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it for its profiler

    def load_state_dict(self, state_dict: Any) -> None:
        """Also forget what was collected of the state that was there."""
        super().load_state_dict(state_dict)
        self._groups = []

    def _collected(self) -> list[_Group]:
        """What the kernel takes; empty where torch's own way is to be gone again."""
        groups = []
        for settings in self.param_groups:
            params = list(settings["params"])
            if any(p not in self.state or p.device.type != "cpu" for p in params):
                return []
            state = [self.state[p] for p in params]
            steps = torch.stack([s["step"] for s in state])
            for i, s in enumerate(state):
                s["step"] = steps[i]  # a view: one addition moves them all
            groups.append(
                _Group(
                    settings,
                    params,
                    [s["exp_avg"] for s in state],
                    [s["exp_avg_sq"] for s in state],
                    steps,
                    [s["step"] for s in state],
                )
            )
        return groups


@dataclass(frozen=True)
class _Group:
    settings: dict[str, Any]
    params: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: Tensor
    step_of: list[Tensor]
