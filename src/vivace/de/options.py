"""How a differential expression test is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from vivace.errors import ArgumentTypeError, OptionError
from vivace.validate import number, positive, whole

Mode = Literal["change", "vanilla"]
TestMode = Literal["two", "three"]
ChangeFunction = Callable[[Any, Any, float], Any]
DomainFunction = Callable[[Any], Any]

DRAWS = 5_000  # of a side of one comparison
SHARED_DRAWS = 12_000  # of all groups together, where several comparisons share them
LEAST_DRAWS = 1_000  # of each of those
PAIRS = 5_000  # of draws, where not all are compared: for intervals and functions of users


@dataclass(frozen=True)
class Options:
    """What ``differential_expression`` was asked for, checked; see there for the meaning."""

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
        for name, kinds in (("mode", Mode), ("test_mode", TestMode)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                listed = " or ".join(map(repr, get_args(kinds)))
                raise OptionError(f"{name} must be {listed}, not {value!r}.")
        for name in ("delta", "pseudocounts"):
            value = getattr(self, name)
            number(name, value)
            if value is not None and not 0 <= value < float("inf"):
                raise OptionError(f"{name} must be 0 or more, or None to find it, not {value!r}.")
        for name in ("fdr_target", "threshold_counts"):
            number(name, getattr(self, name))
            if getattr(self, name) is None:
                raise ArgumentTypeError(f"{name} must be a number, not None.")
        if not 0 < self.fdr_target < 1:
            raise OptionError(f"fdr_target must lie between 0 and 1, not {self.fdr_target!r}.")
        if not self.threshold_counts >= 0:
            raise OptionError(f"threshold_counts must be 0 or more, not {self.threshold_counts!r}.")
        positive("n_samples_overall", self.n_samples_overall)
        whole("m_permutation", self.m_permutation)
        for name in ("change_fn", "m1_domain_fn"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ArgumentTypeError(f"{name} must be a function, not {value!r}.")
        if self.mode == "vanilla":
            for name in ("change_fn", "m1_domain_fn", "cred_interval_lvls"):
                if getattr(self, name):
                    raise OptionError(f"{name} is about fold changes; it needs mode='change'.")

    def draws(self, n_groups: int) -> int:
        """Draws of each of so many groups."""
        if self.n_samples_overall is not None:
            return self.n_samples_overall
        return DRAWS if n_groups <= 2 else max(LEAST_DRAWS, min(DRAWS, SHARED_DRAWS // n_groups))

    def pairs(self, n_draws: int) -> int:
        """Pairs of draws, where not all are compared."""
        return self.m_permutation if self.use_permutation else max(PAIRS, n_draws)


def change_function(given: object) -> ChangeFunction | None:
    """``change_fn``: None and scvi-tools' "log-fold" stand for the log2 fold change."""
    return None if given is None or given == "log-fold" else given  # type: ignore[return-value]


def levels(given: object) -> tuple[float, ...]:
    """``cred_interval_lvls``: one level or several, each between 0 and 1."""
    if given is None:
        return ()
    listed = [given] if isinstance(given, Real) else given
    if not isinstance(listed, Iterable):
        raise ArgumentTypeError(f"cred_interval_lvls must be a list of numbers, not {given!r}.")
    found = []
    for level in listed:
        number("cred_interval_lvls", level)
        if level is None or not 0 < level < 1:
            raise OptionError(f"cred_interval_lvls must lie between 0 and 1, not {level!r}.")
        found.append(float(level))
    if len({str(level)[:5] for level in found}) < len(found):
        raise OptionError(
            "cred_interval_lvls holds levels that are the same to three digits; drop one."
        )
    return tuple(found)
