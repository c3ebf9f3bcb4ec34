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
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass
from numbers import Real as RealNumber
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, Raw

from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    brief,
    instead,
    list_names,
    near,
)
from vivace.session import usual_session
from vivace.types import whole_number

F = TypeVar("F", bound=Callable[..., Any])
LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Check(Protocol):
    """Refuses a value that is not allowed for the argument ``name``; returns it as plain Python."""

    def __call__(self, name: str, value: Any) -> Any: ...


@dataclass(frozen=True)
class Int:
    """An integer within bounds, which may be a float; ``optional`` also allows None."""

    at_least: int = 1
    at_most: int = LARGEST_INT
    optional: bool = False

    def __call__(self, name: str, value: Any) -> int | None:
        if value is None and self.optional:
            return None
        number = whole_number(value)
        if number is None:
            raise ArgumentTypeError(f"{name} must be an integer, not {brief(value)}.")
        if number < self.at_least:
            raise OptionError(f"{name} must be at least {self.at_least}, not {brief(number)}.")
        if number > self.at_most:
            raise OptionError(f"{name} must be at most {self.at_most}, not {brief(number)}.")
        return number


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

    def __call__(self, name: str, value: Any) -> float | None:
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, RealNumber):
            raise ArgumentTypeError(f"{name} must be a number, not {brief(value)}.")
        try:
            # the shortest decimal of a NumPy float, because levels name columns
            number = float(str(value) if isinstance(value, np.floating) else value)
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
            raise OptionError(f"{name} must be {self.bounds}, not {brief(value)}.")
        if isinstance(value, int | np.integer) and abs(number) < LARGEST_INT:
            return int(value)
        return number

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

    def __call__(self, name: str, value: Any) -> str | None:
        if value is None and self.optional:
            return None
        known = get_args(self.choices) or tuple(self.choices)
        if not isinstance(value, str) or value not in known:
            listed = ", ".join(map(repr, known))
            raise OptionError(f"{name} must be one of {listed}, not {brief(value)}.")
        return str(value)


@dataclass(frozen=True)
class Flag:
    """True or False, Python's or NumPy's; ``optional`` also allows None."""

    optional: bool = False

    def __call__(self, name: str, value: Any) -> bool | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, bool | np.bool_):
            either = "True, False or None" if self.optional else "True or False"
            raise ArgumentTypeError(f"{name} must be {either}, not {brief(value)}.")
        return bool(value)


@dataclass(frozen=True)
class Names:
    """A list of names, or one name in place of a list of one; ``optional`` also allows None.

    Only a single name is handled here: whoever reads a list checks what it holds.
    """

    optional: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        if isinstance(value, bytes | bytearray | Mapping | Set) or not (
            isinstance(value, Iterable) or (value is None and self.optional)
        ):
            raise ArgumentTypeError(
                f"{name} must be a list of names, in order, not {brief(value)}."
            )
        return [value] if isinstance(value, str) else value


COUNT = Int(at_most=2**31 - 1)  # more of anything would not fit into memory
OPTIONAL_COUNT = Int(optional=True)
FLAG = Flag()


def checked(**checks: Check) -> Callable[[F], F]:
    """Check the arguments of a public function before it runs, in a :func:`usual_session`.

    The function gets them as plain Python: an array without dimensions becomes its only value,
    a whole float an integer where an integer is meant, a single name a list where names are.

    Parameters
    ----------
    checks
        The check of each argument. Others are checked if their annotation says bool, int or
        a list of names.

    Examples
    --------
    >>> @checked(n_samples=COUNT)
    ... def sample(n_samples=1, *, seed=None):
    ...     return n_samples
    >>> sample(n_samples=5.0)
    5
    >>> sample(n_sample=2)
    Traceback (most recent call last):
    ...
    vivace.errors.ArgumentTypeError: sample has no argument 'n_sample'; did you mean 'n_samples'?
    """

    def decorate(function: F) -> F:
        check = argument_checker(function, checks)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            args, named = check(args, named)
            with usual_session():
                return function(*args, **named)

        return cast("F", call)

    return decorate


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def argument_checker(
    function: Callable[..., Any], checks: Mapping[str, Check]
) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    """A function that checks the arguments of a call and returns them, as :func:`checked` does."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wrong = set(checks) - set(names)
    checks = _annotated(parameters) | dict(checks)
    if wrong:
        raise TypeError(f"{function.__qualname__} has no arguments {sorted(wrong)} to check")
    title = function.__qualname__.removesuffix(".__init__").split(".")[-1]
    public = [n for n in names if n not in ("self", "cls")]

    def read(name: str, value: Any) -> Any:
        value = _unpack_scalar(value)
        return checks[name](name, value) if name in checks else value

    def check(args: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        if not takes_any:
            refuse_unknown(title, set(named) - set(names), public)
        _refuse_miscounted(title, parameters, args, named)
        read_args = tuple(read(name, value) for name, value in zip(names, args, strict=False))
        read_args += args[len(names) :]
        return read_args, {name: read(name, value) for name, value in named.items()}

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


_ANNOTATED: dict[str, Check] = {
    "bool": FLAG,
    "bool | None": Flag(optional=True),
    "int": COUNT,
    "int | None": OPTIONAL_COUNT,
    "Sequence[str] | None": Names(optional=True),
}


def _annotated(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Check]:
    """The checks that follow from annotations; the stream of seeds checks a seed."""
    return {
        name: _ANNOTATED[p.annotation]
        for name, p in parameters.items()
        if p.annotation in _ANNOTATED and name != "seed"
    }


def _unpack_scalar(value: Any) -> Any:
    """The value in an array without dimensions; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value[()]
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return value


