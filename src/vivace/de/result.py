"""The table of a differential expression test, and scanpy's form of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vivace.de.change import Change
from vivace.de.options import Options
from vivace.types import F64, Bool

_EPS = 1e-8  # as in scvi-tools: a Bayes factor of a probability of 1 is finite


def table(
    genes: Sequence[str],
    change: Change,
    scale: tuple[F64, F64],
    counted: Mapping[str, F64] | None,
    possible: Bool,
    pseudocount: float,
    delta: float | None,
    options: Options,
) -> pd.DataFrame:
    """One row a gene, sorted; ``docs/differential_expression.md`` describes every column.

    ``possible`` genes have a count on one of the sides; no other is called.
    """
    columns: dict[str, Any]
    if options.mode == "vanilla":
        columns = {
            "proba_m1": change.above,
            "proba_m2": 1.0 - change.above,
            "bayes_factor": _bayes_factor(change.above),
            "scale1": scale[0],
            "scale2": scale[1],
        }
    else:
        proba = change.plus + change.minus
        if options.test_mode == "three":
            proba = np.maximum(change.plus, change.minus)
        proba = np.where(possible, np.clip(proba, 0.0, 1.0), 0.0)
        columns = {
            "proba_de": proba,
            "proba_not_de": 1.0 - proba,
            "bayes_factor": _bayes_factor(proba),
            "scale1": scale[0],
            "scale2": scale[1],
            "pseudocounts": pseudocount,
            "delta": np.nan if delta is None else delta,
            "lfc_mean": change.mean,
            "lfc_median": change.median,
            "lfc_std": change.std,
            "lfc_min": change.min,
            "lfc_max": change.max,
        }
        for level, (low, high) in change.intervals.items():
            columns[f"lfc_confidence_interval_{str(level)[:5]}_min"] = low
            columns[f"lfc_confidence_interval_{str(level)[:5]}_max"] = high
    columns |= dict(counted or {})
    frame = pd.DataFrame(columns, index=pd.Index(genes))
    if options.mode == "vanilla":
        return frame.sort_values("bayes_factor", ascending=False, kind="stable")
    # of equally sure genes the one that changes more comes first
    order = np.lexsort((-np.abs(change.mean), -columns["proba_de"]))
    frame = frame.iloc[order]
    called, expected = called_at(frame["proba_de"].to_numpy(), options.fdr_target)
    called &= possible[order]
    frame[f"is_de_fdr_{options.fdr_target}"] = called
    frame.attrs["expected_fdr"] = float(expected[called].max(initial=0.0))
    return frame


def _bayes_factor(proba: F64) -> F64:
    return np.log(proba + _EPS) - np.log(1.0 - proba + _EPS)


def called_at(sorted_proba: F64, fdr: float) -> tuple[Bool, F64]:
    """Which genes of a falling list are called, and the FDR expected of a call down to each.

    The expected FDR of a set of genes is the mean of their probabilities not to differ.
    """
    expected = np.cumsum(1.0 - sorted_proba) / np.arange(1, len(sorted_proba) + 1)
    return expected <= fdr, expected


def to_scanpy(result: pd.DataFrame, groupby: str | None) -> dict[str, Any]:
    """The result as ``sc.tl.rank_genes_groups`` leaves one in ``adata.uns``.

    Genes that are up in the group come first: ``scores`` is the probability that a gene is
    up minus that it is down.  ``pvals`` is ``proba_not_de``, and ``pvals_adj`` the FDR that
    is expected of calling every gene down to it: posterior probabilities, which are
    read like p values and are none.
    """
    groups = list(dict.fromkeys(result["group1"]))
    fields: dict[str, dict[str, Any]] = {
        name: {} for name in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")
    }
    for group in groups:
        part = result[result["group1"] == group]
        if "proba_de" in part:
            effect = part["lfc_mean"].to_numpy(float)
            not_de = part["proba_not_de"].to_numpy(float)
            score = np.sign(effect) * part["proba_de"].to_numpy(float)
        else:
            up = part["proba_m1"].to_numpy(float)
            scale = part[["scale1", "scale2"]].to_numpy(float) + _EPS
            effect, score = np.log2(scale[:, 0] / scale[:, 1]), 2 * up - 1
            not_de = 1.0 - np.abs(score)
        by_surety = np.argsort(not_de, kind="stable")
        expected = np.empty(len(part))
        expected[by_surety] = called_at(1.0 - not_de[by_surety], 0.5)[1]
        order = np.lexsort((-effect, -score))
        values = (part.index.to_numpy(str), score, effect, not_de, expected)
        for field, array in zip(fields.values(), values, strict=True):
            field[group] = array[order]
    kinds = {"names": "O", "scores": "f4", "logfoldchanges": "f4", "pvals": "f8", "pvals_adj": "f8"}
    found: dict[str, Any] = {
        name: np.rec.fromarrays(
            [columns[g].astype(kinds[name]) for g in groups],
            dtype=[(g, kinds[name]) for g in groups],
        )
        for name, columns in fields.items()
    }
    against = result["group2"].iloc[0]
    found["params"] = {
        "groupby": groupby,
        "reference": "rest" if against == "Rest" else against,
        "method": "vivace",
        "use_raw": False,
        "layer": None,
        "corr_method": "posterior expected FDR",
    }
    return found
