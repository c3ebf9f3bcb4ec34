"""Recipes: how long to train, Adam's settings, and schedules of step size and KL weight.

"fast" is a trapezoid. The learning rate rises, stays, and decays to zero over the
last part of a step budget that follows from the number of cells; the KL weight rises
over a fraction of that budget. A second call of ``train`` starts at the full KL weight.
"scvi-tools" is exactly the default of scvi-tools 1.4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vivace.errors import ArgumentTypeError, OptionError, brief, near
from vivace.validate import Check, Choice, Flag, Number

_BATCH_SIZE = 128
_FEW_CELLS = 4_000
_VERY_FEW_CELLS = 1_500
_MIN_MEMORY = 20  # steps
_FINAL_DECAY = 0.25  # of the steps, where training may stop early
METRICS = (  # columns of the history that can be monitored
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
    choose_epochs
        Number of epochs from the numbers of cells and of training cells, if ``max_epochs``
        is not given.
    choose_batch_size
        Cells per minibatch from the number of training cells, if ``batch_size`` is not given.
    lr
        Highest learning rate of Adam.
    eps, weight_decay
        Adam's epsilon and L2 penalty.
    beta1, beta2
        Decay per step of Adam's averages of gradients and of their squares.
    memory
        Share of the steps that the average of squares remembers, if that is fewer steps
        than ``beta2`` remembers, but at least 20 steps; None leaves it to ``beta2``.
    vector_lr
        Learning rate of biases, norms and dispersions, as a multiple of ``lr``.
    momentum
        Weight of a minibatch in batch norm's running statistics.
    decay_matrices_only
        Whether biases, batch norm and dispersions are exempt from the L2 penalty.
    lr_warmup, lr_decay
        Fractions of the steps in which the learning rate rises linearly from near 0, and
        falls to 0 along a cosine.
    kl_warmup
        Fraction of the steps in which the KL weight rises; None leaves it to the next two.
    n_epochs_kl_warmup, n_steps_kl_warmup
        The same in epochs or in steps. Steps override epochs, and both override the fraction.
    min_kl_weight, max_kl_weight
        KL weight at the start and at the end of the warm-up.
    repeats_warmup
        Whether a further call of ``train`` warms up again.
    from_data
        Whether output bias and dispersion start at the data's moments.
    patience
        Epochs without an improvement after which early stopping stops.
    keep_best
        Whether the weights of the epoch with the best validation ELBO are kept.
    judge_warmup
        Whether epochs before the full KL weight are judged too.
    reduce_lr_on_plateau
        Whether the learning rate is multiplied by ``lr_factor``, down to ``lr_min``, after
        ``lr_scheduler_metric`` has not fallen by more than ``lr_threshold`` for more than
        ``lr_patience`` epochs.
    """

    choose_epochs: Callable[[int, int], int]
    choose_batch_size: Callable[[int], int]
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
    repeats_warmup: bool = False
    from_data: bool = False
    patience: int = 45
    keep_best: bool = False
    judge_warmup: bool = False
    reduce_lr_on_plateau: bool = False
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_threshold: float = 0.0
    lr_min: float = 0.0
    lr_scheduler_metric: str = "elbo_validation"

    def adam_settings(self, is_matrix: bool) -> tuple[float, float]:
        """L2 penalty, and learning rate as a multiple, of matrices or of vectors."""
        if is_matrix:
            return self.weight_decay, 1.0
        return 0.0 if self.decay_matrices_only else self.weight_decay, self.vector_lr

    def betas(self, n_steps: int) -> tuple[float, float]:
        """Adam's decays in a training of ``n_steps``."""
        if self.memory is None:
            return self.beta1, self.beta2
        return self.beta1, min(self.beta2, 1 - 1 / max(self.memory * n_steps, _MIN_MEMORY))

    def learning_rate(self, step: int, n_steps: int) -> float:
        """Learning rate of step ``step``, counted from 0, of ``n_steps``."""
        rising, falling = self.lr_warmup * n_steps, self.lr_decay * n_steps
        factor = 1.0
        if step + 1 < rising:
            factor = (step + 1) / rising
        if falling > 0 and step > n_steps - falling:
            done = (step - (n_steps - falling)) / falling
            factor = min(factor, 0.5 * (1.0 + math.cos(math.pi * done)))
        return self.lr * factor

    def kl_weight(self, step: int, n_steps: int, epoch: int) -> float:
        """KL weight of a step, counted from 0, in an epoch, counted from 0."""
        share = 1.0
        if self.n_steps_kl_warmup:
            share = step / self.n_steps_kl_warmup
        elif self.n_epochs_kl_warmup:
            share = epoch / self.n_epochs_kl_warmup
        elif self.kl_warmup:
            share = step / (self.kl_warmup * n_steps)
        return self.min_kl_weight + min(1.0, share) * (self.max_kl_weight - self.min_kl_weight)

    def for_early_stopping(self, epochs: int, usual: int) -> Recipe:
        """The recipe with a learning rate that stays up until a plateau, or nearly to the end.

        The KL weight reaches its full value long before that. If ``epochs`` is more than
        ``usual``, the recipe's own number, warm-ups and memory are shares of the usual number.
        """
        if self.lr_decay == 0:
            return self
        share = min(1.0, usual / epochs)
        return replace(
            self,
            lr_warmup=self.lr_warmup * share,
            kl_warmup=None if self.kl_warmup is None else self.kl_warmup * share,
            lr_decay=_FINAL_DECAY,
            memory=None if self.memory is None else self.memory * share,
        )

    def for_further_training(self) -> Recipe:
        """The recipe for a further call of ``train``."""
        if self.repeats_warmup:
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
                raise ArgumentTypeError(
                    f"plan_kwargs has no {brief(name)}; {near(name, PLAN_OPTIONS)}"
                )
            changes[name] = PLAN_OPTIONS[name](f"plan_kwargs[{name!r}]", value)
        if changes.get("n_steps_kl_warmup", 0) is None:
            del changes["n_steps_kl_warmup"]  # as in scvi-tools, None keeps the other warm-ups
        if "n_epochs_kl_warmup" in changes or "n_steps_kl_warmup" in changes:
            changes = {"kl_warmup": None, "n_epochs_kl_warmup": None, **changes}
        recipe = replace(self, **changes)
        if recipe.min_kl_weight > recipe.max_kl_weight:
            raise OptionError(
                f"min_kl_weight ({recipe.min_kl_weight:.12g}) is above max_kl_weight "
                f"({recipe.max_kl_weight:.12g}); lower one or raise the other."
            )
        return recipe