def check_anndata(subject: str, value: object) -> None:
    """Refuse anything but an AnnData; ``subject`` opens the message, and what to do closes it."""
    if not isinstance(value, AnnData):
        raise ArgumentTypeError(
            f"{subject} an AnnData, not {type(value).__name__}; {_make_anndata(value)}."
        )


def _make_anndata(value: Any) -> str:
    """How to get an AnnData from a value of another type."""
    if isinstance(value, str | Path):
        name = repr(str(value))
        suffixes = Path(value).suffixes
        read = "read_zarr" if ".zarr" in suffixes else "read_h5ad"
        return f"read it first, anndata.{read}({name})"
    if isinstance(value, Raw):
        return "give adata.raw.to_adata()"
    for attribute, kind, name in (
        ("mod", "modality", "mdata[{!r}]"),  # MuData
        ("tables", "table", "sdata.tables[{!r}]"),  # SpatialData
    ):
        parts = getattr(value, attribute, None)
        if isinstance(parts, Mapping):
            names = [str(part) for part in parts]
            first = name.format(names[0] if names else "rna")
            return f"give it one {kind}, such as {first} ({_there_are(names)})"
    if isinstance(value, pd.DataFrame):
        return "make one of the counts, anndata.AnnData(counts), with a row per cell"
    if isinstance(value, np.ndarray | torch.Tensor) or hasattr(value, "tocsr"):
        array = "counts.numpy()" if isinstance(value, torch.Tensor) else "counts"
        return (
            f"make one of the counts, anndata.AnnData({array}), with a row per cell and the genes "
            "as its var_names"
        )
    if isinstance(value, Mapping | Iterable) and _holds_anndata(value):
        return "give one of them, or join them with anndata.concat"
    return "read one with anndata.read_h5ad"


def _there_are(names: Sequence[str]) -> str:
    return f"there are {list_names(names)}" if names else "there are none"


def _holds_anndata(values: Any) -> bool:
    parts = values.values() if isinstance(values, Mapping) else values
    return isinstance(parts, list | tuple | ValuesView) and any(
        isinstance(part, AnnData) for part in parts
    )


def check_mapping(name: str, value: Any) -> Any:
    """Refuse anything but a mapping or None."""
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{name} must be a dict or None, not {brief(value)}.")
    return value


def refuse_unknown(function: str, given: Set[str] | Iterable[str], known: Iterable[str]) -> None:
    """Refuse an argument that a function does not have; the message suggests similar names."""
    for name in sorted(set(given) - set(known)):
        raise ArgumentTypeError(f"{function} has no argument {brief(name)}; {instead(name, known)}")


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
        If several columns have the name, or if a value is missing and ``allow_missing`` is False.
    """
    if not isinstance(key, str):
        raise ArgumentTypeError(
            f"{argument} must be the name of a column of obs, not {brief(key)}."
        )
    if key not in adata.obs:
        raise MissingColumnError(
            f"obs has no column {brief(key)} ({argument}); {near(key, adata.obs)}"
        )
    refuse_repeated_name(adata.obs, "obs", key, argument)
    column = native_order(adata.obs[key])
    try:
        missing = column.isna().to_numpy()
    except Exception as error:  # pandas cannot tell for every type
        raise unreadable_column(argument, key, column, "values") from error
    if not allow_missing and missing.any():
        cell = adata.obs_names[int(np.argmax(missing))]
        raise DataError(
            f"obs[{brief(key)}] ({argument}) has no value for {int(missing.sum())} of {adata.n_obs} "
            f"cells (first: {brief(cell)}); fill it in or drop those cells with "
            f"adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column


def native_order(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column whose numbers have the byte order of this machine, as pandas needs them.

    Examples
    --------
    >>> native_order(pd.Series(np.array([1, 2], ">i4"))).dtype
    dtype('int32')
    """
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and not dtype.isnative:
        return column.astype(dtype.newbyteorder("="))
    return column


def refuse_repeated_name(frame: pd.DataFrame, place: str, key: str, argument: str) -> None:
    """Refuse a name that several columns of a frame have, as after a join of tables."""
    n_named = sum(name == key for name in frame.columns)
    if n_named > 1:
        raise DataError(
            f"{place} has {n_named} columns named {brief(key)} ({argument}); drop or rename one."
        )


def unreadable_column(
    argument: str, key: object, column: pd.Series[Any], purpose: str
) -> DataError:
    """The error for a column of obs whose type pandas cannot handle."""
    kinds = sorted({type(value).__name__ for value in column.iloc[:100]})
    return DataError(
        f"obs[{brief(key)}] ({argument}) cannot be read as {purpose}: it is of type {column.dtype} and "
        f"holds values of type {' and '.join(kinds)}; make it text with "
        f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
    )


def folder_path(value: object, name: str = "dir_path") -> Path:
    """The path of a folder, which need not exist; ``name`` is the argument's in messages."""
    if not isinstance(value, str | Path):
        raise ArgumentTypeError(f"{name} must be the path of a folder, not {brief(value)}.")
    return usable_path(value, name)


def usable_path(value: str | Path, name: str) -> Path:
    """A path that this system can look up, whether something is there or not."""
    try:
        os.lstat(value)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, forbidden, or with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(
            f"{name} is not a path that can be used here ({reason}): {brief(str(value))}."
        ) from error
    return Path(value)


def check_accelerator(name: str, value: Any) -> str:
    """Refuse a kind of device that this machine does not have; "auto" is always allowed."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = {"auto": True, "cpu": True, "cuda": cuda, "gpu": cuda or mps, "mps": mps}
    if not isinstance(value, str) or value not in available:
        listed = ", ".join(map(repr, available))
        raise OptionError(f"{name} must be one of {listed}, not {brief(value)}.")
    if not available[value]:
        raise OptionError(f"This machine has no device for {name}={value!r}; use 'auto'.")
    return str(value)
