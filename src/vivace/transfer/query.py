"""``load_query_data``: creates the model of a query as a copy of the reference's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pandas as pd
from anndata import AnnData

from vivace.config import settings
from vivace.core import Core, network_dimensions
from vivace.data.checks import Door
from vivace.data.declare import refuse_without_counts
from vivace.data.doubts import find_missing_texts
from vivace.data.schema import Schema, allows_fractions
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    NotTrainedError,
    OptionError,
    brief,
    list_names,
    warn,
)
from vivace.nn import Surgery, freeze_network, grow_weights, trained_parts, trains_encoder
from vivace.seeds import SeedStream, check_seed
from vivace.split import hash_names
from vivace.store.saving import load
from vivace.transfer.categories import extend_schema
from vivace.validate import check_anndata, checked, folder_path

M = TypeVar("M", bound=Core)


@checked()
def load_query_data(
    cls: type[M],
    adata: AnnData,
    reference_model: M | str | Path,
    *,
    inplace_subset_query_vars: bool = False,
    unfrozen: bool = False,
    freeze_dropout: bool = False,
    freeze_expression: bool = True,
    freeze_decoder_first_layer: bool = True,
    freeze_batchnorm_encoder: bool = True,
    freeze_batchnorm_decoder: bool = False,
    transfer_batch: bool = True,
    allow_non_integer: bool = False,
) -> M:
    """Make the model of a query from that of a reference.

    New batches, and new categories of the categorical covariates, get weights of their own,
    which :meth:`train` then learns. With the default flags the latent space of the reference
    stays as it is, and the query is mapped into it. ``docs/transfer.md`` has a table of what is
    trained with each flag.

    Parameters
    ----------
    adata
        The query: raw counts of the reference's genes (see :meth:`prepare_query_anndata`)
        and the columns that the reference was set up with, except its labels.
    reference_model
        A trained model of this class, or its folder, which scvi-tools may have written.
    inplace_subset_query_vars
        Keep only the reference's genes in ``adata``, in the reference's order.
    unfrozen
        Train everything; the other flags have no effect.
    freeze_dropout
        Train without dropout.
    freeze_expression
        False trains the first layer of the encoder, including the weights of genes.
    freeze_decoder_first_layer
        False trains the first layer of the decoder.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        True keeps the weights of batch norm and uses its running statistics; False trains it.
    transfer_batch
        False refuses batches that the reference does not have.
    allow_non_integer
        Accept counts that are not integers, as in :meth:`setup_anndata`. They are accepted
        anyway if the reference was set up so, or :meth:`prepare_query_anndata` was told.

    Raises
    ------
    DataError
        If genes or a column are missing, or a category may be one of the reference, such as True
        for 1.
    OptionError
        If the reference has neither a batch nor categorical covariates.
    ModelFileError
        If the folder is missing or damaged.

    Warns
    -----
    VivaceWarning
        If training cannot move cells, because the encoder does not see what is new, or if a new
        category reads like a missing value ("NA").

    Notes
    -----
    Source: Lotfollahi et al. 2022 (scArches), doi:10.1038/s41587-021-01001-7.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()
    >>> adata.obs["lane"] = ["a", "b"] * (adata.n_obs // 2)
    >>> reference, query = adata[:2000].copy(), adata[2000:].copy()
    >>> query.obs["lane"] = "c"
    >>> vivace.SCVI.setup_anndata(reference, batch_key="lane")
    >>> model = vivace.SCVI(reference, preset="mapping")
    >>> model.train(max_epochs=2, progress=False)
    >>> mapped = vivace.SCVI.load_query_data(query, model)
    >>> mapped.train(max_epochs=2, progress=False)
    >>> mapped.get_latent_representation().shape
    (638, 10)
    """
    flags = {
        "unfrozen": unfrozen,
        "freeze_dropout": freeze_dropout,
        "freeze_expression": freeze_expression,
        "freeze_decoder_first_layer": freeze_decoder_first_layer,
        "freeze_batchnorm_encoder": freeze_batchnorm_encoder,
        "freeze_batchnorm_decoder": freeze_batchnorm_decoder,
    }
    check_anndata("load_query_data takes", adata)
    refuse_without_counts(adata)
    reference = _read_reference(cls, reference_model)
    reads_labels = reference.config.dispersion == "gene-label"
    schema = extend_schema(reference.schema, adata, labels=reads_labels)
    if allow_non_integer or allows_fractions(adata):
        schema = schema.with_fractions()
    _check_query(reference, adata, schema, unfrozen, transfer_batch)

    # A network with one more row for each new category, and the reference's weights.
    known = network_dimensions(reference.schema)
    surgery = Surgery(known.n_batches, known.n_categories, known.n_labels, **flags)
    config = reference.config
    if freeze_dropout and not unfrozen:
        config = replace(config, dropout_rate=0.0)
    seeds = SeedStream(check_seed(settings.seed, "settings.seed"))
    model = cls.__new__(cls)
    model._build(config, schema, seeds, weights_seed=seeds.take())
    model.module.to(reference.device)
    model._attach(adata, Door.QUERY, library_prior=True)
    weights = grow_weights(reference.module.state_dict(), model.module, surgery)
    model.module.load_state_dict(weights)
    freeze_network(model.module, surgery)

    # What the model remembers of the reference.
    if surgery.keeps_encoder:
        model._origins = (*reference._origins, reference._fingerprint())
    is_mapped = reference.module.surgery is not None
    model._reference = reference._reference if is_mapped else reference.adata
    if not trained_parts(model.module):  # a model with nothing to train counts as trained
        model._state.summary = {
            "epochs": 0,
            "cells": model._own_source().n_cells,
            "cell_names": hash_names(adata),
        }
    for sentence in find_missing_texts(schema, schema.columns(adata), reference.schema):
        warn(sentence)
    _warn_if_no_cell_moves(model, reference)
    if inplace_subset_query_vars:
        adata._inplace_subset_var(list(schema.genes))
        model._attach(adata)
    return model


def _read_reference(cls: type[M], value: object) -> M:
    """The reference, which must be a trained model of this class."""
    if isinstance(value, str | Path):
        reference = load(cls, folder_path(value, "reference_model"))
    elif isinstance(value, cls):
        reference = value
    else:
        raise ArgumentTypeError(
            f"reference_model must be a trained {cls.__name__} or the path of its folder, not "
            f"{type(value).__name__}."
        )
    if not reference.is_trained:
        raise NotTrainedError("The reference model has not been trained; call train() first.")
    return reference


def _check_query(
    reference: Core, adata: AnnData, schema: Schema, unfrozen: bool, transfer_batch: bool
) -> None:
    """Refuse a query that the reference cannot take, before anything is made."""
    d = schema.declarations
    if d.batch_key is None and not d.categorical_covariate_keys and not unfrozen:
        raise OptionError(
            "The reference model has no batch and no categorical covariates, and training has "
            "nothing to learn about a query; pass adata=query to the methods of the reference "
            "instead, or train a reference with a batch_key."
        )
    new = schema.batches[len(reference.schema.batches) :]
    if new and not transfer_batch:
        raise DataError(
            f"The query has batches that the reference lacks ({list_names(new)}), "
            "which transfer_batch=False forbids; rename them, or leave transfer_batch=True."
        )
    names = pd.Index(adata.var_names.astype(str))
    missing = [g for g in schema.genes if g not in names]
    if missing:
        raise DataError(
            f"The query lacks {len(missing):,} of the reference's {len(schema.genes):,} genes "
            f"(first: {brief(missing[0])}); align its var_names with "
            f"{type(reference).__name__}.prepare_query_anndata(query, model)."
        )


def _warn_if_no_cell_moves(model: Core, reference: Core) -> None:
    """Warn if training cannot move cells although the query has new categories."""
    schema, known = model.schema, reference.schema
    if (schema.batches, schema.categories) == (known.batches, known.categories):
        return
    if not trains_encoder(model.module):
        warn(
            "The encoder of the reference does not see batch or covariates, so training moves no "
            "cell in the latent space and only changes how cells are decoded; for a query that "
            f"moves, train the reference as {type(model).__name__}(adata, preset='mapping')."
        )
