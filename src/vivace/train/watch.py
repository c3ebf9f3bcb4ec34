"""What the validation ELBO says: the best weights, when to stop, and a verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from vivace.nn import VAE

_STILL = 0.005  # of the ELBO: gained over the last quarter of the epochs, it is still improving


@dataclass(frozen=True)
class Patience:
    """When training stops early.

    Parameters
    ----------
    monitor
        Column of the history that is watched.
    epochs
        Epochs in a row without an improvement.
    min_delta
        An improvement is more than this.
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


class Waiting:
    """Counts the epochs since a number last fell.

    Examples
    --------
    >>> waiting = Waiting(min_delta=0.5)
    >>> [waiting.epochs_without(value) for value in (3.0, 2.0, 1.8, 1.0)]
    [0, 0, 1, 0]
    """

    def __init__(self, min_delta: float = 0.0) -> None:
        self._min_delta = min_delta
        self._best = math.inf
        self._waited = 0

    def epochs_without(self, value: float) -> int:
        """Take note of an epoch's number; epochs in a row without an improvement."""
        if value < self._best - self._min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited

    def start_again(self) -> None:
        """Count from here."""
        self._waited = 0


@dataclass
class Watch:
    """Follows one call of ``train``.

    Epochs are judged by the validation ELBO at KL weight 1, and only from the
    first one whose training had its full KL weight: before, the ELBO tells of
    the warm-up.

    Parameters
    ----------
    patience
        None where training does not stop early.
    keep_best
        Whether the weights of the best epoch are kept.
    """

    patience: Patience | None
    keep_best: bool
    weights: dict[str, Tensor] | None = None
    best: float = math.inf
    best_epoch: int = -1
    stopped: bool = False
    by_callback: bool = False
    first_judged: int = -1
    elbos: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = Waiting(self.patience.min_delta if self.patience else 0.0)
        self._plateau = 0

    def before(self, weights: dict[str, Tensor], elbo: float) -> None:
        """Take note of a model that is trained already: it is not to become worse."""
        self.best, self.best_epoch = elbo, -1
        if self.keep_best:
            self.weights = weights

    def epoch(self, weights: dict[str, Tensor], row: dict[str, float], full_kl: bool) -> None:
        """Take note of an epoch, which ended with these ``weights``, a copy that nobody changes."""
        elbo = row["elbo_validation"]
        self.elbos.append(elbo)
        if full_kl and self.first_judged < 0:
            self.first_judged = len(self.elbos) - 1
        if full_kl and elbo < self.best:
            self.best, self.best_epoch = elbo, len(self.elbos) - 1
            if self.keep_best:
                self.weights = weights

    def out_of_patience(self, row: dict[str, float], full_kl: bool) -> bool:
        """Whether training should stop after this epoch."""
        patience = self.patience
        if patience is None or not full_kl or len(self.elbos) <= patience.warmup_epochs:
            return False
        sign = 1 if patience.lower_is_better else -1
        self.stopped = self._waiting.epochs_without(sign * row[patience.monitor]) >= patience.epochs
        self._plateau = len(self.elbos)
        return self.stopped

    def interrupted(self, network: VAE, good: dict[str, Tensor]) -> str:
        """Go back to the best weights, or to those of the last whole epoch; a verdict."""
        network.load_state_dict(good if self.weights is None else self.weights)
        which = "last whole" if self.weights is None else "best"
        return f"interrupted after {_epochs(len(self.elbos))}; the weights are of the {which} epoch"

    def restore(self, network: VAE) -> None:
        """Give the network the best weights, where they are kept and not the last."""
        if self.weights is not None and self.best_epoch < len(self.elbos) - 1:
            network.load_state_dict(self.weights)

    def verdict(self, kl_weight: float, max_kl_weight: float) -> str:
        """One sentence on whether this was enough."""
        epochs = len(self.elbos)
        after = _epochs(epochs)
        if not epochs or math.isnan(self.elbos[-1]):
            return f"trained for {after} without validation cells: nothing tells if it was enough"
        if self.by_callback:
            return f"stopped by a callback after {after}"
        if kl_weight < max_kl_weight and not math.isclose(kl_weight, max_kl_weight):
            return (
                f"stopped after {after} with the KL weight at {kl_weight:.3g} of "
                f"{max_kl_weight:g}: train longer, or shorten its warm-up"
            )
        behind = epochs - 1 - self.best_epoch
        if self.stopped and self._plateau <= self.best_epoch:
            return (
                f"converged: level at epoch {self._plateau}, then {_epochs(epochs - self._plateau)} "
                "with a falling learning rate"
            )
        if self.best_epoch < 0 and math.isfinite(self.best):
            stay = "stay as they were" if self.keep_best else "are those of the last one"
            return f"{after} more did not help: the weights {stay}"
        long_ago = self.best_epoch >= 0 and behind >= max(2, epochs // 4)
        if long_ago and self.best_epoch == self.first_judged and not self.stopped:
            return (
                f"best at epoch {self.best_epoch + 1}, the first that counts; {behind} "
                "more did not help: train for fewer epochs"
            )
        if self.stopped or long_ago:
            return f"converged after {_epochs(self.best_epoch + 1)}; {behind} more did not help"
        quarter = max(1, epochs // 4)
        gain = self.elbos[-1 - quarter] - self.best if epochs > quarter else math.inf
        if gain > _STILL * abs(self.best):
            return f"stopped by the budget of {after} while still improving: train longer"
        return (
            f"went through its schedule of {after}, of which the last {quarter} brought "
            f"{max(gain, 0.0):.1f} nats a cell"
        )


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def copy_weights(network: VAE) -> dict[str, Tensor]:
    """Parameters and statistics as they are now."""
    return {name: value.clone() for name, value in network.state_dict().items()}
