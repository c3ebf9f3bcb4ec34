"""Callbacks and loggers, which follow training while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vivace.errors import ArgumentTypeError, OptionError, brief


class Callback:
    """Methods that are called during training; override what you need.

    Any object with one of these methods will do. ``model`` is the model that
    trains; after the first epoch it answers every question and can be saved.
    ``row`` is the row that the epoch adds to its history.

    Examples
    --------
    >>> class Print(Callback):
    ...     def on_epoch_end(self, model, row):
    ...         print(row["elbo_validation"])
    """

    def on_train_start(self, model: Any) -> None:
        """Before the first step."""

    def on_epoch_end(self, model: Any, row: dict[str, float]) -> bool | None:
        """After each epoch; return True to stop the training."""

    def on_train_end(self, model: Any) -> None:
        """After the last epoch, with the final weights."""


_METHODS = ("on_train_start", "on_epoch_end", "on_train_end")


class Listeners:
    """The callbacks and loggers of one call of ``train``.

    Parameters
    ----------
    model
        Passed to the callbacks.
    callbacks
        Objects with methods of :class:`Callback`.
    loggers
        Lightning Fabric's loggers, or others with ``log_metrics(metrics, step)``.
    """

    def __init__(self, model: Any, callbacks: object, loggers: object) -> None:
        self._model = model
        self._callbacks = _as_objects("callbacks", callbacks)
        self._loggers = _as_objects("logger", loggers)
        for callback in self._callbacks:
            _check_callback(callback)
        for logger in self._loggers:
            if not callable(getattr(logger, "log_metrics", None)):
                raise ArgumentTypeError(
                    f"logger must have log_metrics(metrics, step), as lightning_fabric's CSVLogger "
                    f"and TensorBoardLogger have, but is {brief(logger)}."
                )

    def start(self) -> None:
        """Before the first step."""
        self._call("on_train_start")

    def epoch(self, row: dict[str, float], epoch: int) -> bool:
        """After an epoch, counted from 0; returns whether a callback wants to stop."""
        for logger in self._loggers:
            logger.log_metrics({k: v for k, v in row.items() if v == v}, step=epoch)  # without NaN
        answers = self._call("on_epoch_end", dict(row))
        return any(isinstance(a, bool | np.bool_) and bool(a) for a in answers)

    def end(self) -> None:
        """After the last epoch."""
        self._call("on_train_end")
        self.close("success")

    def close(self, status: str) -> None:
        """Let the loggers write what they hold; ``status`` is "success" or "failed"."""
        for logger in self._loggers:
            if callable(getattr(logger, "save", None)):
                logger.save()
            if callable(getattr(logger, "finalize", None)):
                logger.finalize(status)

    def _call(self, name: str, *args: Any) -> list[Any]:
        """Call a method of every callback that has it."""
        methods = (getattr(callback, name, None) for callback in self._callbacks)
        return [method(self._model, *args) for method in methods if method is not None]


def _as_objects(name: str, value: object) -> Sequence[Any]:
    """An argument that is an object, several of them, or none."""
    if value is None or value is False:
        return ()
    if value is True:
        raise OptionError(
            f"{name}=True is not supported; give an object, for example "
            "lightning_fabric.loggers.CSVLogger('logs')."
        )
    if isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be an object or a list of them, not {brief(value)}.")
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _check_callback(callback: object) -> None:
    if isinstance(callback, type):
        raise ArgumentTypeError(
            f"callbacks takes objects, not classes; give {callback.__name__}()."
        )
    packages = {cls.__module__.split(".")[0] for cls in type(callback).__mro__}
    if packages & {"lightning", "pytorch_lightning", "scvi"}:
        raise OptionError(
            f"{type(callback).__name__} is a callback of Lightning's Trainer, which vivace does not "
            "use; give an object with on_epoch_end(model, row), see vivace.train.Callback."
        )
    if not any(callable(getattr(callback, m, None)) for m in _METHODS):
        raise ArgumentTypeError(
            f"callbacks must have one of {', '.join(_METHODS)}, but {brief(callback)} has none."
        )
