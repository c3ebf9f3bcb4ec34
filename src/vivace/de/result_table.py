"""The result of a comparison, its table, and scanpy's form of that table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from vivace.de.options import Options
from vivace.types import F64, Bool

Design = Literal["paired", "unpaired"]
_EPS = 1e-8  # as in scvi-tools: keeps the Bayes factor of a probability of 1 finite


@dataclass
class EffectSummary:
    """The distribution of the effect on each of g genes, shape (g,) each.

    Parameters
    ----------
    plus, minus
        Probability that it is at least delta, and that it is below -delta.
    above
        Probability that the first side is above the second.
    mean, median, std, min, max
        Statistics of the effect.
    intervals
        By level, the ends of an interval that has that probability.
    """

    plus: F64
    minus: F64
    above: F64
    mean: F64
    median: F64
    std: F64
    min: F64
    max: F64
    intervals: dict[float, tuple[F64, F64]] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonResult:
    """The result of one comparison.

    Parameters
    ----------
    effect
        The effect on each gene.
    scale
        Mean expression of the two sides, shape (g,) each.
    pseudocount
        Added to the expression before its logarithm.
    delta
        Smallest effect that counts; None if there is no threshold.
    n_cells, n_samples
        Cells, and random samples, of the two sides.
    design, n_replicates
        For a comparison across replicates: its design, and the replicates on each side.
    """

    effect: EffectSummary
    scale: tuple[F64, F64]
    pseudocount: float
    delta: float | None
    n_cells: tuple[int, int]
    n_samples: tuple[int, int]
    design: Design | None = None
    n_replicates: tuple[int, int] | None = None


def make_table(
    genes: Sequence[str],
    result: ComparisonResult,
    counted: Mapping[str, F64] | None,
    has_counts: Bool,
    options: Options,
) -> pd.DataFrame:
    """One row per gene, sorted; ``docs/differential_expression.md`` describes the columns.

    Parameters
    ----------
    genes
        Names of the genes.
    result
        The result of the comparison.
    counted
        Columns about the counts, each of shape (g,); None to leave them out.
    has_counts
        Which genes have a count on one of the sides, shape (g,); no other gene is called.
    options
        Options of the comparison.
    """
    effect, scale = result.effect, result.scale
    columns: dict[str, Any]
    if options.mode == "vanilla":
        columns = {
            "proba_m1": effect.above,
            "proba_m2": 1.0 - effect.above,
            "bayes_factor": _bayes_factor(effect.above),
            "scale1": scale[0],
            "scale2": scale[1],
        }
    else:
        proba = effect.plus + effect.minus
        if options.test_mode == "three":
            proba = np.maximum(effect.plus, effect.minus)
        proba = np.where(has_counts, np.clip(proba, 0.0, 1.0), 0.0)
        columns = {
            "proba_de": proba,
            "proba_not_de": 1.0 - proba,
            "bayes_factor": _bayes_factor(proba),
            "scale1": scale[0],
            "scale2": scale[1],
            "pseudocounts": result.pseudocount,
            "delta": np.nan if result.delta is None else result.delta,
            "lfc_mean": effect.mean,
            "lfc_median": effect.median,
            "lfc_std": effect.std,
            "lfc_min": effect.min,
            "lfc_max": effect.max,
        }
        for level, (low, high) in effect.intervals.items():
            columns[f"lfc_confidence_interval_{str(level)[:5]}_min"] = low
            columns[f"lfc_confidence_interval_{str(level)[:5]}_max"] = high
    columns |= dict(counted or {})
    table = pd.DataFrame(columns, index=pd.Index(genes))
    if options.mode == "vanilla":
        return table.sort_values("bayes_factor", ascending=False, kind="stable")
    # among equally probable genes, the one with the larger change comes first
    order = np.lexsort((-np.abs(effect.mean), -columns["proba_de"]))
    table = table.iloc[order]
    called, expected_fdr = call_genes(table["proba_de"].to_numpy(), options.fdr_target)
    called &= has_counts[order]
    table[f"is_de_fdr_{options.fdr_target}"] = called
    table.attrs["expected_fdr"] = float(expected_fdr[called].max(initial=0.0))
    return table


def _bayes_factor(proba: F64) -> F64:
    return np.log(proba + _EPS) - np.log(1.0 - proba + _EPS)


def call_genes(sorted_proba: F64, fdr: float) -> tuple[Bool, F64]:
    """Which genes of a descending list are called, and the expected FDR of calling down to each.

    The expected FDR of a set of genes is the mean of their probabilities of not differing.
    """
    expected = np.cumsum(1.0 - sorted_proba) / np.arange(1, len(sorted_proba) + 1)
    return expected <= fdr, expected


def to_scanpy(table: pd.DataFrame, groupby: str | None) -> dict[str, Any]:
    """The table in the form in which ``sc.tl.rank_genes_groups`` writes to ``adata.uns``.

    Genes that are up in the group come first. ``scores`` is the sign of the change times the
    probability that the gene differs. ``pvals`` is ``proba_not_de``, and ``pvals_adj`` the
    expected FDR of calling all genes down to this one. Both are posterior probabilities: they
    are read like p values, but are not p values.
    """
    groups = list(dict.fromkeys(table["group1"]))
    fields: dict[str, dict[str, Any]] = {
        name: {} for name in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")
    }
    for group in groups:
        part = table[table["group1"] == group]
        if "proba_de" in part:
            effect = part["lfc_mean"].to_numpy(float)
            not_de = part["proba_not_de"].to_numpy(float)
            score = np.sign(effect) * part["proba_de"].to_numpy(float)
        else:
            up = part["proba_m1"].to_numpy(float)
            scale = part[["scale1", "scale2"]].to_numpy(float) + _EPS
            effect, score = np.log2(scale[:, 0] / scale[:, 1]), 2 * up - 1
            not_de = 1.0 - np.abs(score)
        most_probable_first = np.argsort(not_de, kind="stable")
        expected_fdr = np.empty(len(part))
        expected_fdr[most_probable_first] = call_genes(1.0 - not_de[most_probable_first], 0.5)[1]
        order = np.lexsort((-effect, -score))
        values = (part.index.to_numpy(str), score, effect, not_de, expected_fdr)
        for columns, array in zip(fields.values(), values, strict=True):
            columns[group] = array[order]
    dtypes = {
        "names": "O",
        "scores": "f4",
        "logfoldchanges": "f4",
        "pvals": "f8",
        "pvals_adj": "f8",
    }
    result: dict[str, Any] = {
        name: np.rec.fromarrays(
            [columns[g].astype(dtypes[name]) for g in groups],
            dtype=[(g, dtypes[name]) for g in groups],
        )
        for name, columns in fields.items()
    }
    reference = table["group2"].iloc[0]
    result["params"] = {
        "groupby": groupby,
        "reference": "rest" if reference == "Rest" else reference,
        "method": "vivace",
        "use_raw": False,
        "layer": None,
        "corr_method": "posterior expected FDR",
    }
    return result
