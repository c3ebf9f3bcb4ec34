"""Posterior predictive checks in a few rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

_COLUMNS = ("statistic", "by", "n", "inside", "too_low", "too_high", "error", "spearman")


def summarise_check(check: pd.DataFrame | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How well samples of a model resemble the data, one row per statistic.

    Parameters
    ----------
    check
        ``model.posterior_predictive_check()``, or several, keyed by model name.

    Returns
    -------
    Frame with ``model`` (if there are several), ``statistic``, ``by``, ``n`` (genes, cells or
    pairs), ``inside`` (share of them whose observed value lies in the interval of 95 % of the
    samples), ``too_low`` and ``too_high`` (share whose observed value lies below or above it),
    ``error`` (median of abs(predicted - observed)) and ``spearman`` (rank correlation of observed
    and predicted).

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
            summarise_check(frame).assign(model=name)[["model", *_COLUMNS]]
            for name, frame in check.items()
        ]
        return pd.concat(parts, ignore_index=True)
    rows = []
    for (statistic, unit), group in check.groupby(["statistic", "by"], sort=False):
        group = group.dropna(subset=["observed", "predicted"])
        low = (group["observed"] < group["lower"]).mean()
        high = (group["observed"] > group["upper"]).mean()
        error = (group["predicted"] - group["observed"]).abs().median()
        # pandas' own Spearman correlation warns where all values are equal
        ranks = group[["observed", "predicted"]].rank()
        varies = (ranks.nunique() > 1).all()
        spearman = ranks["observed"].corr(ranks["predicted"]) if varies else np.nan
        rows.append((statistic, unit, len(group), 1.0 - low - high, low, high, error, spearman))
    return pd.DataFrame(rows, columns=list(_COLUMNS))
