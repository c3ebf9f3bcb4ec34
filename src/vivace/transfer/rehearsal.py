"""How a cell of a label that the reference lacks looks, learnt on labels that it has.

The labels of held-out cells are taken out of the rest of the reference one at a time.
Where the reference's own labels have near relatives, what a cell is claimed by says
little of its novelty and the crowding much; where they have none, the claims say most.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vivace.transfer.cells import Codes
from vivace.transfer.novelty import FEWEST, Floats, Sight, ranks
from vivace.transfer.options import need_sklearn

_MOST_LABELS = 6  # that are taken out of each part of the reference
_FEWEST_CELLS = 15  # of a label that is taken out
_A_FEW = 5  # cells that a query may have of a new type
_WEIGHT_OF_A_FEW = 0.3  # of a rehearsal with them, beside one with all cells of the label
_STRENGTH = 300.0  # of what is measured, beside a prior of no weight


@dataclass(frozen=True)
class Rehearsal:
    """Measures of cells, shape (n, measures), which of them are new, and how much it counts."""

    untypical: Floats
    new: NDArray[np.bool_]
    weight: float


def rehearse(sight: Sight, truth: Codes, rng: np.random.Generator) -> list[Rehearsal]:
    """Some labels of the cells taken out of the reference: with all their cells, and with a few.

    ``truth`` are the labels of the cells of ``sight``.  None where cells have no company, and
    there is but one measure, or where too few labels would be left.
    """
    n_left = 1 if sight.odds is None else 2
    labels, sizes = np.unique(truth, return_counts=True)
    if not sight.companies or len(np.unique(sight.reference.labels)) <= n_left:
        return []
    found = []
    for label in rng.permutation(labels[sizes >= _FEWEST_CELLS])[:_MOST_LABELS]:
        new = truth == label
        seen = sight.without(label, np.flatnonzero(new), int(rng.integers(2**31)))
        found.append(Rehearsal(seen.untypical(), new, 1.0))
        few = rng.permutation(np.flatnonzero(new))[:_A_FEW]
        kept = np.sort(np.concatenate([np.flatnonzero(~new), few]))
        found.append(Rehearsal(seen.only(kept).untypical(), new[kept], _WEIGHT_OF_A_FEW))
    return found


def weights(known: Floats, rehearsals: list[Rehearsal]) -> Floats:
    """How much the rank of each measure says of whether a cell is new, shape (measures,).

    ``known`` are the measures of held-out cells whose label the reference has.  By logistic
    regression; a measure that speaks against it is not heard.  All the same without rehearsals.
    """
    equal = np.ones(known.shape[1])
    if not rehearsals or len(known) < FEWEST:
        return equal
    need_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    total = sum(r.weight for r in rehearsals)
    measured = [ranks(known, known)]
    new = [np.zeros(len(known), bool)]
    counts = [np.full(len(known), 1.0 / len(known))]
    for r in rehearsals:
        measured.append(ranks(known, r.untypical))
        new.append(r.new)
        of_each = np.where(r.new, r.new.sum(), max((~r.new).sum(), 1))
        counts.append(r.weight / total / of_each)
    model = LogisticRegression(C=_STRENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.concatenate(measured), np.concatenate(new), np.concatenate(counts))
    found = np.maximum(model.coef_[0], 0.0)
    return found / found.mean() if found.any() else equal
