"""Every error that vivace raises on purpose.

All derive from :class:`VivaceError`, and each also from the built-in class that Python users
expect: ``except ValueError`` works. A message is one sentence: what is wrong, where, and the fix.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


class VivaceError(Exception):
    """Base of every error that vivace raises on purpose."""


class DataError(VivaceError, ValueError):
    """The counts, or a column that describes the cells, cannot be used."""


class MissingColumnError(DataError, KeyError):
    """A named column, layer or gene is not in the data."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class OptionError(VivaceError, ValueError):
    """An argument has a value that is not allowed, or that contradicts another argument."""


class ArgumentTypeError(VivaceError, TypeError):
    """An argument has the wrong type, or a name that no argument has."""


class ShapeError(VivaceError, ValueError):
    """Arrays that must agree in shape do not."""


class ModelFileError(VivaceError, OSError):
    """A model folder is missing, damaged or of an unknown format."""


class TrainingError(VivaceError, RuntimeError):
    """Training cannot go on."""


class MissingExtraError(VivaceError, ImportError):
    """An optional dependency is not installed."""


class NotTrainedError(VivaceError, RuntimeError):
    """A question was asked of a model that has not been trained."""


class VivaceWarning(UserWarning):
    """Something that is allowed, but probably not intended."""


def warn(message: str, kind: type[Warning] = VivaceWarning) -> None:
    """Warn, pointing at the line outside vivace that made the call."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, kind, stacklevel=level)


def near(name: object, known: Iterable[object]) -> str:
    """A clause that suggests names similar to ``name``, or lists the known ones.

    Examples
    --------
    >>> near("donnor", ["donor", "cell_type"])
    "did you mean 'donor'?"
    >>> near("x", ["donor", "cell_type"])
    "there are 'cell_type', 'donor'."
    >>> near("x", [])
    'there are none.'
    """
    names = sorted({str(k) for k in known})
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    if not names:
        return "there are none."
    shown = ", ".join(repr(n) for n in names[:10])
    return f"there are {shown}{', ...' if len(names) > 10 else ''}."
