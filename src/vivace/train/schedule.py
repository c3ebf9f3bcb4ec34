"""The learning rate over the steps of one call of ``train``."""

from __future__ import annotations

import math

from vivace.train.recipe import Recipe


class Schedule:
    """Learning rate of each step.

    It follows the recipe until the loop intervenes: early stopping ends the training
    with a decay, a plateau reduces the rate, and a loss that is not finite halves it.

    Parameters
    ----------
    recipe
        Gives the learning rate.
    n_steps
        Number of steps; smaller after :meth:`decay_from`.
    """

    def __init__(self, recipe: Recipe, n_steps: int) -> None:
        self.recipe = recipe
        self.n_steps = n_steps
        self._scale = 1.0
        self._decay_step: int | None = None  # from which a decay of its own began
        self._decay_lr = 0.0

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self._decay_step is None:
            return self._scale * self.recipe.learning_rate(step, self.n_steps)
        done = (step - self._decay_step) / (self.n_steps - self._decay_step)
        return self._decay_lr * 0.5 * (1.0 + math.cos(math.pi * done))

    def kl_weight(self, step: int, epoch: int) -> float:
        """KL weight of a step in an epoch, both counted from 0."""
        return self.recipe.kl_weight(step, self.n_steps, epoch)

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to zero at the end."""
        return self.recipe.lr_decay > 0

    def is_decaying(self, step: int) -> bool:
        """Whether the learning rate has begun to fall to zero."""
        start = (1 - self.recipe.lr_decay) * self.n_steps
        return self._decay_step is not None or (self.decays and step > start)

    def decay_from(self, step: int, n_steps: int) -> None:
        """Let the learning rate fall to zero over the next ``n_steps``, or what is left."""
        self._decay_lr = self.learning_rate(step)
        self._decay_step, self.n_steps = step, min(self.n_steps, step + max(n_steps, 1))

    def reduce(self) -> None:
        """Multiply the learning rate by ``lr_factor``, down to ``lr_min``."""
        lowest = self.recipe.lr_min / self.recipe.lr if self.recipe.lr else 0.0
        self._scale = max(self._scale * self.recipe.lr_factor, min(lowest, self._scale))

    def halve(self) -> None:
        """Halve the learning rate of all later steps."""
        self._scale /= 2
        self._decay_lr /= 2
