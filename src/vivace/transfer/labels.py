"""Labels of a reference for the cells of a query, with honest doubt.

Two witnesses: the neighbours of a cell in the latent space (``neighbours.py``) and its
genes (``expression.py``).  How far each is to be believed is measured on the reference,
with whole batches held out, because a query is another batch.  So is what is unusual
(``novelty.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import minimize
from scipy.special import softmax

from vivace.errors import DataError
from vivace.transfer.cells import Labelled, LatentCells
from vivace.transfer.expression import claims, shares_of
from vivace.transfer.neighbours import neighbour_labels
from vivace.transfer.novelty import FEWEST, novelty, untypical
from vivace.transfer.options import LabelOptions
from vivace.types import F64, I64
from vivace.validate import any_column_of

UNKNOWN = "Unknown"
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
    probability
        Shape (q, labels).
    novelty
        Shape (q,), from 0 to 1.
    exponents
        How far neighbours, and genes, are believed.
    held_out
        Cells of the reference that this was measured on.
    by_batch
        Whether they were held out by whole batches.
    """

    probability: F64
    novelty: F64
    exponents: tuple[float, ...]
    held_out: int
    by_batch: bool


@dataclass(frozen=True)
class _Said:
    """What the witnesses say of n cells: shares of labels, (n, labels) each; how untypical they are."""

    shares: list[F64]
    untypical: list[F64]


@dataclass(frozen=True)
class _Terms:
    """On what terms cells are asked: the same for held-out cells and a query.

    Parameters
    ----------
    n_anchors
        Reference cells that distances are taken to.
    company
        Cells that are judged together.
    """

    options: LabelOptions
    n_anchors: int
    company: int


def labels_of(adata: AnnData, key: str) -> tuple[I64, list[str], I64]:
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


def sample_of(labels: I64, rng: np.random.Generator) -> I64:
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
    largest = int(np.bincount(folds).max())
    terms = _Terms(options, max(len(folds) - largest, 1), min(len(query), largest))
    asked = _ask(reference, some, query, terms, rng)
    said, truth = _held_out(some, folds, asked, terms, rng)
    exponents = _exponents(said.shares, truth)
    return Transfer(
        probability=_joined(asked.shares, exponents),
        novelty=novelty(said.untypical, asked.untypical),
        exponents=tuple(exponents.tolist()),
        held_out=len(truth),
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
        "exponents": dict(zip(("neighbours", "genes"), found.exponents, strict=False)),
        "held_out_cells": found.held_out,
        "held_out_by_batch": found.by_batch,
        "n_unknown": int(unknown.sum()),
    }
    return table


def _ask(
    reference: Labelled,
    some: Labelled,
    query: LatentCells,
    terms: _Terms,
    rng: np.random.Generator,
) -> _Said:
    """Neighbours in all of the reference, classifiers of ``some``, distances to a few of these."""
    options = terms.options
    anchors = some.cells.at(rng.permutation(len(some.labels))[: terms.n_anchors])
    draws = [query.draw(rng) for _ in range(options.n_samples)]
    shares = [
        neighbour_labels(
            reference.cells.places(),
            reference.labels,
            reference.n_labels,
            draws,
            options.n_neighbors,
        )
    ]
    claimed = None
    if some.cells.expression is not None and query.expression is not None:
        odds = claims(
            some.cells.expression,
            some.labels,
            some.n_labels,
            query.expression,
            int(rng.integers(2**31)),
        )
        shares.append(shares_of(odds))
        claimed = odds.max(1)
    places = anchors.places()
    unlike = untypical(query, places, claimed, options.n_neighbors, terms.company, rng)
    return _Said(shares, unlike)


def _held_out(
    some: Labelled,
    folds: I64,
    asked: _Said,
    terms: _Terms,
    rng: np.random.Generator,
) -> tuple[_Said, I64]:
    """What the witnesses say of each fold without it, and the true labels; in the form of ``asked``.

    A cell whose label no other fold has is left out: it is new to them.
    """
    nothing = _Said([x[:0] for x in asked.shares], [x[:0] for x in asked.untypical])
    parts = [nothing]
    truths = [np.zeros(0, np.int64)]
    for fold in np.unique(folds):
        others = some.at(np.flatnonzero(folds != fold))
        known = np.flatnonzero((folds == fold) & np.isin(some.labels, others.labels))
        if len(known):
            cells = some.cells.at(known)
            parts.append(_ask(others, others, cells, terms, rng))
            truths.append(some.labels[known])
    shares = [np.concatenate(one) for one in zip(*(p.shares for p in parts), strict=True)]
    unlike = [np.concatenate(one) for one in zip(*(p.untypical for p in parts), strict=True)]
    return _Said(shares, unlike), np.concatenate(truths)


def _has_contrast(labels: I64, folds: I64) -> bool:
    """Whether there are two labels outside of each fold: one classifier would claim everything."""
    return all(len(np.unique(labels[folds != fold])) > 1 for fold in np.unique(folds))


def _folds(some: Labelled, rng: np.random.Generator) -> tuple[I64, bool]:
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


def _spread(sizes: I64, n_folds: int) -> I64:
    """A fold for each batch, so that folds have about as many cells."""
    fold = np.zeros(len(sizes), np.int64)
    filled = np.zeros(n_folds)
    for batch in np.argsort(-sizes, kind="stable"):
        fold[batch] = filled.argmin()
        filled[fold[batch]] += sizes[batch]
    return fold


def _exponents(shares: list[F64], truth: I64) -> F64:
    """Powers of the witnesses' shares whose product is the most probable truth."""
    if len(truth) < FEWEST:
        return np.full(len(shares), 1.0 / len(shares))
    logs = [np.log(s + _FLOOR) for s in shares]
    cells = np.arange(len(truth))

    def loss(log_exponents: F64) -> float:
        powers = np.exp(np.clip(log_exponents, -10.0, 3.0))
        joined = sum(a * one for a, one in zip(powers, logs, strict=True))
        return float((np.logaddexp.reduce(joined, axis=1) - joined[cells, truth]).mean())

    start = np.full(len(shares), -0.5)
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    exponents: F64 = np.exp(np.clip(found.x, -10.0, 3.0))
    return exponents


def _joined(shares: list[F64], exponents: F64) -> F64:
    """The product of the witnesses' shares to those powers, as probabilities."""
    logs = sum(a * np.log(s + _FLOOR) for a, s in zip(exponents, shares, strict=True))
    joined: F64 = softmax(logs, axis=1)
    return joined
