"""Two predictors of labels, and how much weight each deserves.

The nearest reference cells in the latent space (``neighbours.py``) and the genes
(``classifiers.py``) each predict shares of labels. Their weights are measured on the reference,
with whole batches held out, because a query is another batch. So is novelty (``novelty.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from vivace.transfer.classifiers import label_log_odds, odds_to_shares
from vivace.transfer.latent_cells import LabelledCells, LatentCells
from vivace.transfer.neighbours import neighbour_shares
from vivace.transfer.novelty import LEAST_HELD_OUT, measure_novelty, rank_novelty
from vivace.types import F64, I64

_N_FOLDS = 4
_FLOOR = 1e-3  # added to a share before its logarithm


@dataclass(frozen=True)
class LabelPrediction:
    """Predicted labels of the cells of a query, and how they were predicted.

    Parameters
    ----------
    probability
        Of each label, shape (q, labels).
    novelty
        From 0 to 1, shape (q,).
    exponents
        Weights of the predictors: neighbours, and genes if they are used.
    held_out
        Number of reference cells that the weights were measured on.
    by_batch
        Whether they were held out by whole batches.
    """

    probability: F64
    novelty: F64
    exponents: tuple[float, ...]
    held_out: int
    by_batch: bool


@dataclass(frozen=True)
class _Evidence:
    """Shares of labels, (n, labels) per predictor, and measures of novelty, (n,) each."""

    shares: list[F64]
    novelty: list[F64]


@dataclass(frozen=True)
class _Setting:
    """Settings shared by held-out cells and a query, so that both are judged alike.

    Parameters
    ----------
    n_neighbors
        Number of nearest cells.
    n_samples
        Random samples of each cell's point.
    n_anchors
        Reference cells that distances are taken to.
    group_size
        Cells that are judged together.
    """

    n_neighbors: int
    n_samples: int
    n_anchors: int
    group_size: int


def predict_labels(
    reference: LabelledCells,
    subset: LabelledCells,
    query: LatentCells,
    rng: np.random.Generator,
    n_neighbors: int = 15,
    n_samples: int = 10,
) -> LabelPrediction:
    """Probability of each label for each cell of the query, and its novelty.

    Parameters
    ----------
    reference
        All labelled cells; neighbours are searched among them.
    subset
        Some of them. Classifiers learn from these, and weights and novelty are measured on them.
    query
        The cells to label. Genes are used if both these and the subset have their expression.
    rng
        Source of randomness.
    n_neighbors
        Number of nearest reference cells.
    n_samples
        Random samples of the point of each cell of the query.
    """
    folds, by_batch = assign_folds(subset, rng)
    if not _has_contrast(subset.labels, folds):
        query = query.without_genes()
        subset = replace(subset, cells=subset.cells.without_genes())
    largest = int(np.bincount(folds).max())
    setting = _Setting(
        n_neighbors,
        n_samples,
        n_anchors=max(len(folds) - largest, 1),
        group_size=min(len(query), largest),
    )
    evidence = _collect_evidence(reference, subset, query, setting, rng)
    held_out, truth = _hold_out(subset, folds, evidence, setting, rng)
    exponents = _fit_exponents(held_out.shares, truth)
    return LabelPrediction(
        probability=_combine(evidence.shares, exponents),
        novelty=rank_novelty(held_out.novelty, evidence.novelty),
        exponents=tuple(exponents.tolist()),
        held_out=len(truth),
        by_batch=by_batch,
    )


def _collect_evidence(
    reference: LabelledCells,
    subset: LabelledCells,
    query: LatentCells,
    setting: _Setting,
    rng: np.random.Generator,
) -> _Evidence:
    """Neighbours in the reference, classifiers of the subset, and distances to some of it."""
    anchors = subset.cells.take(rng.permutation(len(subset.labels))[: setting.n_anchors])
    samples = [query.sample(rng) for _ in range(setting.n_samples)]
    shares = [
        neighbour_shares(
            reference.cells.points(),
            reference.labels,
            reference.n_labels,
            samples,
            setting.n_neighbors,
        )
    ]
    largest_odds = None
    if subset.cells.expression is not None and query.expression is not None:
        odds = label_log_odds(
            subset.cells.expression,
            subset.labels,
            subset.n_labels,
            query.expression,
            int(rng.integers(2**31)),
        )
        shares.append(odds_to_shares(odds))
        largest_odds = odds.max(1)
    measures = measure_novelty(
        query, anchors.points(), largest_odds, setting.n_neighbors, setting.group_size, rng
    )
    return _Evidence(shares, measures)


def _hold_out(
    subset: LabelledCells,
    folds: I64,
    template: _Evidence,
    setting: _Setting,
    rng: np.random.Generator,
) -> tuple[_Evidence, I64]:
    """Evidence on the cells of each fold from the other folds, and their true labels.

    A cell whose label no other fold has is left out: it would be novel. ``template`` is the
    evidence on the query, which has the same predictors and measures.
    """
    parts = [_Evidence([x[:0] for x in template.shares], [x[:0] for x in template.novelty])]
    truths = [np.zeros(0, np.int64)]
    for fold in np.unique(folds):
        training = subset.take(np.flatnonzero(folds != fold))
        rows = np.flatnonzero((folds == fold) & np.isin(subset.labels, training.labels))
        if len(rows):
            cells = subset.cells.take(rows)
            parts.append(_collect_evidence(training, training, cells, setting, rng))
            truths.append(subset.labels[rows])
    shares = [np.concatenate(each) for each in zip(*(p.shares for p in parts), strict=True)]
    measures = [np.concatenate(each) for each in zip(*(p.novelty for p in parts), strict=True)]
    return _Evidence(shares, measures), np.concatenate(truths)


# ---- folds ------------------------------------------------------------------------------


def assign_folds(subset: LabelledCells, rng: np.random.Generator) -> tuple[I64, bool]:
    """The fold of each cell, and whether folds are whole batches.

    Folds are whole batches if most cells have their label in other folds too, and otherwise
    cells at random.
    """
    batches, batch_n = np.unique(subset.batches, return_inverse=True)
    if len(batches) > 1:
        folds = balance_folds(np.bincount(batch_n), min(_N_FOLDS, len(batches)))[batch_n]
        n_known = sum(
            np.isin(subset.labels[folds == f], subset.labels[folds != f]).sum() for f in set(folds)
        )
        if n_known >= max(LEAST_HELD_OUT, len(folds) // 2):
            return folds, True
    return rng.permutation(len(batch_n)) % min(_N_FOLDS, max(2, len(batch_n))), False


def balance_folds(sizes: I64, n_folds: int) -> I64:
    """A fold for each batch of the given size; folds have about as many cells each."""
    fold = np.zeros(len(sizes), np.int64)
    filled = np.zeros(n_folds)
    for batch in np.argsort(-sizes, kind="stable"):
        fold[batch] = filled.argmin()
        filled[fold[batch]] += sizes[batch]
    return fold


def _has_contrast(labels: I64, folds: I64) -> bool:
    """Whether two labels remain without each fold: a single classifier would claim every cell."""
    return all(len(np.unique(labels[folds != fold])) > 1 for fold in np.unique(folds))


# ---- the combination --------------------------------------------------------------------


def _fit_exponents(shares: list[F64], truth: I64) -> F64:
    """Exponents of the predictors' shares that make the true labels most probable."""
    if len(truth) < LEAST_HELD_OUT:
        return np.full(len(shares), 1.0 / len(shares))
    logs = [np.log(s + _FLOOR) for s in shares]
    cells = np.arange(len(truth))

    def loss(log_exponents: F64) -> float:
        exponents = np.exp(np.clip(log_exponents, -10.0, 3.0))
        combined = sum(a * log for a, log in zip(exponents, logs, strict=True))
        return float((np.logaddexp.reduce(combined, axis=1) - combined[cells, truth]).mean())

    start = np.full(len(shares), -0.5)
    fit = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    exponents: F64 = np.exp(np.clip(fit.x, -10.0, 3.0))
    return exponents


def _combine(shares: list[F64], exponents: F64) -> F64:
    """The product of the shares raised to their exponents, as probabilities."""
    logs = sum(a * np.log(s + _FLOOR) for a, s in zip(exponents, shares, strict=True))
    probability: F64 = softmax(logs, axis=1)
    return probability
