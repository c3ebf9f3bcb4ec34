"""The pseudocount of fold changes, and the smallest fold change that counts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from vivace.de.counts import CountSums
from vivace.de.options import Options
from vivace.errors import OptionError, require_extra
from vivace.types import F64

_LEAST_PSEUDOCOUNT = 1e-10
_SILENT_QUANTILE = 0.9  # of the largest expression of genes that are not expressed
_LEAST_DELTA, _DELTA_SHARE = 0.1, 0.6


def max_by_part(largest: F64, part_of_group: Sequence[int], n_parts: int) -> F64:
    """The maximum over the sampled groups of each part of the plan, shape (parts, g)."""
    maximum = np.zeros((n_parts, largest.shape[1]))
    for values, part in zip(largest, part_of_group, strict=True):
        np.maximum(maximum[part], values, out=maximum[part])
    return maximum


def choose_pseudocount(largest: F64, sums: CountSums | None, options: Options) -> float:
    """Choose the number that is added to the expression before its logarithm.

    If a gene has almost no counts in a group, its expression there is only the decoder's guess.
    The pseudocount is the 0.9 quantile of the largest expression of such genes, so changes below
    it hardly count. It is the maximum over the groups that have enough cells for one count to
    lie above ``threshold_counts``, or that of the largest group if none has: in ten cells most
    genes have no count. It is at least ``threshold_counts`` divided by the mean library (or size
    factor).

    Parameters
    ----------
    largest
        Typical largest expression in each part of the plan, shape (parts, g).
    sums
        Sums of the counts of each part; None if the data have no counts.
    options
        Options of the comparison.
    """
    if options.pseudocounts is not None:
        return max(float(options.pseudocounts), _LEAST_PSEUDOCOUNT)
    if sums is None:
        raise OptionError(
            "The pseudocount is chosen from the counts, which minify_adata dropped; give a number "
            "as pseudocounts=, for example 1e-6."
        )
    n_cells = sums.n_cells
    least = options.threshold_counts * n_cells.sum() / sums.size.sum()
    pseudocount = max(_LEAST_PSEUDOCOUNT, float(least))
    large = n_cells * options.threshold_counts >= 1
    for i in np.flatnonzero(large) if large.any() else [int(n_cells.argmax())]:
        silent = sums.counts[i] / n_cells[i] < options.threshold_counts
        if silent.any():
            reached = float(np.quantile(largest[i, silent], _SILENT_QUANTILE))
            pseudocount = max(pseudocount, reached)
    return pseudocount


def choose_delta(effects: F64, seed: int) -> float:
    """A threshold for fold changes, from their distribution over genes.

    Three normal components are fitted. The threshold is 0.6 times the mean absolute value of
    the outer two means, and at least 0.1.
    """
    require_extra("sklearn", "de", "delta=None needs")
    from sklearn.mixture import GaussianMixture

    if len(effects) < 2:
        return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(effects).max(initial=0.0)))
    n_components = min(3, len(np.unique(effects)))
    mixture = GaussianMixture(n_components=n_components, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is close enough
        means = np.sort(mixture.fit(effects[:, None]).means_.ravel())
    return float(max(_LEAST_DELTA, _DELTA_SHARE * np.abs(means[[0, -1]]).mean()))
