"""Checks of arguments: declared once; each failure gives one sentence.

A public function lists its checks in :func:`checked`. Each check is a small object with the
allowed type, bounds or choices, and whether None is allowed. A wrong type raises
:class:`~vivace.errors.ArgumentTypeError`, a wrong value :class:`~vivace.errors.OptionError`,
and for an unknown argument the message suggests similar names.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Real as RealNumber
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    brief,
    instead,
    near,
)
from vivace.session import usual_session
from vivace.types import I64, Indices

F = TypeVar("F", bound=Callable[..., Any])
LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Check(Protocol):
    """Refuses a value that is not allowed for the argument ``name``."""

    def __call__(self, name: str, value: Any) -> None: ...


@dataclass(frozen=True)
class Int:
    """An integer of at least ``at_least``; ``optional`` also allows None."""

    at_least: int = 1
    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ArgumentTypeError(f"{name} must be an integer, not {brief(value)}.")
        if value < self.at_least:
            raise OptionError(f"{name} must be at least {self.at_least}, not {brief(int(value))}.")


@dataclass(frozen=True)
class Number:
    """A finite number within bounds.

    Parameters
    ----------
    at_least, at_most
        Bounds that are allowed themselves.
    above, below
        Bounds that are not allowed themselves.
    optional
        Whether None is allowed.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        if isinstance(value, bool) or not isinstance(value, RealNumber):
            raise ArgumentTypeError(f"{name} must be a number, not {brief(value)}.")
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf
        inside = (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )
        if not inside:
            raise OptionError(f"{name} must be {self.bounds}, not {value}.")

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        words = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.at_least),
                ("above", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            )
            if bound is not None and bound < LARGEST_FLOAT
        ]
        bounded = (self.at_most or self.below or math.inf) < LARGEST_FLOAT
        return " and ".join(words if bounded else [*words, "finite"])


@dataclass(frozen=True)
class Choice:
    """One of several words.

    Parameters
    ----------
    choices
        The words, or a Literal that lists them.
    optional
        Whether None is allowed.
    """

    choices: Any
    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        known = get_args(self.choices) or tuple(self.choices)
        if not isinstance(value, str) or value not in known:
            listed = ", ".join(map(repr, known))
            raise OptionError(f"{name} must be one of {listed}, not {brief(value)}.")


@dataclass(frozen=True)
class Flag:
    """True or False, Python's or NumPy's; ``optional`` also allows None."""

    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        if not isinstance(value, bool | np.bool_):
            either = "True, False or None" if self.optional else "True or False"
            raise ArgumentTypeError(f"{name} must be {either}, not {brief(value)}.")


READ_H5AD = "; read one with anndata.read_h5ad"  # a fix for check_anndata
COUNT = Int()
OPTIONAL_COUNT = Int(optional=True)
FLAG = Flag()


def checked(**checks: Check) -> Callable[[F], F]:
    """Check the arguments of a public function before it runs, in a :func:`usual_session`.

    Parameters
    ----------
    checks
        The check of each argument. An argument without one may be anything, except that one
        annotated as a bool is checked by :class:`Flag`.

    Examples
    --------
    >>> @checked(n_samples=COUNT)
    ... def sample(n_samples=1, *, seed=None):
    ...     return n_samples
    >>> sample(n_sample=2)
    Traceback (most recent call last):
    ...
    vivace.errors.ArgumentTypeError: sample has no argument 'n_sample'; did you mean 'n_samples'?
    """

    def decorate(function: F) -> F:
        check = argument_checker(function, checks)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            check(args, named)
            with usual_session():
                return function(*args, **named)

        return cast("F", call)

    return decorate


