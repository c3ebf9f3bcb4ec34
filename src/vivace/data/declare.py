"""``setup_anndata``: declares where the counts and covariates are, and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from vivace.data.checks import check_counts, describe_location
from vivace.data.doubts import find_missing_texts, find_overlap, refuse_repeated_columns
from vivace.data.fingerprint import spread_places
from vivace.data.memory import count_matrix
from vivace.data.minified import minified_type
from vivace.data.schema import Declarations, Schema, write_declarations
from vivace.data.structure import check_structure
from vivace.errors import DataError, warn
from vivace.validate import check_anndata, checked

_CHECKED_CELLS = 20_000  # whose counts are checked before a model reads all


@checked()
def setup_anndata(
    cls: type[Any],
    adata: AnnData,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    *,
    allow_non_integer: bool = False,
) -> None:
    """Declare where the counts and the covariates are, and check them.

    Writes the declarations, names only, into ``adata.uns["vivace"]`` and
    changes nothing else. Counts of up to 20,000 cells are checked here; a model checks all of
    them when it reads them.

    Parameters
    ----------
    adata
        Cells x genes.
    layer
        Layer with raw counts; None for X.
    batch_key
        Column of obs with the batch of each cell.
    labels_key
        Column of obs with a label of each cell, read with ``dispersion="gene-label"``.
    size_factor_key
        Column of obs with positive size factors, used in place of the library.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of obs with further covariates: a list, or one name. Continuous ones may be in any
        unit: the model standardises them, with mean and standard deviation of its own cells.
    allow_non_integer
        Accept counts that are not integers (for example after ambient removal), and
        negative values for ``gene_likelihood="normal"``.

    Raises
    ------
    DataError
        If the counts or a column cannot be used; the message names the column, cell or
        gene, and the fix.
    OptionError
        If a column is declared as two covariates.

    Warns
    -----
    VivaceWarning
        If a covariate has a single value and therefore no effect, if a category reads like a
        missing value ("NA"), or if covariates determine each other, as donors that are nested
        in batches do.
    """
    check_anndata("setup_anndata takes", adata)
    refuse_without_counts(adata)
    declarations = Declarations(
        layer=layer,
        batch_key=batch_key,
        labels_key=labels_key,
        size_factor_key=size_factor_key,
        categorical_covariate_keys=_as_tuple(categorical_covariate_keys),
        continuous_covariate_keys=_as_tuple(continuous_covariate_keys),
        allow_non_integer=allow_non_integer,
    )
    refuse_repeated_columns(declarations)
    schema = Schema.from_anndata(adata, declarations)
    columns = schema.columns(adata)
    # negative values are refused later if the model's likelihood is for counts
    some = _sample_cells(adata, layer)
    check_counts(some, count_matrix(some, layer), schema, allow_negative=allow_non_integer)
    overlap = find_overlap(schema, columns)
    doubts = [*schema.idle_columns(), *find_missing_texts(schema, columns)]
    for sentence in doubts if overlap is None else [*doubts, overlap]:
        warn(sentence)
    write_declarations(adata, declarations)


def _sample_cells(adata: AnnData, layer: str | None) -> AnnData:
    """All cells, or some of a larger number: half of them evenly spread, half random.

    What is usually wrong, such as a layer of normalised values, shows in any cells.
    """
    if adata.n_obs <= _CHECKED_CELLS:
        return adata
    matrix: Any = adata.X if layer is None else adata.layers.get(layer)
    # SciPy follows the pointers, and in CSC the indices too
    check_structure(
        matrix, describe_location(layer), indices=getattr(matrix, "format", "") == "csc"
    )
    return adata[np.unique(spread_places(adata.n_obs, _CHECKED_CELLS))]


def refuse_without_counts(adata: AnnData) -> None:
    """Refuse data whose counts were dropped; a new model needs them."""
    kind = minified_type(adata)
    if kind is not None and not kind.endswith("with_counts"):
        raise DataError(
            "The counts of this AnnData were dropped by minify_adata, and a new model needs them; "
            "load the model that was saved with it instead."
        )


def _as_tuple(keys: Sequence[str] | None) -> tuple[str, ...]:
    return () if keys is None else tuple(keys)
