"""Posterior predictive checks as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vivace.pl.canvas import need_plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = (
    ("mean", "gene", "mean of a gene"),
    ("variance", "gene", "variance of a gene"),
    ("zero_fraction", "gene", "zeros of a gene"),
    ("zero_fraction", "cell", "zeros of a cell"),
    ("correlation", "gene pair", "correlation of two genes"),
)
_LOGARITHMIC = ("mean", "variance")


def draw_check(path: str | Path, check: pd.DataFrame | Mapping[str, pd.DataFrame]) -> None:
    """Write a PNG of predicted against observed statistics, one row per model.

    Parameters
    ----------
    path
        File to write.
    check
        ``model.posterior_predictive_check()``, or several, keyed by model name, such
        as ``{"NB": ..., "ZINB": ...}``.

    Raises
    ------
    MissingExtraError
        If the plotting libraries are not installed.
    """
    need_plotting()
    from matplotlib.figure import Figure

    checks = check if isinstance(check, Mapping) else {"": check}
    figure = Figure(figsize=(15, 3.1 * len(checks) + 0.3), layout="constrained", dpi=130)
    rows = figure.subplots(len(checks), len(_PANELS), squeeze=False)
    for row, (model, frame) in zip(rows, checks.items(), strict=True):
        complete = frame.dropna(subset=["observed", "predicted"])
        for ax, (statistic, unit, title) in zip(row, _PANELS, strict=True):
            part = complete[(complete["statistic"] == statistic) & (complete["by"] == unit)]
            _draw_panel(ax, part, statistic in _LOGARITHMIC)
            ax.set_title(title, loc="left", fontsize=10)
        row[0].set_ylabel(f"{model}\npredicted" if model else "predicted")
    for ax in rows[-1]:
        ax.set_xlabel("observed")
    figure.savefig(path)


def _draw_panel(ax: Axes, part: pd.DataFrame, logarithmic: bool) -> None:
    """Points, red where the observed value lies outside the interval, and the diagonal."""
    inside = part["observed"].between(part["lower"], part["upper"])
    for mask, colour in ((inside, "0.45"), (~inside, "tab:red")):
        points = part[mask]
        ax.scatter(
            points["observed"], points["predicted"], s=4, linewidths=0, color=colour, alpha=0.6
        )
    if len(part) == 0:
        return
    values = part[["observed", "predicted"]].to_numpy()
    if logarithmic:
        values = values[(values > 0).all(1)]
    if len(values):
        if logarithmic:
            ax.set(xscale="log", yscale="log")
        ends = [values.min(), values.max()]
        ax.plot(ends, ends, color="black", linewidth=0.8)
    text = f"{inside.mean():.0%} within 95 % of samples"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
