"""Judging by the validation ELBO: which epoch is best, when to stop, how training ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vivace.state import Convergence, Status

_IMPROVING = 0.005  # gain over the last quarter of the epochs, as a share of the ELBO


@dataclass(frozen=True)
class Patience:
    """When training stops early.

    Parameters
    ----------
    monitor
        Column of the history that is monitored.
    epochs
        Epochs in a row without an improvement.
    min_delta
        An improvement must be larger than this.
    lower_is_better
        Whether the monitored number should fall.
    warmup_epochs
        Epochs that are not judged.
    """

    monitor: str = "elbo_validation"
    epochs: int = 45
    min_delta: float = 0.0
    lower_is_better: bool = True
    warmup_epochs: int = 0


class PlateauCounter:
    """Counts the epochs since a number last fell.

    Examples
    --------
    >>> plateau = PlateauCounter(min_delta=0.5)
    >>> [plateau.epochs_without_fall(value) for value in (3.0, 2.0, 1.8, 1.0)]
    [0, 0, 1, 0]
    """

    def __init__(self, min_delta: float = 0.0) -> None:
        self._min_delta = min_delta
        self._lowest = math.inf
        self._waited = 0

    def epochs_without_fall(self, value: float) -> int:
        """Add an epoch's number; returns the epochs in a row without an improvement."""
        if value < self._lowest - self._min_delta:
            self._lowest, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited

    def reset(self) -> None:
        """Count from 0 again, against the same lowest number."""
        self._waited = 0


class Judge:
    """Judges the epochs of one call of ``train``.

    Epochs are judged by their negative validation ELBO at KL weight 1, and only
    from the first one that trained with the full KL weight: before, the ELBO
    follows the warm-up.

    Parameters
    ----------
    patience
        None if training does not stop early.
    keep_best
        Whether the weights of the best epoch are kept.
    max_kl_weight
        The full KL weight.
    judge_warmup
        Whether epochs before the full KL weight are judged too.

    Attributes
    ----------
    best_epoch
        See :class:`~vivace.state.Convergence`.
    """

    def __init__(
        self,
        patience: Patience | None,
        *,
        keep_best: bool,
        max_kl_weight: float = 1.0,
        judge_warmup: bool = False,
    ) -> None:
        self.best_epoch: int | None = None
        self._patience = patience
        self._keep_best = keep_best
        self._max_kl_weight = max_kl_weight
        self._judge_warmup = judge_warmup
        self._elbos: list[float] = []  # negative, of each epoch
        self._kl_weight = 0.0  # of the last epoch
        self._best = math.inf
        self._first_judged: int | None = None
        self._plateau = PlateauCounter(patience.min_delta if patience else 0.0)
        self._level_epoch: int | None = None  # at which patience ran out

    def start_from(self, elbo: float) -> None:
        """Compare with a model that was trained before: it should not become worse."""
        self._best, self.best_epoch = elbo, 0

    def judges(self, row: dict[str, float]) -> bool:
        """Whether the epoch with this row of the history counts."""
        return self._judge_warmup or self._is_full(row["kl_weight"])

    def add(self, row: dict[str, float]) -> bool:
        """Add an epoch by its row of the history; returns whether it is the best so far."""
        elbo, self._kl_weight = row["elbo_validation"], row["kl_weight"]
        self._elbos.append(elbo)
        if not self.judges(row):
            return False
        epoch = len(self._elbos)
        if self._first_judged is None:
            self._first_judged = epoch
        is_best = elbo < self._best
        if is_best:
            self._best, self.best_epoch = elbo, epoch
        return is_best

    def patience_is_over(self, row: dict[str, float]) -> bool:
        """Whether training should stop after the epoch that was added last."""
        patience = self._patience
        if patience is None or not self.judges(row) or len(self._elbos) <= patience.warmup_epochs:
            return False
        sign = 1 if patience.lower_is_better else -1
        waited = self._plateau.epochs_without_fall(sign * row[patience.monitor])
        self._level_epoch = len(self._elbos) if waited >= patience.epochs else None
        return self._level_epoch is not None

    def convergence(
        self,
        status: Status | None = None,
        *,
        stopped_by_callback: bool = False,
        n_active: int | None = None,
    ) -> Convergence:
        """The current state of training; ``status=None`` means that it has ended."""
        epochs = len(self._elbos)
        quarter = max(1, epochs // 4)
        gain = self._elbos[-1 - quarter] - self._best if epochs > quarter else math.inf
        return Convergence(
            status=status or self._final_status(gain, stopped_by_callback),
            epochs=epochs,
            best_epoch=self.best_epoch,
            keeps_best=self._keep_best and self.best_epoch is not None,
            gain=gain if math.isfinite(gain) else None,
            gain_epochs=quarter,
            level_epoch=self._level_epoch,
            kl_weight=self._kl_weight,
            max_kl_weight=self._max_kl_weight,
            n_active=n_active,
        )

    def _final_status(self, gain: float, stopped_by_callback: bool) -> Status:
        epochs, best = len(self._elbos), self.best_epoch
        if not epochs or math.isnan(self._elbos[-1]):
            return "not validated"
        if stopped_by_callback:
            return "stopped by callback"
        if not self._is_full(self._kl_weight):
            return "warming up"
        if self._level_epoch is not None and best is not None and best > self._level_epoch:
            return "levelled off"
        if best == 0:
            return "not improved"
        long_ago = best is not None and epochs - best >= max(2, epochs // 4)
        if long_ago and best == self._first_judged and self._level_epoch is None:
            return "best at first"
        if long_ago or self._level_epoch is not None:
            return "converged"
        return "improving" if gain > _IMPROVING * abs(self._best) else "finished"

    def _is_full(self, kl_weight: float) -> bool:
        """Whether the KL weight has reached its full value, whatever its rounding."""
        return kl_weight >= self._max_kl_weight or math.isclose(kl_weight, self._max_kl_weight)
