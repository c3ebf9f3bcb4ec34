"""The public ``train``: checks its arguments, fits the network, stores the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from vivace.core import TRAINERS, Core
from vivace.errors import DataError, OptionError, TrainingError, warn
from vivace.nn import trained_parts
from vivace.split import Split, hash_cells, hash_names, seen_cells
from vivace.train.callbacks import Listeners
from vivace.train.loop import FitResult, TrainOptions, choose_watched_rows, fit
from vivace.train.recipe import METRICS, RECIPES, Recipe
from vivace.train.stopping import Patience
from vivace.types import Rows, whole_number
from vivace.validate import (
    OPTIONAL_COUNT,
    Choice,
    Int,
    Number,
    check_accelerator,
    check_mapping,
    checked,
)

F = TypeVar("F", bound=Callable[..., Any])
_NO_LIMIT = -1  # Lightning's max_steps
_entrance = threading.Lock()


def _one_at_a_time(function: F) -> F:
    """Refuse a second call for a model while the first one moves its weights."""

    @wraps(function)
    def call(self: Core, *args: Any, **named: Any) -> None:
        with _entrance:
            if self in TRAINERS:
                raise TrainingError(
                    "The model is being trained already; call train() when that has ended."
                )
            TRAINERS[self] = threading.get_ident()
        try:
            function(self, *args, **named)
        finally:
            del TRAINERS[self]

    return cast("F", call)


def _check_max_steps(name: str, value: Any) -> int | None:
    return None if whole_number(value) == _NO_LIMIT else OPTIONAL_COUNT(name, value)


@checked(
    max_epochs=Int(optional=True),
    recipe=Choice(RECIPES),
    train_size=Number(above=0, at_most=1),
    validation_size=Number(at_least=0, below=1, optional=True),
    batch_size=Int(optional=True),
    max_steps=_check_max_steps,
    early_stopping_monitor=Choice(METRICS),
    early_stopping_patience=Int(optional=True),
    early_stopping_min_delta=Number(),
    early_stopping_mode=Choice(("min", "max")),
    early_stopping_warmup_epochs=Int(at_least=0, optional=True),
    accelerator=check_accelerator,
    plan_kwargs=check_mapping,
)
@_one_at_a_time
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

    With the "fast" recipe the final weights are those of the epoch with
    the best validation ELBO at KL weight 1. The last line of
    :attr:`summary` says whether training was long enough.

    A further call continues with the same split and appends to the history. If the model was
    loaded with other data, known cells keep their part and new ones are split. Data that were
    minified with their counts are trained on as others are, and are encoded from their counts
    from then on.

    Parameters
    ----------
    max_epochs
        Passes over the training cells. None lets the recipe choose from
        their number.
    recipe
        "fast", or "scvi-tools" for the optimiser and schedule of
        scvi-tools 1.4.2.
    train_size, validation_size
        Fractions of the cells. None for ``validation_size`` takes all that are left.
    batch_size
        Cells per minibatch. None uses 128, or, with "fast" and fewer than 4,000
        training cells, 64. The recipe's number of epochs does not depend on it.
    max_steps
        Maximum number of minibatches. None or -1 means no limit.
    early_stopping
        Stop when ``early_stopping_monitor``, a column of the history, has
        not improved by more than ``early_stopping_min_delta`` for
        ``early_stopping_patience`` epochs (None: 8, with "scvi-tools" 45).
        "fast" then keeps its learning rate up to such a plateau, and lets it
        fall to zero over a quarter as many steps, or over the last quarter of
        the budget; give ``max_epochs`` for a larger budget. Epochs before the
        full KL weight, and ``early_stopping_warmup_epochs``, are not judged.
        None is False.
    early_stopping_mode
        "min" if the monitored number should fall, else "max".
    seed
        Random seed of the split, the order of cells and the noise. None uses
        the model's next seed.
    accelerator
        Device, by its name in Lightning Fabric: "auto", "cpu", "cuda", "mps".
    plan_kwargs
        Numbers of the recipe to replace: lr, eps, weight_decay,
        n_epochs_kl_warmup, n_steps_kl_warmup, min_kl_weight, max_kl_weight;
        reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min,
        lr_scheduler_metric.
    callbacks
        Objects with methods of :class:`vivace.train.Callback`.
    logger
        A logger of Lightning Fabric (CSVLogger, TensorBoardLogger), or several.
        Each epoch's row of the history is logged.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError, ArgumentTypeError
        If an argument has an invalid value.
    TrainingError
        If the loss stops being finite, or another thread is training the model.
    """
    plan = RECIPES[recipe].with_plan(plan_kwargs)
    source = self._own_source()
    if not trained_parts(self.module):
        warn(
            "There is nothing to train: the reference knows every category of the query, and "
            "everything else is frozen; use the model as it is, or load_query_data(..., "
            "unfrozen=True)."
        )
        return
    if not source.has_counts:
        raise DataError(
            "The counts of the model's data were dropped by minify_adata; train before minify_adata, "
            "or save the model and load it with its former data as adata=."
        )
    listeners = Listeners(self, callbacks, logger)
    seed = self._seeds.take(seed)
    state = self._state
    split = self._split
    if split is None:
        warn(
            "It is not known which of these cells the model was trained on, so all of them are "
            "split anew; validation cells may be among those that it was trained on before."
        )
    if split is None or not state.trained:
        split = Split.untrained(source.n_cells)
    split = split.extended(train_size, validation_size, np.random.default_rng(seed))
    patience = None
    if early_stopping:
        patience = Patience(
            monitor=early_stopping_monitor,
            epochs=early_stopping_patience or plan.patience,
            min_delta=abs(float(early_stopping_min_delta)),
            lower_is_better=early_stopping_mode == "min",
            warmup_epochs=early_stopping_warmup_epochs or 0,
        )
    watched_rows = choose_watched_rows(split.train, split.validation)
    _check_validation_cells(plan, patience, watched_rows)
    options = TrainOptions(
        recipe=plan,
        epochs=max_epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        patience=patience,
        continues=state.trained,
        seed=seed,
        accelerator=accelerator,
        progress=progress,
    )
    if self.minified_data_type is not None:  # the posterior belongs to the weights as they were
        source = self._source = source.without_posterior()
    recorder = _Recorder(self, recipe, source.n_cells, split, listeners)
    result = fit(self.module, source, split.train, watched_rows, options, recorder)
    recorder.store(result)
    listeners.end()


