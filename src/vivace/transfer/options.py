"""What a transfer of labels was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from vivace.errors import MissingExtraError, OptionError
from vivace.validate import number, true_or_false, whole


@dataclass(frozen=True)
class LabelOptions:
    """How labels are transferred.

    Parameters
    ----------
    n_neighbors
        Nearest reference cells of a point.
    n_samples
        Draws from the posterior of a cell of the query.
    expression
        Whether genes are asked too.
    min_probability
        A label that is less probable becomes "Unknown"; None for no such limit.
    max_novelty
        So does that of a cell that is more novel.
    all_probabilities
        With a column for each label.
    """

    n_neighbors: int = 15
    n_samples: int = 10
    expression: bool = True
    min_probability: float | None = None
    max_novelty: float | None = None
    all_probabilities: bool = False

    def __post_init__(self) -> None:
        whole("n_neighbors", self.n_neighbors)
        whole("n_samples", self.n_samples)
        true_or_false("expression", self.expression)
        true_or_false("all_probabilities", self.all_probabilities)
        for name in ("min_probability", "max_novelty"):
            value = getattr(self, name)
            number(name, value)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} must be from 0 to 1, not {value}.")


def need_sklearn() -> None:
    """Refuse to go on without scikit-learn."""
    if find_spec("sklearn") is None:
        raise MissingExtraError(
            "The transfer of labels needs scikit-learn; install it with "
            "pip install 'vivace[transfer]'."
        )
