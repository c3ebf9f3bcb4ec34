"""Labels of a reference for the cells of a query, with honest doubt.

Witnesses are the neighbours of a cell in the latent space (``neighbours.py``) and its genes,
asked in two ways (``expression.py``).  How far each is to be believed is measured on the
reference, with whole batches held out, because a query is another batch.  So is what is
unusual (``novelty.py``, ``rehearsal.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax

from vivace.arguments import any_column_of
from vivace.errors import DataError
from vivace.transfer.cells import Codes, Labelled, LatentCells
from vivace.transfer.expression import claims, contrasts, shares_of
from vivace.transfer.neighbours import nearest, neighbour_labels
from vivace.transfer.novelty import FEWEST, Sight, companies, novelty
from vivace.transfer.options import LabelOptions
from vivace.transfer.rehearsal import Rehearsal, rehearse, weights

Floats = NDArray[np.float64]
UNKNOWN = "Unknown"
WITNESSES = ("neighbours", "genes_one_vs_rest", "genes_multinomial")
_FOLDS = 4
_MANY_LABELS = 100  # fewer are never taken for names of cells
_MOST_CELLS = 20_000  # of the reference, that classifiers learn from and doubt is measured on
_OF_EACH = 100  # of them, of a label that has as many
_FLOOR = 1e-3  # added to a probability before its logarithm


@dataclass(frozen=True)
class Transfer:
    """What a query's cells are, and how the answer was made.

    Parameters
    ----------
    probability : shape (q, labels)
    novelty : shape (q,), from 0 to 1
    exponents : how far each of ``WITNESSES`` is believed
    held_out : cells of the reference that this was measured on
    by_batch : whether they were held out by whole batches
    """

    probability: Floats
    novelty: Floats
    exponents: tuple[float, ...]
    held_out: int
    by_batch: bool


@dataclass(frozen=True)
class _Measure:
    """How cells are asked: as many anchors and as large a company for held-out cells as for a query."""

    options: LabelOptions
    n_anchors: int
    company: int


@dataclass(frozen=True)
class _HeldOut:
    """Held-out cells: shares of labels that each witness says, their measures, and their labels."""

    shares: list[Floats]
    untypical: Floats
    truth: Codes
    rehearsals: list[Rehearsal]


def labels_of(adata: AnnData, key: str) -> tuple[Codes, list[str], Codes]:
    """Rows of a reference with a label, names of the labels, and their codes, of these rows."""
    column = any_column_of(adata, "labels_key, in the reference", key)
    rows = np.flatnonzero(column.notna() & (column.astype(str) != UNKNOWN))
    if len(rows) == 0:
        raise DataError(f"obs[{key!r}] (labels_key) of the reference has no labels.")
    names, codes = np.unique(column.iloc[rows].astype(str), return_inverse=True)
    if len(names) > max(_MANY_LABELS, len(rows) // 2):
        raise DataError(
            f"obs[{key!r}] (labels_key) of the reference has {len(names):,} different values in "
            f"{len(rows):,} cells; it takes a column of labels that cells have in common."
        )
    return rows, names.tolist(), codes.astype(np.int64)


def sample_of(labels: Codes, rng: np.random.Generator) -> Codes:
    """At most 20,000 cells: as they come, but of each label 100 or half an even share, if it has them."""
    if len(labels) <= _MOST_CELLS:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    sizes = np.bincount(labels)
    least = min(_OF_EACH, _MOST_CELLS // (2 * np.count_nonzero(sizes)))
    first = [order[labels[order] == label][:least] for label in np.flatnonzero(sizes)]
    chosen = np.concatenate(first)
    others = order[~np.isin(order, chosen)]
    return np.sort(np.concatenate([chosen, others[: _MOST_CELLS - len(chosen)]]))


def transfer_labels(
    reference: Labelled,
    some: Labelled,
    query: LatentCells,
    options: LabelOptions,
    rng: np.random.Generator,
) -> Transfer:
    """Probability of each label for each cell of the query, and its novelty.

    ``some`` of the reference (:func:`sample_of`) is what classifiers learn from and doubt is
    measured on; ``query`` and they have their expression, or neither has.
    """
    folds, by_batch = _folds(some, rng)
    if not _has_contrast(some.labels, folds):
        query, some = query.without_genes(), replace(some, cells=some.cells.without_genes())
    n_outside = len(folds) - np.bincount(folds)[np.unique(folds)]
    company = min(len(query), int(np.bincount(folds).max()))
    measure = _Measure(options, int(max(n_outside.min(), 1)), company)
    shares, sight = _ask(reference, some, query, measure, rng)
    held_out = _held_out(some, folds, measure, rng)
    untypical = sight.untypical()
    exponents = np.full(len(shares), 1.0 / len(shares))
    unlike = np.full(len(query), np.nan)
    if len(held_out.truth) >= FEWEST:
        exponents = _exponents(held_out.shares, held_out.truth)
        heard = weights(held_out.untypical, held_out.rehearsals)
        unlike = novelty(held_out.untypical, untypical, heard)
    return Transfer(
        probability=_joined(shares, exponents),
        novelty=unlike,
        exponents=tuple(exponents.tolist()),
        held_out=len(held_out.truth),
        by_batch=by_batch,
    )


def label_table(
    found: Transfer, names: Sequence[str], cells: pd.Index[str], options: LabelOptions
) -> pd.DataFrame:
    """Label, probability and novelty of each cell of the query, and how they were made."""
    best = found.probability.argmax(1)
    probability = found.probability[np.arange(len(best)), best]
    labels = np.asarray(names, dtype=object)[best]
    unknown = np.zeros(len(best), bool)
    if options.min_probability is not None:
        unknown |= probability < options.min_probability
    if options.max_novelty is not None:
        unknown |= found.novelty > options.max_novelty
    labels[unknown] = UNKNOWN
    table = pd.DataFrame(
        {"label": labels, "probability": probability, "novelty": found.novelty}, index=cells
    )
    if options.all_probabilities:
        columns = [f"probability_{name}" for name in names]
        table[columns] = found.probability
    table.attrs |= {
        "exponents": dict(zip(WITNESSES, found.exponents, strict=False)),
        "held_out_cells": found.held_out,
        "held_out_by_batch": found.by_batch,
        "n_unknown": int(unknown.sum()),
    }
    return table


def _ask(
    reference: Labelled,
    some: Labelled,
    cells: LatentCells,
    measure: _Measure,
    rng: np.random.Generator,
) -> tuple[list[Floats], Sight]:
    """Shares of the labels, (n, labels) a witness, and what is seen of how novel the cells are.

    Neighbours are looked for in all of the reference, classifiers learn from ``some``, and
    distances are taken to a few of these.
    """
    options = measure.options
    anchors = some.at(rng.permutation(len(some.labels))[: measure.n_anchors])
    draws = [cells.draw(rng) for _ in range(options.n_samples)]
    places = reference.cells.places()
    shares = [neighbour_labels(places, reference.labels, some.n_labels, draws, options.n_neighbors)]
    odds = None
    if some.cells.expression is not None and cells.expression is not None:
        known = (some.cells.expression, some.labels, some.n_labels)
        odds = claims(*known, cells.expression, int(rng.integers(2**31)))
        shares += [shares_of(odds), contrasts(*known, cells.expression)]
    near = nearest(anchors.cells.places(), cells.places(), options.n_neighbors)
    groups = companies(cells, measure.company, rng)
    return shares, Sight(cells, odds, some, anchors, near, groups)


def _held_out(
    some: Labelled, folds: Codes, measure: _Measure, rng: np.random.Generator
) -> _HeldOut:
    """What is said and seen of the cells of each fold without it.

    A cell whose label no other fold has is left out: it is new to them.
    """
    parts = []
    for fold in np.unique(folds):
        others = some.at(np.flatnonzero(folds != fold))
        known = np.flatnonzero((folds == fold) & np.isin(some.labels, others.labels))
        if len(known):
            truth = some.labels[known]
            shares, sight = _ask(others, others, some.cells.at(known), measure, rng)
            parts.append(_HeldOut(shares, sight.untypical(), truth, rehearse(sight, truth, rng)))
    if not parts:
        return _HeldOut([], np.zeros((0, 0)), np.zeros(0, np.int64), [])
    return _HeldOut(
        [np.concatenate(one) for one in zip(*(p.shares for p in parts), strict=True)],
        np.concatenate([p.untypical for p in parts]),
        np.concatenate([p.truth for p in parts]),
        [one for p in parts for one in p.rehearsals],
    )


def _has_contrast(labels: Codes, folds: Codes) -> bool:
    """Whether there are two labels outside of each fold: one classifier would claim everything."""
    return all(len(np.unique(labels[folds != fold])) > 1 for fold in np.unique(folds))


def _folds(some: Labelled, rng: np.random.Generator) -> tuple[Codes, bool]:
    """Whole batches where most cells have their label in other batches too, else cells at random."""
    batches, cells = np.unique(some.batches, return_inverse=True)
    if len(batches) > 1:
        folds = _spread(np.bincount(cells), min(_FOLDS, len(batches)))[cells]
        found = [
            np.isin(some.labels[folds == f], some.labels[folds != f]).sum() for f in set(folds)
        ]
        if sum(found) >= max(FEWEST, len(folds) // 2):
            return folds, True
    return rng.permutation(len(cells)) % min(_FOLDS, max(2, len(cells))), False


def _spread(sizes: Codes, n_folds: int) -> Codes:
    """A fold for each batch, so that folds have about as many cells."""
    fold = np.zeros(len(sizes), np.int64)
    filled = np.zeros(n_folds)
    for batch in np.argsort(-sizes, kind="stable"):
        fold[batch] = filled.argmin()
        filled[fold[batch]] += sizes[batch]
    return fold


def _exponents(shares: list[Floats], truth: Codes) -> Floats:
    """Powers of the witnesses' shares whose product is the most probable truth."""
    logs = [np.log(s + _FLOOR) for s in shares]
    cells = np.arange(len(truth))

    def loss(log_exponents: Floats) -> float:
        powers = np.exp(np.clip(log_exponents, -10.0, 3.0))
        joined = sum(a * one for a, one in zip(powers, logs, strict=True))
        return float((np.logaddexp.reduce(joined, axis=1) - joined[cells, truth]).mean())

    start = np.full(len(shares), -0.5)
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    exponents: Floats = np.exp(np.clip(found.x, -10.0, 3.0))
    return exponents


def _joined(shares: list[Floats], exponents: Floats) -> Floats:
    """The product of the witnesses' shares to those powers, as probabilities."""
    logs = sum(a * np.log(s + _FLOOR) for a, s in zip(exponents, shares, strict=True))
    joined: Floats = softmax(logs, axis=1)
    return joined
