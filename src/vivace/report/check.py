"""Posterior predictive checks in a few rows, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vivace.report.overview import need_plotting

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


def summarise_check(check: pd.DataFrame | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How well a model's draws look like the data, a row for each statistic.

    Parameters
    ----------
    check
        ``model.posterior_predictive_check()``, or several by the name of their model.

    Returns
    -------
    Frame with ``model`` (where there are several), ``statistic``, ``by``, ``n`` (genes, cells
    or pairs), ``inside`` (share of them whose observed value lies where 95 % of the draws
    do), ``too_low`` and ``too_high`` (share whose observed value lies below or above),
    ``error`` (median of abs(predicted - observed)) and ``spearman`` (observed with predicted).

    Examples
    --------
    >>> row = {"statistic": "mean", "by": "gene", "name": "A", "observed": 1.0}
    >>> row |= {"predicted": 1.1, "lower": 0.9, "upper": 1.3, "p_value": 0.7}
    >>> summarise_check(pd.DataFrame([row, row]))[["statistic", "n", "inside"]]
      statistic  n  inside
    0      mean  2     1.0
    """
    if isinstance(check, Mapping):
        parts = [
            summarise_check(frame).assign(model=name)[["model", *_SUMMARY]]
            for name, frame in check.items()
        ]
        return pd.concat(parts, ignore_index=True)
    rows = []
    for (statistic, by), group in check.groupby(["statistic", "by"], sort=False):
        group = group.dropna(subset=["observed", "predicted"])
        low = (group["observed"] < group["lower"]).mean()
        high = (group["observed"] > group["upper"]).mean()
        error = (group["predicted"] - group["observed"]).abs().median()
        ranks = group[["observed", "predicted"]].rank()
        varies = (ranks.nunique() > 1).all()
        spearman = ranks["observed"].corr(ranks["predicted"]) if varies else np.nan
        rows.append((statistic, by, len(group), 1.0 - low - high, low, high, error, spearman))
    return pd.DataFrame(rows, columns=list(_SUMMARY))


_SUMMARY = ("statistic", "by", "n", "inside", "too_low", "too_high", "error", "spearman")


def draw_check(path: str | Path, check: pd.DataFrame | Mapping[str, pd.DataFrame]) -> None:
    """Write a PNG: predicted against observed, a row for each model.

    Parameters
    ----------
    path
        File to write.
    check
        ``model.posterior_predictive_check()``, or several by the name of their model, such
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
    for axes_of_row, (model, frame) in zip(rows, checks.items(), strict=True):
        known = frame.dropna(subset=["observed", "predicted"])
        for axes, (statistic, by, title) in zip(axes_of_row, _PANELS, strict=True):
            chosen = known[(known["statistic"] == statistic) & (known["by"] == by)]
            _panel(axes, chosen, statistic in _LOGARITHMIC)
            axes.set_title(title, loc="left", fontsize=10)
        axes_of_row[0].set_ylabel(f"{model}\npredicted" if model else "predicted")
    for axes in rows[-1]:
        axes.set_xlabel("observed")
    figure.savefig(path)


def _panel(axes: Axes, chosen: pd.DataFrame, logarithmic: bool) -> None:
    """Points, red where the observed value lies outside the draws' interval; the diagonal."""
    inside = chosen["observed"].between(chosen["lower"], chosen["upper"])
    for mask, colour in ((inside, "0.45"), (~inside, "tab:red")):
        part = chosen[mask]
        axes.scatter(
            part["observed"], part["predicted"], s=4, linewidths=0, color=colour, alpha=0.6
        )
    if len(chosen) == 0:
        return
    values = chosen[["observed", "predicted"]].to_numpy()
    if logarithmic:
        values = values[(values > 0).all(1)]
    if len(values):
        if logarithmic:
            axes.set(xscale="log", yscale="log")
        ends = [values.min(), values.max()]
        axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.text(
        0.03,
        0.97,
        f"{inside.mean():.0%} within 95 % of draws",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
    )
    axes.spines[["top", "right"]].set_visible(False)
