"""Labels of a reference for the cells of a query, with honest doubt.

Two witnesses: the neighbours of a cell in the latent space (``neighbours.py``) and its
genes (``expression.py``).  How far each is to be believed is measured on the reference,
with whole batches held out, because a query is another batch.  So is what is unusual
(``novelty.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import minimize
from scipy.special import softmax

from vivace.cells import Cells, question
from vivace.core import Core
from vivace.errors import ArgumentTypeError, DataError, OptionError, warn
from vivace.questions.latent import encode
from vivace.transfer.categories import extended
from vivace.transfer.cells import Labelled, LatentCells
from vivace.transfer.expression import claims, log_normalised, shares_of
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


@question()
def transfer_labels(
    self: Core,
    query: AnnData | None,
    labels_key: str,
    reference: AnnData | None = None,
    *,
    n_neighbors: int = 15,
    n_samples: int = 10,
    expression: bool = True,
    min_probability: float | None = None,
    max_novelty: float | None = None,
    all_probabilities: bool = False,
    key_added: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    silent: bool = False,
) -> pd.DataFrame:
    """What the cells of a query are, how sure that is, and how unlike the reference they are.

    Two witnesses are heard: the nearest cells of the reference in the latent space, over
    draws from the posterior of each cell of the query, and one linear classifier a label
    on log-normalised counts.  How far each is believed is measured on the reference,
    with whole batches held out; ``docs/transfer.md`` says how.

    Parameters
    ----------
    query
        Cells to label, of categories that the model knows; None for the model's own data.
    labels_key
        Column of the reference's obs with the labels; cells without one, or with
        "Unknown", are left out.
    reference
        Cells with labels; None for those of the reference model (the first, where
        queries were mapped one after the other), or of this model.
    n_neighbors
        Nearest cells of the reference that are looked at.
    n_samples
        Draws from the posterior of each cell.
    expression
        False asks the neighbours only; so it is where counts were dropped by
        :meth:`minify_adata`.
    min_probability, max_novelty
        Cells whose label is less probable, or that are more novel, become "Unknown".
    all_probabilities
        With a column ``probability_...`` for each label.
    key_added
        Write ``obs[key_added]``, ``obs[key_added + "_probability"]`` and
        ``obs[key_added + "_novelty"]`` of the query.
    batch_size, silent
        As in :meth:`get_latent_representation`.
    seed
        Of the draws; None takes the model's next.

    Returns
    -------
    Frame with a row for each cell of the query: ``label``; ``probability`` of it; and
    ``novelty``, the share of reference cells, of batches that were held out, that are
    more typical: 0.99 for the least typical hundredth; nan where fewer than 30 could be
    held out.  ``attrs`` holds how it was made.

    Raises
    ------
    DataError
        If there is no reference at hand, it has no labels, or the query has batches that
        the model does not know.
    OptionError
        If ``key_added`` names a column that the model reads.

    Warns
    -----
    VivaceWarning
        If cells of the query are cells of the reference, or there is no novelty.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata[::2].copy(), n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> found = model.transfer_labels(adata[1:200:2].copy(), "cell_type", seed=0)
    >>> found.shape
    (100, 3)
    """
    options = LabelOptions(
        n_neighbors, n_samples, expression, min_probability, max_novelty, all_probabilities
    )
    columns = _columns_added(self, key_added)
    known = _labelled_data(self, query, reference)
    rows, names, codes = labels_of(known, labels_key)
    if query is not None:
        _check_known(self, query)
    rng = np.random.default_rng(self._seeds.take(seed))
    asked = self._cells(query, None, batch_size, silent)
    told = self._cells(known, rows, batch_size, silent)
    query_cells = _latent_cells(self, asked)
    batch_r = told.source.gather(rows, counts=False).batch.numpy()
    labelled = Labelled(_latent_cells(self, told), codes, batch_r, len(names))
    chosen = sample_of(labelled.labels, rng)
    some = labelled.at(chosen)
    if expression and asked.source.has_counts and told.source.has_counts:
        query_cells = replace(query_cells, expression=_log_normalised(self, asked, asked.rows))
        genes = _log_normalised(self, told, rows[chosen])
        some = replace(some, cells=replace(some.cells, expression=genes))
    found = predict_labels(labelled, some, query_cells, options, rng)
    data = self._asked_adata(query)
    result = label_table(found, names, data.obs_names, options)
    result.attrs["labels_key"] = labels_key
    names_r = known.obs_names[rows]
    _warn_what_misleads(result, query_cells, names_r, labelled.cells)
    written = result.astype({"label": "category"})
    for column, values in zip(columns, ("label", "probability", "novelty"), strict=False):
        data.obs[column] = written[values]
    return result


def _columns_added(self: Core, key_added: object) -> tuple[str, ...]:
    """Columns of obs to write, none of which the model reads."""
    if key_added is None:
        return ()
    if not isinstance(key_added, str) or not key_added:
        raise ArgumentTypeError(f"key_added must be a name, not {key_added!r}.")
    columns = (key_added, f"{key_added}_probability", f"{key_added}_novelty")
    for column in columns:
        if column in self.schema.declarations.columns:
            raise OptionError(
                f"key_added={key_added!r} would overwrite obs[{column!r}], which the model reads; "
                "choose another name."
            )
    return columns


def _warn_what_misleads(
    result: pd.DataFrame,
    query_cells: LatentCells,
    known: pd.Index[str],
    known_cells: LatentCells,
) -> None:
    """Warn where the answer is better than it can be, or is not there."""
    if result["novelty"].isna().any():
        warn(
            "The reference has too few labelled cells to measure novelty, which is nan; "
            "max_novelty makes no cell Unknown."
        )
    if not known.is_unique:
        return
    at = known.get_indexer(result.index)
    both = np.flatnonzero(at >= 0)
    near = np.isclose(query_cells.mean[both], known_cells.mean[at[both]], atol=1e-4)
    n_same = int(near.all(axis=1).sum())
    if n_same:
        warn(
            f"{n_same:,} cells of the query are cells of the reference too, and their own "
            "neighbours: their probabilities are too high; leave them out of one of the two."
        )


def _labelled_data(self: Core, query: AnnData | None, reference: AnnData | None) -> AnnData:
    """The reference that labels come from."""
    if reference is not None:
        if not isinstance(reference, AnnData):
            raise ArgumentTypeError(
                f"reference must be an AnnData, not {type(reference).__name__}."
            )
        return reference
    mapped = self.module.surgery is not None
    found = self._reference if mapped else self._adata
    if found is None or (not mapped and query is None):
        save = "" if mapped else ", or save the reference model with save_anndata=True"
        raise DataError(
            f"There is no reference with labels at hand; give its AnnData as reference={save}."
        )
    return found


def _check_known(self: Core, query: AnnData) -> None:
    """Refuse categories that have to be mapped first."""
    if not isinstance(query, AnnData):
        raise ArgumentTypeError(f"query must be an AnnData, not {type(query).__name__}.")
    longer = extended(self.schema, query, labels=self.config.dispersion == "gene-label")
    both = [(self.schema.batches, longer.batches)]
    both += zip(self.schema.categories, longer.categories, strict=True)
    for mine, its in both:
        if new := its[len(mine) :]:
            raise DataError(
                f"The query has categories that the model does not know ({', '.join(map(repr, new[:5]))}); "
                f"map it first: {type(self).__name__}.load_query_data(query, model), then train()."
            )


def _latent_cells(self: Core, cells: Cells) -> LatentCells:
    """Where they are, without their genes."""
    mean, variance = encode(cells)
    softmax = self.config.latent_distribution == "ln"
    return LatentCells(mean, variance, softmax=softmax)


def _log_normalised(self: Core, cells: Cells, rows: Any) -> Any:
    """Expression of some of them, as classifiers see it."""
    counts = cells.source.gather(rows).counts.scipy()
    return log_normalised(counts) if self.module.likelihood.counts else counts


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


def predict_labels(
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
