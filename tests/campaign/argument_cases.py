"""Random arguments of every public method: an answer of finite numbers, or one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from campaign.outcomes import Outcome, isolated
from simulated import simulate_cells
from test_public_arguments import WRONG, caller, is_flag, make_models, public_methods

Rng = np.random.Generator
_METHODS = list(public_methods())
_MAY_BE_NAN = ("differential_expression", "posterior_predictive_check")  # as documented
_WORDS = ["batch", "cell_type", "donor", "age", "b0", "gene1", "B", "mean", "none", "all", "both",
          "", " ", "auto", "latent", "B", "nb", "\x00", "ä" * 90, "../x", "a/b", "cell_type == 'T'"]  # fmt: skip
_NUMBERS = [
    0,
    1,
    -1,
    2,
    3.0,
    0.5,
    -0.5,
    1e308,
    float("inf"),
    -float("inf"),
    2**31,
    2**63,
    2**64,
    59,
    60,
]
_GOOD: dict[str, list[Any]] = {  # right values, by annotation
    "bool": [True, False, np.True_],
    "int": [1, 2, 3.0, np.int64(2), torch.tensor(2)],
    "int | None": [1, None, 2.0, np.array(3)],
    "float": [0.1, 0.5, 1, np.float32(0.25)],
    "float | None": [0.1, 0.5, None],
    "Indices": [None, [0, 1, 2], np.arange(5), np.arange(60) < 9, "cell_type == 'T'", slice(4)],
    "Sequence[str] | None": [None, ["gene1", "gene2"], "gene3", pd.Index(["gene4"])],
    "str | None": [None, "batch", "cell_type", "donor"],
}


@dataclass(frozen=True)
class Setting:
    """Trained models."""

    models: dict[type[Any], Any]

    @classmethod
    def make(cls, folder: Path) -> Setting:
        return cls(make_models(simulate_cells))

    def run(self, rng: Rng, folder: Path) -> Outcome:
        cls, name = _METHODS[rng.integers(len(_METHODS))]
        parameters = {
            p.name: p
            for p in inspect.signature(getattr(cls, name)).parameters.values()
            if p.name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD
        }
        if not parameters:
            return Outcome("right", "no arguments")
        chosen = rng.choice(list(parameters), size=min(len(parameters), rng.integers(1, 4)))
        given = {str(key): random_value(rng) for key in dict.fromkeys(chosen)}
        for key in given:
            if rng.random() < 0.6 and (good := _GOOD.get(str(parameters[key].annotation))):
                given[key] = good[rng.integers(len(good))]
        tried = f"{cls.__name__}.{name}({', '.join(f'{k}={_shown(v)}' for k, v in given.items())})"

        def case() -> Outcome:
            answer = caller(self.models, simulate_cells, folder)(cls, name, **given)
            for key, value in given.items():
                if is_flag(parameters[key]) and not isinstance(value, bool | np.bool_ | None):
                    return Outcome("silent", f"{tried}: {key} was taken for a flag")
                if parameters[key].annotation == "int" and not _is_whole(value):
                    return Outcome("silent", f"{tried}: {key} was taken for an integer")
            if name not in _MAY_BE_NAN and (where := find_not_finite(answer)):
                return Outcome("silent", f"{tried}: {where} not finite")
            return Outcome("right")

        return isolated(case, folder, tried)


def random_value(rng: Rng, depth: int = 0) -> Any:
    """A value that is wrong for most arguments."""
    choice = rng.integers(9 if depth < 2 else 6)
    if choice == 0:
        return WRONG[rng.integers(len(WRONG))]
    if choice in (1, 2):
        return _WORDS[rng.integers(len(_WORDS))]
    if choice in (3, 4):
        number = _NUMBERS[rng.integers(len(_NUMBERS))]
        return [number, np.float64(number), np.array(float(number))][rng.integers(3)]
    if choice == 5:
        return [None, True, False, np.nan, pd.NA, pd.NaT, ..., int, len, b"", 1j][rng.integers(11)]
    inner = [random_value(rng, depth + 1) for _ in range(rng.integers(0, 4))]
    makers: list[Callable[[], Any]] = [
        lambda: inner,
        lambda: tuple(inner),
        lambda: {str(rng.choice(_WORDS)): value for value in inner},
        lambda: pd.Series(inner, dtype=object),
        lambda: np.array([*map(str, inner)]),
        lambda: rng.normal(size=(2, len(inner))),
        lambda: torch.zeros(len(inner)),
        lambda: iter(inner),
    ]
    return makers[rng.integers(len(makers))]()


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and float(value) == int(value)
    except Exception:
        return False


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60].replace("\n", " ")
    except Exception:
        return type(value).__name__


def find_not_finite(answer: Any) -> str:
    """Where an answer holds numbers that are not finite; empty if nowhere."""
    if isinstance(answer, tuple | list):
        return next(filter(None, map(find_not_finite, answer)), "")
    if isinstance(answer, dict):
        return next((k for k, v in answer.items() if find_not_finite(v)), "")
    if isinstance(answer, pd.DataFrame):
        return next((str(k) for k in answer if find_not_finite(answer[k].to_numpy())), "")
    numbers = isinstance(answer, float | np.ndarray) and np.asarray(answer).dtype.kind == "f"
    return "an answer" if numbers and not np.isfinite(answer).all() else ""