def argument_checker(
    function: Callable[..., Any], checks: Mapping[str, Check]
) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
    """A function that checks the arguments of a call, as :func:`checked` does."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wrong = set(checks) - set(names)
    checks = _flags(parameters) | dict(checks)
    if wrong:
        raise TypeError(f"{function.__qualname__} has no arguments {sorted(wrong)} to check")
    title = function.__qualname__.removesuffix(".__init__").split(".")[-1]
    public = [n for n in names if n not in ("self", "cls")]

    def check(args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not takes_any:
            refuse_unknown(title, set(named) - set(names), public)
        _refuse_miscounted(title, parameters, args, named)
        values = dict(zip(names, args, strict=False)) | named
        for name, may_be in checks.items():
            if name in values:
                may_be(name, values[name])

    return check


def _refuse_miscounted(
    title: str,
    parameters: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    named: Mapping[str, Any],
) -> None:
    """Refuse too many arguments by position, one that is given twice, and one that lacks."""
    placed = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    listed = ", ".join(n for n in placed if n not in ("self", "cls"))
    if len(args) > len(placed):
        raise ArgumentTypeError(
            f"{title} takes {listed or 'nothing'} by position; give its other arguments by name."
        )
    for i, name in enumerate(placed):
        if i < len(args) and name in named:
            raise ArgumentTypeError(f"{title} was given {name} twice; leave one of the two out.")
        if i >= len(args) and name not in named and parameters[name].default is inspect._empty:
            raise ArgumentTypeError(f"{title} needs {name}; give it as {name}=.")


def _flags(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Check]:
    """A check for each argument that is annotated as a bool."""
    kinds = {"bool": FLAG, "bool | None": Flag(optional=True)}
    return {name: kinds[p.annotation] for name, p in parameters.items() if p.annotation in kinds}


def check_anndata(subject: str, value: object, fix: str = "") -> None:
    """Refuse anything but an AnnData; ``subject`` opens the message, ``fix`` closes it."""
    if not isinstance(value, AnnData):
        raise ArgumentTypeError(f"{subject} an AnnData, not {type(value).__name__}{fix}.")


def check_mapping(name: str, value: object) -> None:
    """Refuse anything but a mapping or None."""
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{name} must be a dict or None, not {brief(value)}.")


def refuse_unknown(function: str, given: Set[str] | Iterable[str], known: Iterable[str]) -> None:
    """Refuse an argument that a function does not have; the message suggests similar names."""
    for name in sorted(set(given) - set(known)):
        raise ArgumentTypeError(f"{function} has no argument {name!r}; {instead(name, known)}")


def float_tensor(name: str, value: object) -> torch.Tensor:
    """An array or a number as a float32 CPU tensor; every value must be finite."""
    try:
        if value is None:  # NumPy would make it NaN
            raise TypeError
        array = np.asarray(
            value.detach().cpu() if isinstance(value, torch.Tensor) else value, np.float32
        )
    except (OverflowError, TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"{name} must be an array of numbers, not {brief(value)}."
        ) from error
    if not np.isfinite(array).all():
        raise OptionError(f"{name} holds values that are not finite; replace them.")
    return torch.from_numpy(np.ascontiguousarray(array))


def obs_column(
    adata: AnnData, argument: str, key: object, *, allow_missing: bool = False
) -> pd.Series[Any]:
    """The column of obs that an argument names.

    Raises
    ------
    ArgumentTypeError
        If ``key`` is not a name.
    MissingColumnError
        If obs has no such column; the message suggests similar ones.
    DataError
        If a value is missing, unless ``allow_missing`` is True.
    """
    if not isinstance(key, str):
        raise ArgumentTypeError(
            f"{argument} must be the name of a column of obs, not {brief(key)}."
        )
    if key not in adata.obs:
        raise MissingColumnError(f"obs has no column {key!r} ({argument}); {near(key, adata.obs)}")
    column = adata.obs[key]
    if not allow_missing and column.isna().any():
        raise DataError(
            f"obs[{key!r}] ({argument}) has no value for {int(column.isna().sum())} cells; "
            "fill it in."
        )
    return column


def folder_path(value: object) -> Path:
    """``dir_path`` as a path."""
    if not isinstance(value, str | Path):
        raise ArgumentTypeError(f"dir_path must be the path of a folder, not {brief(value)}.")
    return Path(value)


def check_accelerator(name: str, value: object) -> None:
    """Refuse a kind of device that this machine does not have; "auto" is always allowed."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = {"auto": True, "cpu": True, "cuda": cuda, "gpu": cuda or mps, "mps": mps}
    if not isinstance(value, str) or value not in available:
        listed = ", ".join(map(repr, available))
        raise OptionError(f"{name} must be one of {listed}, not {brief(value)}.")
    if not available[value]:
        raise OptionError(f"This machine has no device for {name}={value!r}; use 'auto'.")


def row_numbers(indices: Indices | None, n_cells: int) -> I64:
    """Row numbers from a mask or from indices; those of all cells if ``indices`` is None.

    Negative indices count from the end.

    Examples
    --------
    >>> row_numbers([2, 0, -1], 3).tolist()
    [2, 0, 2]
    """
    if indices is None:
        return np.arange(n_cells)
    try:
        rows = np.asarray(indices)
    except ValueError as error:
        raise ArgumentTypeError("indices must be one-dimensional, not a list of lists.") from error
    if rows.ndim != 1:
        raise ArgumentTypeError(f"indices must be one-dimensional, not of shape {rows.shape}.")
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise OptionError(
                f"indices is a mask of {len(rows)} values for {n_cells} cells; give one value per "
                "cell."
            )
        return np.flatnonzero(rows)
    if rows.size and rows.dtype.kind not in "iu":
        raise ArgumentTypeError(f"indices must be integers or a mask, not of type {rows.dtype}.")
    rows = rows.astype(np.int64)
    outside = rows[(rows < -n_cells) | (rows >= n_cells)]
    if len(outside):
        raise OptionError(f"indices holds {outside[0]}, but there are {n_cells} cells.")
    return np.where(rows < 0, rows + n_cells, rows)
