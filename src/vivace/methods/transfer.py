"""Queries mapped onto a reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from vivace import posterior, transfer
from vivace.cells import Cells
from vivace.config import settings
from vivace.data import hash_cell_names
from vivace.errors import ArgumentTypeError, DataError, NotTrainedError, OptionError, VivaceWarning
from vivace.methods.base import dimensions, refuse_minified
from vivace.methods.differential import Differing
from vivace.nn import Surgery, grown, operate, trained_parts
from vivace.seeds import SeedStream, check_seed
from vivace.store import read_genes
from vivace.train.initialise import set_library_prior
from vivace.validate import refuse_unknown, true_or_false


class Model(Differing):
    """A count model with a latent space; :class:`~vivace.SCVI` and its kin say which."""

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: Self | str | Path,
        *,
        inplace_subset_query_vars: bool = False,
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        transfer_batch: bool = True,
        **unknown: Any,
    ) -> Self:
        """A model of a query, which starts as that of a reference and mostly stays so.

        New batches, and new categories of the categorical covariates, get weights of their
        own, which :meth:`train` then learns.  With the default flags the latent space of the
        reference stays as it is, and the query is moved into it.
        ``docs/transfer.md`` has the table of what is trained under each flag.

        Parameters
        ----------
        adata
            The query: raw counts of the reference's genes (see :meth:`prepare_query_anndata`)
            and the columns that the reference was set up with, but for its labels.
        reference_model
            A trained model of this class, its folder, or one that scvi-tools saved.
        inplace_subset_query_vars
            Leave only the reference's genes in ``adata``, in their order.
        unfrozen
            Train everything, whatever the other flags say.
        freeze_dropout
            Train without dropout.
        freeze_expression
            False trains the first layer of the encoder, genes and all.
        freeze_decoder_first_layer
            False trains the first layer of the decoder.
        freeze_batchnorm_encoder, freeze_batchnorm_decoder
            Batch norm keeps its weights and uses its running statistics; False trains it.
        transfer_batch
            False refuses batches that the reference has not.

        Raises
        ------
        DataError
            If genes or a column are missing, or a category has another type than in the
            reference.
        OptionError
            If the reference has neither batch nor categorical covariates to tell the query by.
        ModelFileError
            If the folder is missing or damaged.

        Warns
        -----
        VivaceWarning
            If training will move no cell, because the encoder does not see what is new.

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
        others = {
            "inplace_subset_query_vars": inplace_subset_query_vars,
            "transfer_batch": transfer_batch,
        }
        refuse_unknown("load_query_data", unknown, (*flags, *others))
        for name, value in (flags | others).items():
            true_or_false(name, value)
        if not isinstance(adata, AnnData):
            raise ArgumentTypeError(
                f"load_query_data takes an AnnData, not {type(adata).__name__}."
            )
        refuse_minified(adata)
        reference = cls._reference_of(reference_model)
        by_label = reference.config.dispersion == "gene-label"
        schema = transfer.extended(reference.schema, adata, labels=by_label)
        reference._check_query(adata, schema, unfrozen, transfer_batch)
        known = dimensions(reference.schema)
        surgery = Surgery(known.n_batches, known.n_categories, known.n_labels, **flags)
        config = reference.config
        if freeze_dropout and not unfrozen:
            config = replace(config, dropout_rate=0.0)
        seeds = SeedStream(check_seed(settings.seed))
        model = cls.__new__(cls)
        model._build(config, schema, seeds, weights_seed=seeds.take())
        model.module.to(reference.device)
        model._attach(adata)
        if model.module.library_encoder is not None:
            set_library_prior(model.module, model._own_source())
        weights = grown(reference.module.state_dict(), model.module, surgery)
        model.module.load_state_dict(weights)
        operate(model.module, surgery)
        if surgery.keeps_encoder:
            model._origins = (*reference._origins, reference._fingerprint())
        is_mapped = reference.module.surgery is not None
        model._reference = reference._reference if is_mapped else reference.adata
        model._say_what_moves(reference)
        if inplace_subset_query_vars:
            adata._inplace_subset_var(list(schema.genes))
            model._attach(adata)
        return model

    @classmethod
    def _reference_of(cls, given: object) -> Self:
        """The reference, which must be a trained model of this class."""
        if isinstance(given, str | Path):
            reference = cls.load(given)
        elif isinstance(given, cls):
            reference = given
        else:
            raise ArgumentTypeError(
                f"reference_model must be a trained {cls.__name__} or the path of its folder, not a "
                f"{type(given).__name__}."
            )
        if not reference.is_trained:
            raise NotTrainedError("The reference model has not been trained; call train() first.")
        return reference

    def _check_query(
        self, adata: AnnData, schema: Any, unfrozen: bool, transfer_batch: bool
    ) -> None:
        """Of the reference: refuse what it cannot take, before anything is made."""
        d = schema.declarations
        if d.batch_key is None and not d.categorical_covariate_keys and not unfrozen:
            raise OptionError(
                "The reference model has no batch and no categorical covariates, so that there is "
                "nothing that training could learn about a query; ask it directly with "
                "adata=query, or declare a batch_key when the reference is trained."
            )
        new = schema.batches[len(self.schema.batches) :]
        if new and not transfer_batch:
            raise DataError(
                f"The query has batches that the reference has not ({', '.join(map(repr, new[:5]))}), "
                "and transfer_batch=False forbids them; rename them, or leave transfer_batch True."
            )
        names = pd.Index(adata.var_names.astype(str))
        missing = [g for g in schema.genes if g not in names]
        if missing:
            raise DataError(
                f"The query has not all of the reference's {len(schema.genes):,} genes: "
                f"{len(missing):,} are missing from var_names (first: {missing[0]!r}); align them with "
                f"{type(self).__name__}.prepare_query_anndata(query, model), which says what is missing."
            )

    def _say_what_moves(self, reference: Model) -> None:
        """Of the query's model: warn where training moves no cell, or has nothing to do."""
        parts = trained_parts(self.module)
        if not parts:
            self._state.summary = {
                "epochs": 0,
                "cells": self._own_source().n_cells,
                "cell_names": hash_cell_names(self._own_adata()),
            }
        mine, its = self.schema, reference.schema
        if (mine.batches, mine.categories) == (its.batches, its.categories):
            return
        names = {part.name for part in parts}
        embedded = self.module.encoder.uses_covariates and "batch_embedding.weight" in names
        if not embedded and not any(name.startswith("encoder.") for name in names):
            warnings.warn(
                "The encoder of the reference does not see batch or covariates, so that training moves "
                "no cell in the latent space, only how it is decoded; for a query that moves, train "
                f"the reference as {type(self).__name__}(adata, preset='mapping').",
                VivaceWarning,
                stacklevel=3,
            )

    def transfer_labels(
        self,
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
        options = transfer.LabelOptions(
            n_neighbors, n_samples, expression, min_probability, max_novelty, all_probabilities
        )
        columns = self._columns_added(key_added)
        known = self._labelled_data(query, reference)
        rows, names, codes = transfer.labels_of(known, labels_key)
        if query is not None:
            self._check_known(query)
        rng = np.random.default_rng(self._seeds.take(seed))
        asked = self._cells(query, None, batch_size, silent)
        told = self._cells(known, rows, batch_size, silent)
        query_cells = self._latent_cells(asked)
        batch_r = told.source.gather(rows, counts=False).batch.numpy()
        labelled = transfer.Labelled(self._latent_cells(told), codes, batch_r, len(names))
        chosen = transfer.sample_of(labelled.labels, rng)
        some = labelled.at(chosen)
        if expression and asked.source.has_counts and told.source.has_counts:
            query_cells = replace(query_cells, expression=self._log_normalised(asked, asked.rows))
            genes = self._log_normalised(told, rows[chosen])
            some = replace(some, cells=replace(some.cells, expression=genes))
        found = transfer.transfer_labels(labelled, some, query_cells, options, rng)
        data = self._data_of(query)
        result = transfer.label_table(found, names, data.obs_names, options)
        result.attrs["labels_key"] = labels_key
        names_r = known.obs_names[rows]
        self._say_what_misleads(result, query_cells, names_r, labelled.cells)
        written = result.astype({"label": "category"})
        for column, values in zip(columns, ("label", "probability", "novelty"), strict=False):
            data.obs[column] = written[values]
        return result

    def _columns_added(self, key_added: object) -> tuple[str, ...]:
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

    @staticmethod
    def _say_what_misleads(
        result: pd.DataFrame,
        query_cells: transfer.LatentCells,
        known: pd.Index[str],
        known_cells: transfer.LatentCells,
    ) -> None:
        """Warn where the answer is better than it can be, or is not there."""
        if result["novelty"].isna().any():
            warnings.warn(
                "The reference has too few labelled cells to measure novelty, which is nan; "
                "max_novelty makes no cell Unknown.",
                VivaceWarning,
                stacklevel=3,
            )
        if not known.is_unique:
            return
        at = known.get_indexer(result.index)
        both = np.flatnonzero(at >= 0)
        near = np.isclose(query_cells.mean[both], known_cells.mean[at[both]], atol=1e-4)
        n_same = int(near.all(axis=1).sum())
        if n_same:
            warnings.warn(
                f"{n_same:,} cells of the query are cells of the reference too, and their own "
                "neighbours: their probabilities are too high; leave them out of one of the two.",
                VivaceWarning,
                stacklevel=3,
            )

    def _labelled_data(self, query: AnnData | None, reference: AnnData | None) -> AnnData:
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

    def _check_known(self, query: AnnData) -> None:
        """Refuse categories that have to be mapped first."""
        if not isinstance(query, AnnData):
            raise ArgumentTypeError(f"query must be an AnnData, not {type(query).__name__}.")
        longer = transfer.extended(
            self.schema, query, labels=self.config.dispersion == "gene-label"
        )
        both = [(self.schema.batches, longer.batches)]
        both += zip(self.schema.categories, longer.categories, strict=True)
        for mine, its in both:
            if new := its[len(mine) :]:
                raise DataError(
                    f"The query has categories that the model does not know ({', '.join(map(repr, new[:5]))}); "
                    f"map it first: {type(self).__name__}.load_query_data(query, model), then train()."
                )

    def _latent_cells(self, cells: Cells) -> transfer.LatentCells:
        """Where they are, without their genes."""
        mean, variance = posterior.latent(cells, None)
        softmax = self.config.latent_distribution == "ln"
        return transfer.LatentCells(mean, variance, softmax=softmax)

    def _log_normalised(self, cells: Cells, rows: Any) -> Any:
        """Expression of some of them, as classifiers see it."""
        counts = cells.source.gather(rows).counts.scipy()
        return transfer.log_normalised(counts) if self.module.likelihood.counts else counts

    @staticmethod
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: Model | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
        *,
        gene_key: str | None = None,
        min_overlap: float = 0.8,
        **unknown: Any,
    ) -> transfer.GeneReport | AnnData | pd.Index[str]:
        """Bring the genes of a query into the form of a reference.

        Genes are matched by name, Ensembl identifiers with or without their version;
        counts of genes with one name are added up (in X and every layer), and genes that
        are missing are padded with zeros.  ``varm`` and ``varp`` are left behind.

        Parameters
        ----------
        adata
            The query, cells x genes, of raw counts.
        reference_model
            A model, its folder, or one that scvi-tools saved.
        return_reference_var_names
            Only give the names of the reference's genes.
        inplace
            Change ``adata``; False leaves it and returns a new AnnData.
        gene_key
            Column of var with identifiers as the reference has them; None for var_names.
        min_overlap
            Least share of the reference's genes that the query must have.

        Returns
        -------
        A :class:`~vivace.transfer.GeneReport`, or the new AnnData with ``inplace=False``;
        either way the report is in ``uns["query_genes"]`` too.

        Raises
        ------
        DataError
            If fewer genes are found; the message says which column of var has them, or
            which are missing.  ``adata`` is then as it was.

        Examples
        --------
        >>> import vivace
        >>> adata = vivace.datasets.pbmc3k()[:200].copy()
        >>> vivace.SCVI.setup_anndata(adata)
        >>> model = vivace.SCVI(adata)
        >>> query = adata[:, :1800].copy()
        >>> report = vivace.SCVI.prepare_query_anndata(query, model)
        >>> report.present, query.shape
        (1800, (200, 2005))
        """
        refuse_unknown("prepare_query_anndata", unknown, _PREPARE_ARGUMENTS)
        true_or_false("return_reference_var_names", return_reference_var_names)
        true_or_false("inplace", inplace)
        if isinstance(reference_model, str | Path):
            genes, layer = read_genes(Path(reference_model))
        elif isinstance(reference_model, Model):
            schema = reference_model.schema
            genes, layer = schema.genes, schema.declarations.layer
        else:
            raise ArgumentTypeError(
                "reference_model must be a model or the path of its folder, not a "
                f"{type(reference_model).__name__}."
            )
        if return_reference_var_names:
            return pd.Index(genes)
        if not isinstance(adata, AnnData):
            raise ArgumentTypeError(
                f"prepare_query_anndata takes an AnnData, not {type(adata).__name__}."
            )
        new, report = transfer.aligned(adata, genes, gene_key, min_overlap, layer)
        new.uns["query_genes"] = report.as_dict()
        if not inplace:
            return new
        adata._init_as_actual(new)
        return report


_PREPARE_ARGUMENTS = ("return_reference_var_names", "inplace", "gene_key", "min_overlap")
