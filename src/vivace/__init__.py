"""vivace: scVI for single-cell RNA-seq counts, fast on a CPU."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from vivace.config import settings
from vivace.errors import MissingNameError, instead

if TYPE_CHECKING:
    from vivace import datasets, distributions, errors, model, nn, ops, pl, report, train, transfer
    from vivace.model import SCVI, LinearSCVI

__version__ = version("vivace")
__all__ = [
    "SCVI",
    "LinearSCVI",
    "__version__",
    "datasets",
    "distributions",
    "errors",
    "model",
    "nn",
    "ops",
    "pl",
    "report",
    "settings",
    "train",
    "transfer",
]

_CLASSES = {"SCVI": "vivace.model", "LinearSCVI": "vivace.model"}


def __getattr__(name: str) -> object:
    """Import the rest on first use, so that ``import vivace`` stays quick."""
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name in __all__ or name == "data":  # all others are modules
        return import_module(f"vivace.{name}")
    raise MissingNameError(f"vivace has no {name!r}; {instead(name, __all__, 'vivace')}")


def __dir__() -> list[str]:
    return sorted(__all__)
