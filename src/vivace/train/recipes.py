"""How long to train and how the step size and the KL weight go.

Two recipes.  "fast" is a trapezoid: the learning rate rises, stays, and decays
to zero over the last part of a step budget that follows from the number of
cells; the KL weight rises over a fraction of that budget.  A stop at a plateau
of the constant part would be followed by the same decay, and a second call of
``train`` enters the constant part again at full KL weight.  "scvi-tools" is
scvi-tools 1.4.2's default, to the letter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vivace.errors import ArgumentTypeError, OptionError, near
from vivace.validate import true_or_false

BATCH_SIZE = 128
_FEW_CELLS = 4_000
_VERY_FEW_CELLS = 1_500
_LEAST_MEMORY = 20  # steps
_HELD = 0.25  # of the steps: final decay, where training may stop early
METRICS = (  # columns of the history that can be watched
    "elbo_validation",
    "reconstruction_loss_validation",
    "kl_local_validation",
    "validation_loss",
    "elbo_train",
    "train_loss",
)


@dataclass(frozen=True)
class Recipe:
    """Optimiser settings and schedules.

    Parameters
    ----------
    name
        Its name in ``train(recipe=...)``.
    lr
        Highest learning rate of Adam.
    eps, weight_decay
        Adam's epsilon and L2 penalty.
    beta1, beta2
        Decay of Adam's means of gradients and of their squares, a step.
    memory
        Share of the steps that the mean of squares remembers, where that is less than ``beta2``
        does (and 20 steps at least); None: ``beta2`` says it.
    vector_lr
        Learning rate of biases, norms and dispersions, as a multiple of ``lr``.
    momentum
        Of batch norm's running statistics; they see a minibatch this much.
    decay_matrices_only
        The L2 penalty leaves out biases, batch norm and dispersion.
    lr_warmup, lr_decay
        Fractions of the steps in which the learning rate rises linearly from near 0, and falls to 0
        along a cosine.
    kl_warmup
        Fraction of the steps in which the KL weight rises; None: see the next two.
    n_epochs_kl_warmup, n_steps_kl_warmup
        The same in epochs or in steps; steps win over epochs, and both over the fraction.
    min_kl_weight, max_kl_weight
        Where the KL weight starts and ends.
    from_data
        Output bias and dispersion start at the data's moments.
    patience
        Epochs without an improvement after which early stopping stops.
    keep_best
        The weights of the epoch with the best validation ELBO stay.
    judged_in_warmup
        Early stopping counts epochs before the full KL weight too.
    reduce_lr_on_plateau
        The learning rate is multiplied by ``lr_factor`` where ``lr_scheduler_metric`` has not
        fallen by more than ``lr_threshold`` for more than ``lr_patience`` epochs, but not below
        ``lr_min``.
    """

    name: str
    lr: float
    eps: float
    weight_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    memory: float | None = None
    vector_lr: float = 1.0
    momentum: float = 0.01
    decay_matrices_only: bool = False
    lr_warmup: float = 0.0
    lr_decay: float = 0.0
    kl_warmup: float | None = None
    n_epochs_kl_warmup: int | None = None
    n_steps_kl_warmup: int | None = None
    min_kl_weight: float = 0.0
    max_kl_weight: float = 1.0
    from_data: bool = False
    patience: int = 45
    keep_best: bool = False
    judged_in_warmup: bool = False
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_threshold: float = 0.0
    lr_min: float = 0.0
    lr_scheduler_metric: str = "elbo_validation"

    def epochs(self, n_cells: int, n_train: int) -> int:
        """Epochs where ``max_epochs`` is not given."""
        if self.name == "scvi-tools":
            return max(1, min(round(20_000 / n_cells * 400), 400))
        return fast_epochs(n_train)

    def batch_size(self, n_train: int) -> int:
        """Cells of a minibatch where ``batch_size`` is not given."""
        return BATCH_SIZE if self.name == "scvi-tools" else fast_batch_size(n_train)

    def betas(self, n_steps: int) -> tuple[float, float]:
        """Adam's decays in a run of ``n_steps``."""
        if self.memory is None:
            return self.beta1, self.beta2
        return self.beta1, min(self.beta2, 1 - 1 / max(self.memory * n_steps, _LEAST_MEMORY))

    def learning_rate(self, step: int, n_steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``n_steps``."""
        rising, falling = self.lr_warmup * n_steps, self.lr_decay * n_steps
        factor = 1.0
        if step + 1 < rising:
            factor = (step + 1) / rising
        if falling > 0 and step > n_steps - falling:
            into = (step - (n_steps - falling)) / falling
            factor = min(factor, 0.5 * (1.0 + math.cos(math.pi * into)))
        return self.lr * factor

    def kl_weight(self, step: int, n_steps: int, epoch: int) -> float:
        """KL weight of step ``step`` (from 0), in epoch ``epoch`` (from 0)."""
        share = 1.0
        if self.n_steps_kl_warmup:
            share = step / self.n_steps_kl_warmup
        elif self.n_epochs_kl_warmup:
            share = epoch / self.n_epochs_kl_warmup
        elif self.kl_warmup:
            share = step / (self.kl_warmup * n_steps)
        return self.min_kl_weight + min(1.0, share) * (self.max_kl_weight - self.min_kl_weight)

    def held(self, epochs: int, usual: int) -> Recipe:
        """The same for early stopping: the learning rate stays up until a plateau, or nearly to the end.

        The KL weight is full long before; ``usual`` is the recipe's own number of
        epochs, by which warm-ups and memory are measured where ``epochs`` is larger.
        """
        if self.lr_decay == 0:
            return self
        share = min(1.0, usual / epochs)
        return replace(
            self,
            lr_warmup=self.lr_warmup * share,
            kl_warmup=None if self.kl_warmup is None else self.kl_warmup * share,
            lr_decay=_HELD,
            memory=None if self.memory is None else self.memory * share,
        )

    def continued(self) -> Recipe:
        """The same for a second call of ``train``: no warm-up of step size or KL weight.

        scvi-tools starts its warm-up again, and so does its recipe.
        """
        if self.name == "scvi-tools":
            return self
        return replace(
            self,
            lr_warmup=0.0,
            kl_warmup=None,
            n_epochs_kl_warmup=None,
            n_steps_kl_warmup=None,
        )

    def with_plan(self, plan: Mapping[str, Any] | None) -> Recipe:
        """The recipe with some of its numbers replaced by ``plan_kwargs``."""
        changes = dict(plan or {})
        for name, value in changes.items():
            if name not in PLAN_OPTIONS:
                raise ArgumentTypeError(f"plan_kwargs has no {name!r}; {near(name, PLAN_OPTIONS)}")
            _check_plan(name, value)
        if changes.get("n_steps_kl_warmup", 0) is None:
            del changes["n_steps_kl_warmup"]  # None is no other warm-up, as in scvi-tools
        if "n_epochs_kl_warmup" in changes or "n_steps_kl_warmup" in changes:
            changes = {"kl_warmup": None, "n_epochs_kl_warmup": None, **changes}
        recipe = replace(self, **changes)
        if recipe.min_kl_weight > recipe.max_kl_weight:
            raise OptionError(
                f"min_kl_weight ({recipe.min_kl_weight:g}) is above max_kl_weight "
                f"({recipe.max_kl_weight:g}); lower one or raise the other."
            )
        return recipe


class Schedule:
    """Learning rate of each step of one call of ``train``.

    Parameters
    ----------
    recipe
        Where the learning rate comes from.
    n_steps
        Steps in all; fewer after :meth:`finish`.
    """

    def __init__(self, recipe: Recipe, n_steps: int) -> None:
        self.recipe = recipe
        self.n_steps = n_steps
        self.scale = 1.0
        self._finish_from: int | None = None
        self._finish_lr = 0.0

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        if self._finish_from is None:
            return self.scale * self.recipe.learning_rate(step, self.n_steps)
        into = (step - self._finish_from) / (self.n_steps - self._finish_from)
        return self._finish_lr * 0.5 * (1.0 + math.cos(math.pi * into))

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to zero in the end."""
        return self.recipe.lr_decay > 0

    def falling(self, step: int) -> bool:
        """Whether it has begun to."""
        begins = (1 - self.recipe.lr_decay) * self.n_steps
        return self._finish_from is not None or (self.decays and step > begins)

    def finish(self, step: int, steps: int) -> None:
        """Let the learning rate fall to zero over the next ``steps``, or what is left."""
        self._finish_lr = self.learning_rate(step)
        self._finish_from, self.n_steps = step, min(self.n_steps, step + max(steps, 1))

    def reduce(self) -> None:
        """Multiply the learning rate by ``lr_factor``, down to ``lr_min``."""
        least = self.recipe.lr_min / self.recipe.lr if self.recipe.lr else 0.0
        self.scale = max(self.scale * self.recipe.lr_factor, min(least, self.scale))

    def halve(self) -> None:
        """Half the learning rate from here on."""
        self.scale /= 2
        self._finish_lr /= 2


PLAN_OPTIONS = (
    "lr",
    "eps",
    "weight_decay",
    "n_epochs_kl_warmup",
    "n_steps_kl_warmup",
    "min_kl_weight",
    "max_kl_weight",
    "reduce_lr_on_plateau",
    "lr_factor",
    "lr_patience",
    "lr_threshold",
    "lr_min",
    "lr_scheduler_metric",
)


def _check_plan(name: str, value: object) -> None:
    """Refuse what the option of that name cannot be."""
    if name == "reduce_lr_on_plateau":
        true_or_false(f"plan_kwargs[{name!r}]", value)
        return
    if name == "lr_scheduler_metric":
        if value not in METRICS:
            raise OptionError(
                f"plan_kwargs[{name!r}] must be one of {', '.join(METRICS)}, not {value!r}."
            )
        return
    optional = name.startswith("n_")
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or (optional and value is None)
    ):
        raise ArgumentTypeError(f"plan_kwargs[{name!r}] must be a number, not {value!r}.")
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise OptionError(f"plan_kwargs[{name!r}] must be finite and >= 0, not {value}.")
    if name == "lr_factor" and not float(value) < 1:  # type: ignore[arg-type]
        raise OptionError(f"plan_kwargs['lr_factor'] must be below 1, not {value}.")


