"""What a model keeps of its training: the split, the history, and how training ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vivace.types import Rows

COLUMNS = (
    "train_loss",
    "elbo_train",
    "reconstruction_loss_train",
    "kl_local_train",
    "validation_loss",
    "elbo_validation",
    "reconstruction_loss_validation",
    "kl_local_validation",
    "lr",
    "kl_weight",
    "seconds",
    "compile_seconds",
)

Status = Literal[
    "running",  # an epoch is done, and more follow
    "interrupted",  # by Ctrl-C or an error
    "stopped by callback",
    "not validated",  # there are no validation cells
    "warming up",  # the KL weight did not reach its full value
    "levelled off",  # early stopping, and then better with a falling learning rate
    "not improved",  # a further call of train found no better weights
    "best at first",  # no epoch was better than the first with the full KL weight
    "converged",  # the last epochs did not help
    "improving",  # the budget ended before the improvement did
    "finished",  # the schedule ended, and the last epochs changed little
]

_UNFINISHED: set[Status] = {"warming up", "stopped by callback", "improving"}


@dataclass(frozen=True)
class Convergence:
    """How one call of ``train`` ended, in plain values that JSON can hold.

    Parameters
    ----------
    status
        One of :data:`Status`.
    epochs
        Epochs of this call.
    best_epoch
        Epoch of this call, counted from 1, with the best validation ELBO. 0 if
        the weights from before this call were better; None if no epoch was judged.
    keeps_best
        Whether the final weights are the best ones; otherwise they are the last.
    gain
        Improvement of the validation ELBO over the last ``gain_epochs``, nats
        per cell; None if there are too few epochs.
    gain_epochs
        The last quarter of the epochs, at least 1.
    level_epoch
        Epoch, counted from 1, at which early stopping ended the constant part of
        the schedule; None if it did not.
    kl_weight, max_kl_weight
        KL weight of the last epoch, and its full value.
    n_active
        Latent dimensions that vary between cells; None if that was not looked at.

    Examples
    --------
    >>> Convergence("finished", epochs=14, best_epoch=14, gain=0.42, gain_epochs=3).describe()
    'Finished 14 epochs; the last 3 improved the ELBO by 0.4 nats per cell'
    """

    status: Status
    epochs: int
    best_epoch: int | None = None
    keeps_best: bool = False
    gain: float | None = None
    gain_epochs: int = 1
    level_epoch: int | None = None
    kl_weight: float = 1.0
    max_kl_weight: float = 1.0
    n_active: int | None = None

    @property
    def collapsed(self) -> bool:
        """Whether the latent space is the same for every cell."""
        return self.n_active == 0

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"unknown training status: {self.status!r}")

    def as_dict(self) -> dict[str, Any]:
        """As types that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Self:
        """Create from the result of :meth:`as_dict`."""
        return cls(**parts)

    def describe(self) -> str:
        """Whether training was long enough, and whether the latent space collapsed, in words."""
        sentence = self._describe_epochs()
        if not self.collapsed:
            return sentence
        if self.status in _UNFINISHED:
            return f"{sentence}. So far no dimension of the latent space varies between cells"
        return (
            f"{sentence}. The latent space collapsed, none of its dimensions varies between cells: "
            "check counts and genes, or lower the KL weight (plan_kwargs={'max_kl_weight': 0.1})"
        )

    def _describe_epochs(self) -> str:
        epochs = count_epochs(self.epochs)
        best = self.best_epoch or 0
        later = self.epochs - best
        match self.status:
            case "running":
                return f"Not finished; {epochs} so far"
            case "interrupted":
                kept = "best" if self.keeps_best else "last complete"
                return f"Interrupted after {epochs}; the weights are those of the {kept} epoch"
            case "stopped by callback":
                return f"Stopped by a callback after {epochs}"
            case "not validated":
                return f"Trained for {epochs} without validation cells, so convergence was not assessed"
            case "warming up":
                return (
                    f"Stopped after {epochs} with the KL weight at {self.kl_weight:.3g} of "
                    f"{self.max_kl_weight:g}; train longer, or shorten its warm-up"
                )
            case "levelled off":
                level = self.level_epoch or 0
                decay = count_epochs(self.epochs - level)
                return (
                    f"Converged: the ELBO levelled off at epoch {level}, and {decay} with a falling "
                    "learning rate followed"
                )
            case "not improved":
                kept = "stay as they were" if self.keeps_best else "are those of the last epoch"
                return f"{count_epochs(self.epochs, 'more ')} did not help; the weights {kept}"
            case "best at first":
                return (
                    f"Best at epoch {best}, the first with the full KL weight; {later} more did not "
                    "help, so train for fewer epochs"
                )
            case "converged":
                return f"Converged after {count_epochs(best)}; {later} more did not help"
            case "improving":
                return f"Stopped after {epochs} while still improving; train longer"
            case "finished":
                gain = max(self.gain or 0.0, 0.0)
                last = "one" if self.gain_epochs == 1 else self.gain_epochs
                return (
                    f"Finished {epochs}; the last {last} improved the ELBO by {gain:.1f} "
                    "nats per cell"
                )


def count_epochs(number: int, adjective: str = "") -> str:
    """A number of epochs in words.

    Examples
    --------
    >>> count_epochs(1), count_epochs(2, "more ")
    ('1 epoch', '2 more epochs')
    """
    return f"{number} {adjective}epoch{'s' * (number != 1)}"


def verdict(summary: Mapping[str, Any]) -> str | None:
    """Whether training was long enough, in words; None if the summary does not say.

    Models saved before there was a :class:`Convergence` hold the sentence itself.
    """
    if "convergence" in summary:
        return Convergence.from_dict(summary["convergence"]).describe()
    return summary.get("verdict")


def _no_rows() -> Rows:
    return np.zeros(0, np.int64)


def _no_hashes() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return np.zeros(0, np.uint64), np.zeros(0, np.uint64)


@dataclass
class TrainState:
    """Split, history and summary of a model's training so far.

    Parameters
    ----------
    train_rows, validation_rows
        Rows of the training data. ``split.py`` finds these cells in other data.
    name_hashes
        Array, uint64, shape (n,), hash of the name of each cell of the training data; None if
        the names are not known.
    earlier
        Two arrays, uint64: hashes of the cells of earlier training data that were trained on,
        and used for validation.
    history
        One dict per epoch, with the keys of :data:`COLUMNS`.
    summary
        What the last call of ``train`` did, as types that JSON can hold.
    """

    train_rows: Rows = field(default_factory=_no_rows)
    validation_rows: Rows = field(default_factory=_no_rows)
    history: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    name_hashes: NDArray[np.uint64] | None = None
    earlier: tuple[NDArray[np.uint64], NDArray[np.uint64]] = field(default_factory=_no_hashes)

    @property
    def trained(self) -> bool:
        """Whether ``train`` has run, in vivace or in scvi-tools."""
        return bool(self.summary)

    def frame(self) -> pd.DataFrame:
        """The history as a DataFrame, one row per epoch, epochs counted from 0.

        The keys are those of scvi-tools: "elbo" is the negative ELBO, lower is better.
        """
        frame = pd.DataFrame(self.history, columns=list(COLUMNS), dtype=float)
        frame.index.name = "epoch"
        return frame
