"""What stays between two calls of ``train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vivace.data import Rows

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


def _no_rows() -> Rows:
    return np.zeros(0, np.int64)


@dataclass
class TrainState:
    """Split, history and summary of a model's training so far.

    Parameters
    ----------
    train_rows, validation_rows
        Rows of the training data; empty on a model that was loaded without them.
    history
        One dict an epoch, with the keys of :data:`COLUMNS`.
    summary
        What the last call of ``train`` did.
    """

    train_rows: Rows = field(default_factory=_no_rows)
    validation_rows: Rows = field(default_factory=_no_rows)
    history: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether ``train`` has run, here or in scvi-tools."""
        return bool(self.summary)

    def frame(self) -> pd.DataFrame:
        """The history as a DataFrame, one row an epoch, epochs counted from 0.

        The keys are scvi-tools': "elbo" is the negative ELBO, lower is better.
        """
        frame = pd.DataFrame(self.history, columns=list(COLUMNS), dtype=float)
        frame.index.name = "epoch"
        return frame
