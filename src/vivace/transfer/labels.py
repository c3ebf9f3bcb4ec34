"""Labels of a reference for the cells of a query, with calibrated uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from vivace.cells import Cells, question
from vivace.core import Core
from vivace.errors import ArgumentTypeError, DataError, OptionError, brief, list_names, warn
from vivace.questions.latent import encode
from vivace.transfer.categories import extend_schema
from vivace.transfer.classifiers import log_normalise
from vivace.transfer.latent_cells import LabelledCells, LatentCells
from vivace.transfer.predictors import LabelPrediction, predict_labels
from vivace.types import I64, Rows
from vivace.validate import COUNT, Check, Number, check_anndata, obs_column

UNKNOWN = "Unknown"
_SHARE = Number(at_least=0, at_most=1, optional=True)
CHECKS: dict[str, Check] = {
    "n_neighbors": COUNT,
    "n_samples": COUNT,
    "min_probability": _SHARE,
    "max_novelty": _SHARE,
}
_MANY_LABELS = 100  # up to this many are never mistaken for names of cells
_MAX_CELLS = 20_000  # of the reference, for classifiers and for what is measured on it
_LEAST_PER_LABEL = 100  # of these, of each label that has that many


@question(**CHECKS)
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
    """Label the cells of a query, with the label's probability and the cell's novelty.

    Two predictors are combined: the nearest cells of the reference in the latent space, over
    random samples from the posterior of each cell of the query, and one linear classifier per
    label on log-normalised counts. Their weights are measured on the reference, with whole
    batches held out; ``docs/transfer.md`` describes the method.

    Parameters
    ----------
    query
        Cells to label, whose categories the model knows; None for the model's own data.
    labels_key
        Column of the reference's obs with the labels. Cells without one, or with "Unknown",
        are left out.
    reference
        Cells with labels. None for those of the reference model (the first, if queries were
        mapped one after another), or of this model.
    n_neighbors
        Number of nearest reference cells.
    n_samples
        Random samples from the posterior of each cell.
    expression
        False uses the neighbours only, as do cells without counts (see :meth:`minify_adata`).
    min_probability, max_novelty
        Cells whose label is less probable, or which are more novel, become "Unknown".
    all_probabilities
        Include a column ``probability_...`` for each label.
    key_added
        Write ``obs[key_added]``, ``obs[key_added + "_probability"]`` and
        ``obs[key_added + "_novelty"]`` of the query.
    batch_size, silent
        As in :meth:`get_latent_representation`.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    Frame with one row per cell of the query: ``label``, its ``probability``, and ``novelty``,
    the share of held-out reference cells that are more typical, for example 0.99 for the least
    typical 1 %. Novelty is NaN if fewer than 30 cells could be held out. ``attrs`` says how the
    frame was made.

    Raises
    ------
    DataError
        If there is no reference, it has no labels, or the query has batches that the model does
        not know.
    OptionError
        If ``key_added`` names a column that the model reads.

    Warns
    -----
    VivaceWarning
        If cells of the query are also cells of the reference, or novelty could not be measured.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata[::2].copy(), n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> labels = model.transfer_labels(adata[1:200:2].copy(), "cell_type", seed=0)
    >>> labels.shape
    (100, 3)
    """
    columns = _added_columns(self, key_added)
    labelled_adata = _find_reference(self, query, reference)
    rows, names, codes = read_labels(labelled_adata, labels_key)
    if query is not None:
        _check_known(self, query)
    rng = np.random.default_rng(self._seeds.take(seed))

    # Encode both.
    query_cells = self._cells(query, None, batch_size, silent)
    reference_cells = self._cells(labelled_adata, rows, batch_size, silent)
    query_latent = _encode(self, query_cells)
    batch_r = reference_cells.source.gather(rows, counts=False).batch.numpy()
    labelled = LabelledCells(_encode(self, reference_cells), codes, batch_r, len(names))

    # Expression of the query, and of the part of the reference that classifiers learn from.
    chosen = choose_subset(labelled.labels, rng)
    subset = labelled.take(chosen)
    if expression and query_cells.source.has_counts and reference_cells.source.has_counts:
        query_genes = _read_expression(self, query_cells, query_cells.rows)
        query_latent = replace(query_latent, expression=query_genes)
        subset_genes = _read_expression(self, reference_cells, rows[chosen])
        subset = replace(subset, cells=replace(subset.cells, expression=subset_genes))

    prediction = predict_labels(labelled, subset, query_latent, rng, n_neighbors, n_samples)
    data = self._resolve_adata(query)
    result = _make_table(
        prediction, names, data.obs_names, min_probability, max_novelty, all_probabilities
    )
    result.attrs["labels_key"] = labels_key
    _warn_about_novelty(result)
    _warn_about_shared_cells(query_latent, data, labelled.cells, labelled_adata.obs_names[rows])
    written = result.astype({"label": "category"})
    for column, values in zip(columns, ("label", "probability", "novelty"), strict=False):
        data.obs[column] = written[values]
    return result


# ---- the query and the reference --------------------------------------------------------


def _added_columns(self: Core, key_added: object) -> tuple[str, ...]:
    """Columns of obs to write; the model may read none of them."""
    if key_added is None:
        return ()
    if not isinstance(key_added, str) or not key_added:
        raise ArgumentTypeError(f"key_added must be a name, not {brief(key_added)}.")
    columns = (key_added, f"{key_added}_probability", f"{key_added}_novelty")
    for column in columns:
        if column in self.schema.declarations.columns:
            raise OptionError(
                f"key_added={brief(key_added)} would overwrite obs[{brief(column)}], which the model reads; "
                "choose another name."
            )
    return columns


def _find_reference(self: Core, query: AnnData | None, reference: AnnData | None) -> AnnData:
    """The data that labels come from."""
    if reference is not None:
        check_anndata("reference must be", reference)
        return reference
    is_mapped = self.module.surgery is not None
    data = self._reference if is_mapped else self._adata
    if data is None or (not is_mapped and query is None):
        alternative = "" if is_mapped else ", or save the reference model with save_anndata=True"
        raise DataError(
            "There is no reference to take labels from; give its AnnData as "
            f"reference={alternative}."
        )
    return data


def _check_known(self: Core, query: AnnData) -> None:
    """Refuse categories that have to be mapped first."""
    check_anndata("query must be", query)
    extended = extend_schema(self.schema, query, labels=self.config.dispersion == "gene-label")
    pairs = [(self.schema.batches, extended.batches)]
    pairs += zip(self.schema.categories, extended.categories, strict=True)
    for known, all_categories in pairs:
        if new := all_categories[len(known) :]:
            raise DataError(
                f"The query has categories that the model does not know ({list_names(new)}); map "
                f"it first: {type(self).__name__}.load_query_data(query, model), then train()."
            )


def read_labels(adata: AnnData, key: str) -> tuple[Rows, list[str], I64]:
    """Rows of a reference with a label, names of the labels, and the code of each row's label."""
    column = obs_column(adata, "labels_key, in the reference", key, allow_missing=True)
    rows = np.flatnonzero(column.notna() & (column.astype(str) != UNKNOWN))
    if len(rows) == 0:
        raise DataError(f"obs[{brief(key)}] (labels_key) of the reference has no labels.")
    names, codes = np.unique(column.iloc[rows].astype(str), return_inverse=True)
    if len(names) > max(_MANY_LABELS, len(rows) // 2):
        raise DataError(
            f"obs[{brief(key)}] (labels_key) of the reference has {len(names):,} different values in "
            f"{len(rows):,} cells; give a column of labels that cells share."
        )
    return rows, names.tolist(), codes.astype(np.int64)


def choose_subset(labels: I64, rng: np.random.Generator) -> Rows:
    """At most 20,000 cells of the reference, at random.

    Of each label there are at least 100, or half of an even share if that is less, or all if it
    has fewer.
    """
    if len(labels) <= _MAX_CELLS:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    sizes = np.bincount(labels)
    least = min(_LEAST_PER_LABEL, _MAX_CELLS // (2 * np.count_nonzero(sizes)))
    first = [order[labels[order] == label][:least] for label in np.flatnonzero(sizes)]
    chosen = np.concatenate(first)
    rest = order[~np.isin(order, chosen)]
    return np.sort(np.concatenate([chosen, rest[: _MAX_CELLS - len(chosen)]]))


def _encode(self: Core, cells: Cells) -> LatentCells:
    """The cells in the latent space, without their expression."""
    mean, variance = encode(cells)
    return LatentCells(mean, variance, softmax=self.config.latent_distribution == "ln")


def _read_expression(self: Core, cells: Cells, rows: Rows) -> sp.csr_matrix:
    """Expression of some of the cells' source, as classifiers take it."""
    counts = cells.source.gather(rows).counts.scipy()
    return log_normalise(counts) if self.module.likelihood.counts else counts


# ---- the result -------------------------------------------------------------------------


def _make_table(
    prediction: LabelPrediction,
    names: Sequence[str],
    cells: pd.Index[str],
    min_probability: float | None,
    max_novelty: float | None,
    all_probabilities: bool,
) -> pd.DataFrame:
    """Label, probability and novelty of each cell of the query."""
    best = prediction.probability.argmax(1)
    probability = prediction.probability[np.arange(len(best)), best]
    labels = np.asarray(names, dtype=object)[best]
    unknown = np.zeros(len(best), bool)
    if min_probability is not None:
        unknown |= probability < min_probability
    if max_novelty is not None:
        unknown |= prediction.novelty > max_novelty
    labels[unknown] = UNKNOWN
    table = pd.DataFrame(
        {"label": labels, "probability": probability, "novelty": prediction.novelty}, index=cells
    )
    if all_probabilities:
        table[[f"probability_{name}" for name in names]] = prediction.probability
    predictors = ("neighbours", "genes")
    table.attrs |= {
        "exponents": dict(zip(predictors, prediction.exponents, strict=False)),
        "held_out_cells": prediction.held_out,
        "held_out_by_batch": prediction.by_batch,
        "n_unknown": int(unknown.sum()),
    }
    return table


def _warn_about_novelty(result: pd.DataFrame) -> None:
    if result["novelty"].isna().any():
        warn(
            "The reference has too few labelled cells to measure novelty, which is NaN; "
            "max_novelty makes no cell Unknown."
        )


def _warn_about_shared_cells(
    query_cells: LatentCells, query: AnnData, reference_cells: LatentCells, names: pd.Index[str]
) -> None:
    """Warn if cells have the name and the place of a reference cell: they are the same."""
    if not names.is_unique:
        return
    positions = names.get_indexer(query.obs_names)
    shared = np.flatnonzero(positions >= 0)
    is_same = np.isclose(
        query_cells.mean[shared], reference_cells.mean[positions[shared]], atol=1e-4
    )
    n_same = int(is_same.all(axis=1).sum())
    if n_same:
        warn(
            f"{n_same:,} cells of the query are also in the reference and are their own neighbours, "
            "so their probabilities are too high; remove them from one of the two."
        )
