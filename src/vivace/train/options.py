"""The arguments of ``train``, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vivace.errors import ArgumentTypeError, OptionError
from vivace.train.callbacks import Listeners
from vivace.train.recipes import METRICS, RECIPES, Recipe
from vivace.train.watch import Patience
from vivace.validate import number, positive


@dataclass(frozen=True)
class TrainOptions:
    """What one call of ``train`` was asked to do.

    Parameters
    ----------
    recipe
        Schedules and optimiser settings.
    epochs
        Passes over the training cells; None lets the recipe choose.
    max_steps
        Minibatches at most; None for no such limit.
    batch_size
        Cells of a minibatch; None lets the recipe choose.
    patience
        When to stop early; None for never.
    seed
        Of initialisation, order and noise.
    accelerator
        Lightning Fabric's name of a device, or "auto".
    listeners
        Callbacks and loggers.
    progress
        Whether a bar is shown.
    summarise
        Called with the verdict so far after every epoch and at the end.
    """

    recipe: Recipe
    epochs: int | None
    max_steps: int | None
    batch_size: int | None
    patience: Patience | None
    seed: int
    accelerator: str
    listeners: Listeners
    progress: bool
    summarise: Callable[[str], None]


def recipe_of(name: object, plan_kwargs: object) -> Recipe:
    """The recipe of that name, with ``plan_kwargs`` in place of its numbers."""
    if not isinstance(name, str) or name not in RECIPES:
        raise OptionError(f"recipe must be one of {', '.join(map(repr, RECIPES))}, not {name!r}.")
    if plan_kwargs is not None and not isinstance(plan_kwargs, Mapping):
        raise ArgumentTypeError(f"plan_kwargs must be a dict or None, not {plan_kwargs!r}.")
    return RECIPES[name].with_plan(plan_kwargs)


def max_steps_of(value: object) -> int | None:
    """``max_steps``: None, or Lightning's -1, is no limit."""
    if value == -1:
        return None
    positive("max_steps", value)
    return value  # type: ignore[return-value]


def patience_of(
    recipe: Recipe,
    early_stopping: object,
    monitor: object,
    patience: Any,
    min_delta: Any,
    mode: object,
    warmup: Any,
) -> Patience | None:
    """The early stopping that was asked for."""
    if early_stopping is not None and not isinstance(early_stopping, bool):
        raise ArgumentTypeError(
            f"early_stopping must be True, False or None, not {early_stopping!r}."
        )
    if monitor not in METRICS:
        raise OptionError(
            f"early_stopping_monitor must be one of {', '.join(METRICS)}, not {monitor!r}."
        )
    if mode not in ("min", "max"):
        raise OptionError(f"early_stopping_mode must be 'min' or 'max', not {mode!r}.")
    positive("early_stopping_patience", patience)
    number("early_stopping_min_delta", min_delta)
    if min_delta is None or not math.isfinite(min_delta):
        raise OptionError(f"early_stopping_min_delta must be a finite number, not {min_delta}.")
    if warmup != 0:
        positive("early_stopping_warmup_epochs", warmup)
    if not early_stopping:
        return None
    if patience is None:
        patience = recipe.patience
    return Patience(
        str(monitor), int(patience), abs(float(min_delta)), mode == "min", int(warmup or 0)
    )