PLAN_OPTIONS: dict[str, Check] = {
    "lr": Number(at_least=0),
    "eps": Number(at_least=0),
    "weight_decay": Number(at_least=0),
    "n_epochs_kl_warmup": Number(at_least=0, optional=True),
    "n_steps_kl_warmup": Number(at_least=0, optional=True),
    "min_kl_weight": Number(at_least=0),
    "max_kl_weight": Number(at_least=0),
    "reduce_lr_on_plateau": Flag(),
    "lr_factor": Number(at_least=0, below=1),
    "lr_patience": Number(at_least=0),
    "lr_threshold": Number(at_least=0),
    "lr_min": Number(at_least=0),
    "lr_scheduler_metric": Choice(METRICS),
}


def fast_batch_size(n_train: int) -> int:
    """Cells per minibatch of the "fast" recipe.

    With few cells, many steps matter more than a high rate of cells per second.

    Examples
    --------
    >>> [fast_batch_size(n) for n in (1_000, 10_000)]
    [64, 128]
    """
    return _BATCH_SIZE if n_train >= _FEW_CELLS else _BATCH_SIZE // 2


def fast_epochs(n_cells: int, n_train: int) -> int:
    """Epochs of the "fast" recipe: visits per cell fall with the root of the number of cells.

    Below 4,000 cells, where minibatches are half as large, they stay about the same:
    more would overfit.

    Examples
    --------
    >>> [fast_epochs(n, n) for n in (100, 3_000, 10_000, 100_000, 1_000_000)]
    [16, 13, 14, 5, 2]
    """
    if n_train < _FEW_CELLS:
        return 16 if n_train < _VERY_FEW_CELLS else 13
    return max(2, min(14, round(1500 / math.sqrt(n_train))))


def scvi_tools_batch_size(n_train: int) -> int:
    """Cells per minibatch of scvi-tools, whatever the number of cells."""
    return _BATCH_SIZE


def scvi_tools_epochs(n_cells: int, n_train: int) -> int:
    """Epochs of scvi-tools: 400 for up to 20,000 cells, then as many steps for all.

    Examples
    --------
    >>> [scvi_tools_epochs(n, n) for n in (100, 20_000, 1_000_000)]
    [400, 400, 8]
    """
    return max(1, min(round(20_000 / n_cells * 400), 400))


RECIPES: dict[str, Recipe] = {
    "fast": Recipe(
        choose_epochs=fast_epochs,
        choose_batch_size=fast_batch_size,
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
        choose_epochs=scvi_tools_epochs,
        choose_batch_size=scvi_tools_batch_size,
        lr=1e-3,
        eps=0.01,
        weight_decay=1e-6,
        n_epochs_kl_warmup=400,
        repeats_warmup=True,
        judge_warmup=True,
    ),
}
