"""From cells and what is compared to the table of differential expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vivace.cells import Cells, children
from vivace.de.compare import over_cells
from vivace.de.counts import CountSums, count_sums
from vivace.de.groups import Comparison, Plan
from vivace.de.options import Options
from vivace.de.result import table
from vivace.de.samples import over_samples
from vivace.de.sampling import Found, Sampling
from vivace.ops.runtime.threads import adapted_threads
from vivace.types import F64, Bool


def differential_expression(
    cells: Cells,
    genes: Sequence[str],
    plan: Plan,
    options: Options,
    sampling: Sampling,
    seed: int,
    samples: NDArray[np.str_] | None = None,
    all_stats: bool = True,
) -> pd.DataFrame:
    """The table of all comparisons of a plan.

    Parameters
    ----------
    cells
        All that the plan's row numbers count.
    genes
        Names.
    plan
        What is compared.
    options, sampling
        How.
    seed
        Of the draws.
    samples
        The sample of each of the cells, for a comparison across samples.
    all_stats
        With columns of what was counted.
    """
    from vivace.progress import CompilingNotice  # Numba: only those who ask wait

    of_draws, of_pairs, of_delta = children(seed, 3)
    results: Sequence[Found | None]
    with adapted_threads(), CompilingNotice(not cells.silent):
        sums = count_sums(cells, plan.parts) if cells.source.has_counts else None
        if samples is None:
            results = over_cells(
                cells, plan, options, sampling, sums, (of_draws, of_pairs, of_delta)
            )
        else:
            assert sums is not None  # the method asks for cells with counts
            results = over_samples(
                cells, plan, options, sampling, sums, samples, (of_draws, of_delta)
            )
    frames, done = [], []
    for comparison, found in zip(plan.comparisons, results, strict=True):
        if found is None:
            continue
        counted, possible = _counted(sums, comparison, len(genes))
        frame = table(
            genes,
            found.change,
            found.scale,
            counted if all_stats else None,
            possible,
            found.pseudocount,
            found.delta,
            options,
        )
        frame["comparison"] = comparison.name
        frame["group1"] = comparison.group1
        frame["group2"] = comparison.group2
        frames.append(frame)
        done.append((comparison, found, frame.attrs.pop("expected_fdr", None)))
    result = pd.concat(frames)
    result.attrs.update(_about(plan, options, sampling, done, frames, seed))
    return result


def _counted(
    sums: CountSums | None, comparison: Comparison, n_genes: int
) -> tuple[dict[str, F64] | None, Bool]:
    """Columns of what was counted, and which genes were counted on one of the sides."""
    if sums is None:
        return None, np.ones(n_genes, bool)
    one, other = sums.of([comparison.first]), sums.of(comparison.second)
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    columns = {
        f"{name}{side}": values[i]
        for i, name in enumerate(names)
        for side, values in ((1, one), (2, other))
    }
    return columns, (one[1] > 0) | (other[1] > 0)


def _about(
    plan: Plan,
    options: Options,
    sampling: Sampling,
    done: Sequence[tuple[Comparison, Found, float | None]],
    frames: Sequence[pd.DataFrame],
    seed: int,
) -> dict[str, Any]:
    """What the result says of itself; numbers and words only, so that it can be written."""
    comparisons = {}
    for (comparison, found, expected_fdr), frame in zip(done, frames, strict=True):
        about: dict[str, Any] = {
            "n_cells": list(found.n_cells),
            "n_draws": list(found.n_draws),
        }
        if options.mode == "change":
            about |= {
                "delta": found.delta,
                "pseudocounts": found.pseudocount,
                "expected_fdr": expected_fdr,
                "n_called": int(frame[f"is_de_fdr_{options.fdr_target}"].sum()),
            }
        if found.n_samples is not None:
            about |= {"design": found.design, "n_samples": list(found.n_samples)}
        comparisons[comparison.name] = about
    return {
        "mode": options.mode,
        "test_mode": options.test_mode,
        "fdr_target": options.fdr_target,
        "filter_outlier_cells": sampling.filter_outliers,
        "weights": "uniform" if sampling.weighting is None else "importance",
        "groupby": plan.groupby,
        "seed": seed,
        "comparisons": comparisons,
    }
