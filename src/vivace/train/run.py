"""``train``: fit a model to its data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivace.core import Core, hash_names
from vivace.data import split_rows
from vivace.errors import DataError, warn
from vivace.nn import trained_parts
from vivace.train import Listeners, TrainOptions, fit, max_steps_of, patience_of, recipe_of
from vivace.validate import accelerator_here, checked, number, positive


@checked()
def train(
    self: Core,
    max_epochs: int | None = None,
    *,
    recipe: str = "fast",
    train_size: float = 0.9,
    validation_size: float | None = None,
    batch_size: int | None = None,
    max_steps: int | None = None,
    early_stopping: bool | None = None,
    early_stopping_monitor: str = "elbo_validation",
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    early_stopping_mode: str = "min",
    early_stopping_warmup_epochs: int = 0,
    seed: int | None = None,
    accelerator: str = "auto",
    plan_kwargs: Mapping[str, Any] | None = None,
    callbacks: Any = (),
    logger: Any = None,
    progress: bool = True,
) -> None:
    """Fit the model.

    With the "fast" recipe the weights that stay are those of the epoch with
    the best validation ELBO at KL weight 1.  The last line of
    :attr:`summary` says whether training was long enough.

    Called again, it goes on with the same split and appends to the history.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; None lets the recipe choose from
        their number.
    recipe
        "fast", or "scvi-tools" for the optimiser and schedule of
        scvi-tools 1.4.2.
    train_size, validation_size
        Shares of the cells; None for the second takes all that are left.
    batch_size
        Cells of a minibatch; None for 128, or, with "fast" and fewer than 4,000
        training cells, 64.  The recipe's number of epochs does not depend on it.
    max_steps
        Minibatches at most; None, or -1, for no such limit.
    early_stopping
        Stop where ``early_stopping_monitor``, a column of the history, has
        not improved by more than ``early_stopping_min_delta`` for
        ``early_stopping_patience`` epochs (None: 8, with "scvi-tools" 45).
        "fast" then holds its learning rate up to such a plateau, and lets it
        fall to zero over a quarter as many steps, or over the last quarter of
        the budget; give ``max_epochs`` for a larger budget.  Epochs before the
        full KL weight, and ``early_stopping_warmup_epochs``, are not judged.
        None is False.
    early_stopping_mode
        "min" where the monitored number should fall, else "max".
    seed
        Of the split, the order of cells and the noise; None takes the
        model's next.
    accelerator
        "auto", "cpu", "cuda", "mps": where to train, by Lightning Fabric.
    plan_kwargs
        Numbers of the recipe to replace: lr, eps, weight_decay,
        n_epochs_kl_warmup, n_steps_kl_warmup, min_kl_weight, max_kl_weight;
        reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min,
        lr_scheduler_metric.
    callbacks
        Objects with methods of :class:`vivace.train.Callback`.
    logger
        A logger of Lightning Fabric (CSVLogger, TensorBoardLogger), or several:
        each epoch's row of the history is logged.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError, ArgumentTypeError
        If an argument is not one of the above.
    TrainingError
        If the loss stops being finite.
    """
    plan = recipe_of(recipe, plan_kwargs)
    positive("max_epochs", max_epochs)
    patience = patience_of(
        plan,
        early_stopping,
        early_stopping_monitor,
        early_stopping_patience,
        early_stopping_min_delta,
        early_stopping_mode,
        early_stopping_warmup_epochs,
    )
    number("train_size", train_size)
    number("validation_size", validation_size)
    accelerator_here(accelerator)
    source = self._own_source()
    if not trained_parts(self.module):
        warn(
            "There is nothing to train: the reference knows every category of the query, and all "
            "else is frozen; ask the model as it is, or use load_query_data(..., unfrozen=True)."
        )
        return
    if self.minified_data_type is not None:
        raise DataError(
            "The model's data were minified, so that there is nothing to encode; train before "
            "minify_adata, or load the model with its counts."
        )
    listeners = Listeners(self, callbacks, logger)
    steps = max_steps_of(max_steps)
    positive("batch_size", batch_size)
    options_seed = self._seeds.take(seed)
    if len(self._state.train_rows) == 0 or not self.is_trained:
        split = split_rows(
            source.n_cells, train_size, validation_size, np.random.default_rng(options_seed)
        )
        self._state.train_rows, self._state.validation_rows = split
    before = self._state.summary
    begun = time.perf_counter() - before.get("seconds", 0.0) - before.get("compile_seconds", 0.0)
    names = None if self._adata is None else hash_names(self._adata)

    def summarise(verdict: str) -> None:
        """After every epoch, so that an interrupted model can be asked and saved."""
        seconds = time.perf_counter() - begun
        _summarise(self, recipe, source.n_cells, names, seconds, verdict)

    options = TrainOptions(
        recipe=plan,
        epochs=max_epochs,
        max_steps=steps,
        batch_size=batch_size,
        patience=patience,
        seed=options_seed,
        accelerator=accelerator,
        listeners=listeners,
        progress=progress,
        summarise=summarise,
    )
    fit(self.module, source, self._state, options)


def _summarise(
    self: Core, recipe: str, n_cells: int, names: str | None, seconds: float, verdict: str
) -> None:
    state = self._state
    compiled = float(np.nansum([row.get("compile_seconds", 0.0) for row in state.history]))
    state.summary = {
        "recipe": recipe,
        "epochs": len(state.history),
        "cells": n_cells,
        "cell_names": names,
        "train_cells": len(state.train_rows),
        "validation_cells": len(state.validation_rows),
        "seconds": round(seconds - compiled, 3),
        "compile_seconds": round(compiled, 3),
        "kl_weight": state.history[-1]["kl_weight"],
        "verdict": verdict,
    }
