"""How cells are drawn for a comparison, and what is found of one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vivace.cells import Cells
from vivace.data.schema import Codes
from vivace.de.change import Change
from vivace.de.counts import CountSums
from vivace.de.options import Options
from vivace.errors import MissingExtraError, OptionError, VivaceWarning
from vivace.questions.importance import Weighting
from vivace.questions.latent import encode
from vivace.types import F64, Rows

Design = Literal["paired", "unpaired"]
_QUANTILE = 0.9  # of the unexpressed genes' largest expression, which is the pseudocount
_LEAST_PSEUDOCOUNT = 1e-10


@dataclass(frozen=True)
class Sampling:
    """How cells are drawn and decoded.

    Parameters
    ----------
    codes
        What the draws of the first and of the second side are decoded as.
    weighting
        Arguments of importance weights; None for equal weights.
    filter_outliers
        Leave cells out that lie far from the others of their group.
    """

    codes: tuple[tuple[Codes, ...], tuple[Codes, ...]]
    weighting: Weighting | None
    filter_outliers: bool


@dataclass(frozen=True)
class Found:
    """What is known of one comparison before it is a table."""

    change: Change
    scale: tuple[F64, F64]
    pseudocount: float
    delta: float | None
    n_cells: tuple[int, int]
    n_draws: tuple[int, int]
    design: Design | None = None
    n_samples: tuple[int, int] | None = None


def typical(cells: Cells, rows: Rows, sampling: Sampling, seed: int) -> Rows:
    """The rows, without those of outliers if that was asked."""
    if not sampling.filter_outliers:
        return rows
    try:
        from sklearn.covariance import EllipticEnvelope
    except ImportError as error:
        raise MissingExtraError(
            "filter_outlier_cells needs scikit-learn, which is not installed; run pip install "
            "'vivace[de]'."
        ) from error
    place, _ = encode(cells.take(rows).quiet())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a covariance that is nearly singular
        try:
            inside = EllipticEnvelope(random_state=seed % 2**32).fit_predict(place) == 1
        except ValueError:
            inside = np.ones(len(rows), bool)
    if inside.all():
        warnings.warn(
            f"Outliers could not be told among {len(rows)} cells, so that all are kept.",
            VivaceWarning,
            stacklevel=6,
        )
    kept: Rows = rows[inside]
    return kept


def by_part(largest: F64, part_of: Sequence[int], n_parts: int) -> F64:
    """The largest over the groups that were drawn of each part of the plan, shape (parts, g)."""
    found = np.zeros((n_parts, largest.shape[1]))
    for values, part in zip(largest, part_of, strict=True):
        np.maximum(found[part], values, out=found[part])
    return found


def pseudocount_of(largest: F64, sums: CountSums | None, options: Options) -> float:
    """What is added to the expression before its logarithm.

    A gene with hardly a count in a group has an expression there that is the decoder's
    alone: 0.9 of such genes never exceed the pseudocount, so that what is below it counts
    as nothing.  The largest over groups of so many cells that one count would be too few
    (of the largest group alone, where none has that many): in ten cells most genes are silent.
    At least what ``threshold_counts`` counts are of a cell's.
    """
    if options.pseudocounts is not None:
        return max(float(options.pseudocounts), _LEAST_PSEUDOCOUNT)
    if sums is None:
        raise OptionError(
            "The pseudocount is found from counts, which minify_adata dropped; give pseudocounts="
            " a number, for example 1e-6."
        )
    n_cells = sums.n_cells
    least = options.threshold_counts * n_cells.sum() / sums.size.sum()
    found = max(_LEAST_PSEUDOCOUNT, float(least))
    telling = n_cells * options.threshold_counts >= 1
    for i in np.flatnonzero(telling) if telling.any() else [int(n_cells.argmax())]:
        silent = sums.counts[i] / n_cells[i] < options.threshold_counts
        if silent.any():
            found = max(found, float(np.quantile(largest[i, silent], _QUANTILE)))
    return found
