"""What every figure needs: the plotting libraries, axes and a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.errors import require_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def need_plotting() -> None:
    """Raise an error in one sentence if a plotting library is missing."""
    for package in ("matplotlib", "sklearn"):
        require_extra(package, "plot", "Figures need")


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150).subplots()


def save_axes(ax: Axes, path: str | Path | None) -> None:
    """Write the figure of ``ax`` to ``path``, unless that is None."""
    figure: Any = ax.figure
    if path is not None:
        figure.savefig(path)