def fast_batch_size(n_train: int) -> int:
    """Cells of a minibatch of the "fast" recipe: few cells need the steps more than the rate.

    Examples
    --------
    >>> [fast_batch_size(n) for n in (1_000, 10_000)]
    [64, 128]
    """
    return BATCH_SIZE if n_train >= _FEW_CELLS else BATCH_SIZE // 2


def fast_epochs(n_train: int) -> int:
    """Epochs of the "fast" recipe: visits per cell fall with the root of their number.

    Below 4,000 cells, where minibatches are half as large, they stay about the same:
    more would overfit.

    Examples
    --------
    >>> [fast_epochs(n) for n in (100, 3_000, 10_000, 100_000, 1_000_000)]
    [16, 13, 14, 5, 2]
    """
    if n_train < _FEW_CELLS:
        return 16 if n_train < _VERY_FEW_CELLS else 13
    return max(2, min(14, round(1500 / math.sqrt(n_train))))


RECIPES: dict[str, Recipe] = {
    "fast": Recipe(
        name="fast",
        lr=1e-2,
        eps=1e-4,
        weight_decay=3e-3,
        beta1=0.8,
        memory=0.04,
        vector_lr=3.0,
        momentum=0.05,
        decay_matrices_only=True,
        lr_warmup=0.1,
        lr_decay=0.6,
        kl_warmup=0.25,
        from_data=True,
        patience=8,
        keep_best=True,
    ),
    "scvi-tools": Recipe(
        name="scvi-tools",
        lr=1e-3,
        eps=0.01,
        weight_decay=1e-6,
        n_epochs_kl_warmup=400,
        judged_in_warmup=True,
    ),
}
