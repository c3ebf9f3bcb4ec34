"""Options of a differential expression test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from vivace.data.schema import Codes
from vivace.errors import ArgumentTypeError, OptionError, brief
from vivace.questions.importance import Weighting
from vivace.validate import COUNT, OPTIONAL_COUNT, Check, Choice, Number, check_mapping

Mode = Literal["change", "vanilla"]
TestMode = Literal["two", "three"]
Weights = Literal["uniform", "importance"]
ChangeFunction = Callable[[Any, Any, float], Any]
DomainFunction = Callable[[Any], Any]

CHECKS: dict[str, Check] = {
    "mode": Choice(Mode),
    "delta": Number(at_least=0, optional=True),
    "fdr_target": Number(above=0, below=1),
    "weights": Choice(Weights, optional=True),
    "n_samples_overall": OPTIONAL_COUNT,
    "m_permutation": COUNT,
    "pseudocounts": Number(at_least=0, optional=True),
    "threshold_counts": Number(at_least=0),
    "test_mode": Choice(TestMode),
    "importance_weighting_kwargs": check_mapping,
}
_CHECK_LEVEL: Check = Number(above=0, below=1)

N_SAMPLES = 5_000  # per side of one comparison
N_SHARED_SAMPLES = 12_000  # of all groups together, if several comparisons share them
LEAST_SHARED_SAMPLES = 1_000  # per group in that case
N_PAIRS = 5_000  # pairs of samples for intervals and user functions


@dataclass(frozen=True)
class Options:
    """The arguments of ``differential_expression``, as documented there.

    ``change_fn`` is None for the log2 fold change.
    """

    mode: Mode
    delta: float | None
    test_mode: TestMode
    fdr_target: float
    pseudocounts: float | None
    threshold_counts: float
    n_samples_overall: int | None
    use_permutation: bool
    m_permutation: int
    change_fn: ChangeFunction | None
    m1_domain_fn: DomainFunction | None
    cred_interval_lvls: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("change_fn", "m1_domain_fn"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ArgumentTypeError(f"{name} must be a function, not {brief(value)}.")
        if self.mode == "vanilla":
            for name in ("change_fn", "m1_domain_fn", "cred_interval_lvls"):
                if getattr(self, name):
                    raise OptionError(f"{name} applies to fold changes; it needs mode='change'.")

    @property
    def has_user_functions(self) -> bool:
        """Whether the effect or the region of relevant effects is user-defined."""
        return self.change_fn is not None or self.m1_domain_fn is not None

    def n_samples(self, n_groups: int) -> int:
        """Samples of each of ``n_groups`` groups."""
        if self.n_samples_overall is not None:
            return self.n_samples_overall
        if n_groups <= 2:
            return N_SAMPLES
        return max(LEAST_SHARED_SAMPLES, min(N_SAMPLES, N_SHARED_SAMPLES // n_groups))

    def n_pairs(self, n_samples: int) -> int:
        """Number of pairs of samples, where not all are compared."""
        return self.m_permutation if self.use_permutation else max(N_PAIRS, n_samples)


@dataclass(frozen=True)
class Sampling:
    """How cells are sampled and decoded.

    Parameters
    ----------
    codes
        Categories that the samples of the first and of the second side are decoded as.
    weighting
        Arguments of importance weights; None for equal weights.
    filter_outliers
        Leave out cells that lie far from the others of their group.
    """

    codes: tuple[tuple[Codes, ...], tuple[Codes, ...]]
    weighting: Weighting | None
    filter_outliers: bool


def read_levels(value: object) -> tuple[float, ...]:
    """``cred_interval_lvls`` as a tuple: one level or several, each between 0 and 1."""
    if value is None:
        return ()
    listed = [value] if isinstance(value, Real) else value
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise ArgumentTypeError(
            f"cred_interval_lvls must be a list of numbers, not {brief(value)}."
        )
    levels = [float(_CHECK_LEVEL("cred_interval_lvls", level)) for level in listed]
    if len({str(level)[:5] for level in levels}) < len(levels):
        raise OptionError(
            "cred_interval_lvls holds levels that agree to three decimals; drop one of them."
        )
    return tuple(levels)