class _Recorder:
    """Stores the state of training in the model, then notifies callbacks and loggers.

    It does so after every epoch, so callbacks, and users who interrupt training, see a
    model that answers and can be saved.
    """

    def __init__(
        self, model: Core, recipe: str, n_cells: int, split: Split, listeners: Listeners
    ) -> None:
        self._model, self._state, self._listeners = model, model._state, listeners
        self._earlier_split = model._split
        self._split = model._split = split
        assert model._adata is not None
        self._name_hashes = hash_cells(model._adata, model._own_source().library)
        self._earlier = model._state.earlier
        if model._state.trained and model._state.name_hashes is not None:
            train, validation = (
                np.setdiff1d(hashes, self._name_hashes) for hashes in seen_cells(model._state)
            )
            self._earlier = train, validation
        self._earlier_history = list(model._state.history)
        earlier = model._state.summary
        self._earlier_seconds = earlier.get("seconds", 0.0) + earlier.get("compile_seconds", 0.0)
        self._start = time.perf_counter()
        self._facts = {
            "recipe": recipe,
            "cells": n_cells,
            "cell_names": hash_names(model._adata),
            "train_cells": len(split.train),
            "validation_cells": len(split.validation),
        }
        if self._earlier_split is None or earlier.get("unknown_cells", False):
            self._facts["unknown_cells"] = True  # there were others, without names

    def start(self) -> None:
        """Before the first step."""
        self._listeners.start()

    def epoch(self, result: FitResult) -> bool:
        """After each epoch; True stops the training."""
        self.store(result)
        return self._listeners.epoch(result.history[-1], len(self._state.history) - 1)

    def interrupted(self, result: FitResult) -> None:
        """After an error or Ctrl-C."""
        if result.history:
            self.store(result)
        else:
            self._model._split = self._earlier_split
        self._listeners.close("failed")

    def store(self, result: FitResult) -> None:
        """Update split, history and summary to the training so far."""
        history = [*self._earlier_history, *result.history]
        seconds = self._earlier_seconds + time.perf_counter() - self._start
        compiled = float(np.nansum([row.get("compile_seconds", 0.0) for row in history]))
        self._state.train_rows = self._split.train
        self._state.validation_rows = self._split.validation
        self._state.name_hashes, self._state.earlier = self._name_hashes, self._earlier
        self._state.history = history
        self._state.summary = {
            **self._facts,
            "epochs": len(history),
            "seconds": round(seconds - compiled, 3),
            "compile_seconds": round(compiled, 3),
            "kl_weight": history[-1]["kl_weight"],
            "convergence": result.convergence.as_dict(),
        }


def _check_validation_cells(plan: Recipe, patience: Patience | None, watched_rows: Rows) -> None:
    """Refuse to monitor validation cells that do not exist."""
    monitored = {}
    if patience is not None:
        monitored["early_stopping"] = patience.monitor
    if plan.reduce_lr_on_plateau:
        monitored["reduce_lr_on_plateau"] = plan.lr_scheduler_metric
    for name, column in monitored.items():
        if "validation" in column and not len(watched_rows):
            raise OptionError(
                f"{name} needs validation cells for {column!r}, but there are none; leave some with "
                f"train_size=0.9, or leave {name} out."
            )
