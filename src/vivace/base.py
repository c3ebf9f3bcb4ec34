"""What every model class shares: set up, train, ask, save.

Each method is a few lines that call the rooms below.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from vivace import posterior, store
from vivace.arguments import (
    Indices,
    accelerator_here,
    folder,
    number,
    numbers,
    positive,
    refuse_unknown,
    row_numbers,
)
from vivace.config import ModelConfig, settings
from vivace.data import MemorySource, Rows, check_counts, count_matrix, read_cells, split_rows
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    ModelFileError,
    NotTrainedError,
    OptionError,
    ShapeError,
    VivaceWarning,
)
from vivace.nn import VAE, Dimensions
from vivace.seeds import SeedStream, check_seed
from vivace.setup import Declarations, Schema, read_declarations, write_declarations
from vivace.store.folder import damaged_model, read_adata
from vivace.train import (
    Listeners,
    TrainOptions,
    TrainState,
    fit,
    max_steps_of,
    patience_of,
    recipe_of,
)
from vivace.train.initialise import set_library_prior

ARGUMENTS = tuple(  # what the constructors take, under the names that users give
    "batch_embedding_kwargs" if name == "batch_embedding_dim" else name
    for name in ModelConfig.names()
    if name != "linear_decoder"
)
Format = Literal["vivace", "scvi-tools"]


class Model(ABC):
    """A count model with a latent space; :class:`~vivace.SCVI` and its kin say which.

    The final classes differ in their constructor, which turns its arguments into
    a :class:`~vivace.config.ModelConfig` and calls :meth:`_start`.
    """

    @abstractmethod
    def __init__(self, adata: AnnData) -> None: ...

    def _start(self, adata: AnnData, config: ModelConfig) -> None:
        """Make an untrained model of ``adata``."""
        if not isinstance(adata, AnnData):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes an AnnData, not {type(adata).__name__}; read one with "
                "anndata.read_h5ad."
            )
        schema = Schema.from_anndata(adata, read_declarations(adata))
        _check_options(config, schema.declarations)
        seeds = SeedStream(check_seed(settings.seed))
        self._build(config, schema, seeds, weights_seed=seeds.take())
        self._attach(adata)
        if self.module.library_encoder is not None:
            set_library_prior(self.module, self._own_source())

    def _build(
        self, config: ModelConfig, schema: Schema, seeds: SeedStream, weights_seed: int
    ) -> None:
        self.config = config
        self.schema = schema
        self._seeds = seeds
        self._state = TrainState()
        self._unused: dict[str, Tensor] = {}  # kept for scvi-tools' format
        self._adata: AnnData | None = None
        self._source: MemorySource | None = None
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.default_generator.manual_seed(weights_seed)
            self.module = VAE(config, _dimensions(schema))
        self.module.eval()

    def _attach(self, adata: AnnData) -> None:
        self._source = self._read(adata)
        self._adata = adata

    def _read(self, adata: AnnData) -> MemorySource:
        normal = self.config.gene_likelihood == "normal"
        source = read_cells(adata, self.schema, allow_negative=normal)
        if normal and self.config.log_variational and source.counts.data.min(initial=0) < 0:
            raise OptionError(
                "log_variational=True takes the logarithm of the values, but some are negative; "
                "use log_variational=False."
            )
        return source

    # ---- set up ---------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
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
        """Declare where the counts and the covariates are, and check them all.

        Writes the declarations, names only, into ``adata.uns["vivace"]`` and
        changes nothing else.

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
            Columns of obs with further covariates.
        allow_non_integer
            Take counts that are not integers (for example after ambient removal), and
            negative values for ``gene_likelihood="normal"``.

        Raises
        ------
        DataError
            With the column, cell or gene concerned, and the fix.

        Warns
        -----
        VivaceWarning
            If a covariate has one value, and so no effect.
        """
        if not isinstance(adata, AnnData):
            raise ArgumentTypeError(f"setup_anndata takes an AnnData, not {type(adata).__name__}.")
        declarations = Declarations(
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=_keys(categorical_covariate_keys),
            continuous_covariate_keys=_keys(continuous_covariate_keys),
            allow_non_integer=allow_non_integer,
        )
        schema = Schema.from_anndata(adata, declarations)
        # whether the likelihood is one of counts is known when a model is made
        counts = count_matrix(adata, layer)
        check_counts(adata, counts, schema, allow_negative=allow_non_integer)
        for sentence in schema.idle_columns(schema.columns(adata)):
            warnings.warn(sentence, VivaceWarning, stacklevel=2)
        write_declarations(adata, declarations)

    def view_anndata_setup(self) -> pd.DataFrame:
        """What was declared: meaning, place in the AnnData, and content."""
        return pd.DataFrame(self.schema.summary(), columns=["meaning", "where", "content"])

    # ---- training -------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        *,
        recipe: str = "fast",
        train_size: float = 0.9,
        validation_size: float | None = None,
        batch_size: int | None = None,
        max_steps: int | None = None,
        early_stopping: bool | None = None,
        early_stopping_monitor: str = "elbo_validation",
        early_stopping_patience: int | None = None,
        early_stopping_min_delta: float = 0.0,
        early_stopping_mode: str = "min",
        early_stopping_warmup_epochs: int = 0,
        seed: int | None = None,
        accelerator: str = "auto",
        plan_kwargs: Mapping[str, Any] | None = None,
        callbacks: Any = (),
        logger: Any = None,
        progress: bool = True,
        **unknown: Any,
    ) -> None:
        """Fit the model.

        With the "fast" recipe the weights that stay are those of the epoch with
        the best validation ELBO at KL weight 1.  The last line of
        :attr:`summary` says whether training was long enough.

        Called again, it goes on with the same split and appends to the history.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; None lets the recipe choose from
            their number.
        recipe
            "fast", or "scvi-tools" for the optimiser and schedule of
            scvi-tools 1.4.2.
        train_size, validation_size
            Shares of the cells; None for the second takes all that are left.
        batch_size
            Cells of a minibatch; None for 128, or, with "fast" and fewer than 4,000
            training cells, 64.  The recipe's number of epochs does not depend on it.
        max_steps
            Minibatches at most; None, or -1, for no such limit.
        early_stopping
            Stop where ``early_stopping_monitor``, a column of the history, has
            not improved by more than ``early_stopping_min_delta`` for
            ``early_stopping_patience`` epochs (None: 8, with "scvi-tools" 45).
            "fast" then holds its learning rate up to such a plateau, and lets it
            fall to zero over a quarter as many steps, or over the last quarter of
            the budget; give ``max_epochs`` for a larger budget.  Epochs before the
            full KL weight, and ``early_stopping_warmup_epochs``, are not judged.
            None is False.
        early_stopping_mode
            "min" where the monitored number should fall, else "max".
        seed
            Of the split, the order of cells and the noise; None takes the
            model's next.
        accelerator
            "auto", "cpu", "cuda", "mps": where to train, by Lightning Fabric.
        plan_kwargs
            Numbers of the recipe to replace: lr, eps, weight_decay,
            n_epochs_kl_warmup, n_steps_kl_warmup, min_kl_weight, max_kl_weight;
            reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min,
            lr_scheduler_metric.
        callbacks
            Objects with methods of :class:`vivace.train.Callback`.
        logger
            A logger of Lightning Fabric (CSVLogger, TensorBoardLogger), or several:
            each epoch's row of the history is logged.
        progress
            Whether to show a progress bar.

        Raises
        ------
        OptionError, ArgumentTypeError
            If an argument is not one of the above.
        TrainingError
            If the loss stops being finite.
        """
        refuse_unknown("train", unknown, _TRAIN_ARGUMENTS)
        plan = recipe_of(recipe, plan_kwargs)
        positive("max_epochs", max_epochs)
        patience = patience_of(
            plan,
            early_stopping,
            early_stopping_monitor,
            early_stopping_patience,
            early_stopping_min_delta,
            early_stopping_mode,
            early_stopping_warmup_epochs,
        )
        number("train_size", train_size)
        number("validation_size", validation_size)
        accelerator_here(accelerator)
        source = self._own_source()
        listeners = Listeners(self, callbacks, logger)
        steps = max_steps_of(max_steps)
        positive("batch_size", batch_size)
        options_seed = self._seeds.take(seed)
        if len(self._state.train_rows) == 0 or not self.is_trained:
            split = split_rows(
                source.n_cells, train_size, validation_size, np.random.default_rng(options_seed)
            )
            self._state.train_rows, self._state.validation_rows = split
        begun = time.perf_counter() - self._state.summary.get("seconds", 0.0)
        names = None if self._adata is None else _digest(self._adata)

        def summarise(verdict: str) -> None:
            """After every epoch, so that an interrupted model can be asked and saved."""
            seconds = time.perf_counter() - begun
            self._summarise(recipe, source.n_cells, names, seconds, verdict)

        options = TrainOptions(
            recipe=plan,
            epochs=max_epochs,
            max_steps=steps,
            batch_size=batch_size,
            patience=patience,
            seed=options_seed,
            accelerator=accelerator,
            listeners=listeners,
            progress=progress,
            summarise=summarise,
        )
        fit(self.module, source, self._state, options)

    def _summarise(
        self, recipe: str, n_cells: int, names: str | None, seconds: float, verdict: str
    ) -> None:
        state = self._state
        state.summary = {
            "recipe": recipe,
            "epochs": len(state.history),
            "cells": n_cells,
            "cell_names": names,
            "train_cells": len(state.train_rows),
            "validation_cells": len(state.validation_rows),
            "seconds": round(seconds, 3),
            "kl_weight": state.history[-1]["kl_weight"],
            "verdict": verdict,
        }

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, with scvi-tools' keys as columns.

        ``train_loss``, ``elbo_train``, ``reconstruction_loss_train``,
        ``kl_local_train`` and the same for validation, in nats a cell, then
        ``lr``, ``kl_weight`` and ``seconds``.  "elbo" is the negative ELBO
        there: lower is better.
        """
        return self._state.frame()

    @property
    def is_trained(self) -> bool:
        """Whether ``train`` has run."""
        return self._state.trained

    @property
    def train_indices(self) -> Rows:
        """Rows of the data that the model is trained on."""
        return self._state.train_rows

    @property
    def validation_indices(self) -> Rows:
        """Rows that are watched during training."""
        return self._state.validation_rows

    @property
    def test_indices(self) -> Rows:
        """Rows that training never looks at."""
        used = np.concatenate([self.train_indices, self.validation_indices])
        return np.setdiff1d(np.arange(self._own_source().n_cells), used)

    # ---- questions ------------------------------------------------------

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int | None = None,
        return_dist: bool = False,
        *,
        seed: int | None = None,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latent representation of cells.

        Parameters
        ----------
        adata
            Cells to encode, aligned by gene name; None for the model's own.
        indices
            Rows, in any order and with repeats, or a boolean mask; None for all.
        give_mean
            The mean of z; False gives one draw.
        mc_samples
            Draws behind the mean of a logistic-normal latent, which has no closed form.
        batch_size
            Cells at a time.
        return_dist
            Give (mean, variance) of q(z|x) instead, before a logistic-normal's softmax.
        seed
            Of the draw; None takes the model's next.

        Returns
        -------
        Array, float32, shape (n, k), or a pair of them.
        """
        positive("mc_samples", mc_samples)
        source, rows = self._cells(adata, indices)
        if self.config.latent_distribution == "ln" and give_mean and not return_dist:
            return posterior.latent_mean(
                self.module, source, rows, _size(batch_size), mc_samples, self._seeds.take(seed)
            )
        draw = None if give_mean or return_dist else self._seeds.take(seed)
        place, variance = posterior.latent(self.module, source, rows, _size(batch_size), draw)
        return (place, variance) if return_dist else place

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        batch_size: int | None = None,
        *,
        return_mean: bool = True,
        n_samples: int = 1,
        seed: int | None = None,
    ) -> float | NDArray[np.float64]:
        """Evidence lower bound, nats; higher is better.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        return_mean
            The mean over cells; False gives one value a cell, shape (n,).
        n_samples
            Draws of z a cell.
        seed
            Of the draws; None takes the model's next.
        """
        positive("n_samples", n_samples)
        values = self._by_cell(posterior.elbo, adata, indices, batch_size, n_samples, seed)
        return _mean(values) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        batch_size: int | None = None,
        *,
        return_mean: bool = True,
        n_samples: int = 1,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Reconstruction error, -E[log p(x|z)], nats; lower is better.

        Takes what :meth:`get_elbo` takes.

        Returns
        -------
        Dict with one entry, ``"reconstruction_loss"``: the mean over cells, or
        one value a cell with ``return_mean=False``.
        """
        positive("n_samples", n_samples)
        values = self._by_cell(
            posterior.reconstruction, adata, indices, batch_size, n_samples, seed
        )
        return {"reconstruction_loss": _mean(values) if return_mean else values}

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        n_mc_samples_per_pass: int = 1,
        *,
        seed: int | None = None,
    ) -> float | NDArray[np.float64]:
        """Marginal log-likelihood, log p(x), nats, by importance sampling; higher is better.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        n_mc_samples
            Draws a cell; the estimate rises with their number to the exact value.
        return_mean
            The mean over cells; False gives one value a cell, shape (n,).
        n_mc_samples_per_pass
            As in scvi-tools; memory does not depend on the draws, so it changes nothing.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        A number, or an array, float64, shape (n,).

        Raises
        ------
        OptionError, ArgumentTypeError
            If a number of draws is not an integer of at least 1.

        Notes
        -----
        Source: Burda et al. 2016, arXiv:1509.00519.
        """
        positive("n_mc_samples", n_mc_samples)
        positive("n_mc_samples_per_pass", n_mc_samples_per_pass)
        values = self._by_cell(
            posterior.marginal_ll, adata, indices, batch_size, n_mc_samples, seed
        )
        return _mean(values) if return_mean else values

    def decode(
        self,
        z: NDArray[Any] | Tensor,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        transform_batch: str | float | None = None,
        library_size: float | NDArray[Any] | Tensor | None = None,
    ) -> posterior.Observation:
        """The distribution of observations at points of the latent space.

        Parameters
        ----------
        z
            Points, shape (n, k); of the simplex for a logistic-normal latent.
        adata, indices
            The n cells whose covariates are used, as in
            :meth:`get_latent_representation`.
        transform_batch
            A category of the batch column, in place of the cells' own.
        library_size
            Molecules, one number or one a cell; None for the observed library, the
            size factor, or the exponential of the mean of q(l|x).

        Returns
        -------
        A distribution of :mod:`vivace.distributions`, n x g, with ``log_prob``,
        ``sample``, ``mu`` (or ``rate``), ``scale``, and ``theta`` and ``zi_logits``
        where the likelihood has them.  Dense: n x g numbers of each.

        Raises
        ------
        ShapeError
            If ``z`` is not of shape (n, k), or ``library_size`` not of length n.
        DataError
            If ``transform_batch`` is no category of the batch.
        """
        source, rows = self._cells(adata, indices)
        point_nk = numbers("z", z)
        if tuple(point_nk.shape) != (len(rows), self.config.n_latent):
            raise ShapeError(
                f"z has shape {tuple(point_nk.shape)}, but {len(rows)} cells and "
                f"{self.config.n_latent} latent dimensions need ({len(rows)}, "
                f"{self.config.n_latent}); choose the cells with indices."
            )
        library_n = None
        if library_size is not None:
            library_n = numbers("library_size", library_size)
            if library_n.ndim > 1 or len(library_n.reshape(-1)) not in (1, len(rows)):
                raise ShapeError(
                    f"library_size has shape {tuple(library_n.shape)}; give one number, or one "
                    f"for each of the {len(rows)} cells."
                )
            if not (library_n > 0).all():
                raise OptionError("library_size must be above 0; leave it None for the observed.")
            library_n = library_n.expand(len(rows))
        code = None if transform_batch is None else self.schema.batch_code(transform_batch)
        return posterior.decode(self.module, point_nk, source, rows, code, library_n)

    # ---- files ----------------------------------------------------------

    def save(
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        save_anndata: bool = False,
        format: Format = "vivace",
    ) -> None:
        """Write the model as a folder, whole or not at all.

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Replace a model folder that is there.
        save_anndata
            Keep the data in the folder too, as ``adata.h5ad``.
        format
            "vivace", or "scvi-tools" for a folder that scvi-tools 1.4.2 loads; it
            holds no history.

        Raises
        ------
        ModelFileError
            If the folder exists, or is something else than a model.
        OptionError
            If scvi-tools' format has no words for an option of the model.
        """
        path = folder(dir_path)
        if format not in get_args(Format):
            listed = ", ".join(map(repr, get_args(Format)))
            raise OptionError(f"format must be one of {listed}, not {format!r}.")
        state = self._state
        sections = {
            "class": type(self).__name__,
            "config": self.config.as_dict(),
            "schema": self.schema.as_dict(),
            "training": {
                "summary": state.summary,
                "train_rows": state.train_rows.tolist(),
                "validation_rows": state.validation_rows.tolist(),
            },
            "seed": {"root": self._seeds.root, "used": self._seeds.used},
        }
        adata = self._own_adata() if save_anndata else None
        weights = dict(self.module.state_dict()) | self._unused
        contents = store.StoredModel(weights, sections, state.frame())
        if format == "scvi-tools":
            store.write_scvi_tools(path, contents, self.module.dims, adata, overwrite)
        else:
            store.write_folder(path, contents, adata, overwrite)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:
        """Read a model that :meth:`save` wrote, or scvi-tools; nothing in it is executed.

        Parameters
        ----------
        dir_path
            The folder; one with a ``model.pt`` is read as scvi-tools' (1.4.2 is
            tried; its history is not read).
        adata
            Data to go on with, checked and aligned by the model's schema.  None
            takes those saved with the model, if any; without data the model
            answers about any AnnData that is passed to its methods.  Data with
            other cells (by name and order) than the model was trained on get a new
            split when ``train`` is called.

        Raises
        ------
        ModelFileError
            If the folder is missing, damaged or of another format.
        """
        path = folder(dir_path)
        return cls._restore(path, store.read_model(path), adata)

    @classmethod
    def _restore(cls, path: Path, stored: store.StoredModel, adata: AnnData | None) -> Self:
        """The model whose parts were read from ``path``."""
        parts = stored.sections
        if parts["class"] != cls.__name__:
            raise ModelFileError(
                f"{path} holds a {parts['class']}, not a {cls.__name__}; load it with "
                f"{parts['class']}.load, or vivace.model.load, which takes any."
            )
        model = cls.__new__(cls)
        try:
            seeds = SeedStream(check_seed(parts["seed"]["root"]), check_seed(parts["seed"]["used"]))
            config = ModelConfig(**parts["config"])
            model._build(config, Schema.from_dict(parts["schema"]), seeds, weights_seed=0)
            own = {k: v for k, v in stored.weights.items() if not k.startswith(store.UNUSED)}
            model.module.load_state_dict(own)
            model._unused = {k: v for k, v in stored.weights.items() if k not in own}
            model._state = TrainState(
                train_rows=np.asarray(parts["training"]["train_rows"], np.int64),
                validation_rows=np.asarray(parts["training"]["validation_rows"], np.int64),
                history=stored.history.to_dict("records"),
                summary=parts["training"]["summary"],
            )
            _check_training(model._state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged_model(path, error) from error
        data = read_adata(path) if adata is None else adata
        if data is not None:
            model._attach(data)
            if not _same_cells(data, model._state.summary):
                model._state.train_rows = model._state.validation_rows = np.zeros(0, np.int64)
        return model

    # ---- the rest -------------------------------------------------------

    @property
    def adata(self) -> AnnData | None:
        """The model's own data; None on a model loaded without."""
        return self._adata

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.device

    def to_device(self, device: str | torch.device) -> None:
        """Move the weights to ``device``, for example "cpu" or "cuda:0"."""
        self.module.to(device)

    @property
    def summary(self) -> str:
        """One paragraph on options, data and training."""
        c, s = self.config, self.schema
        lines = [
            f"{type(self).__name__}: {c.gene_likelihood} likelihood, {c.n_latent} latent dimensions, "
            f"{c.n_layers} layer{'s' if c.n_layers > 1 else ''} of {c.n_hidden}",
            f"data: {'none attached' if self._source is None else f'{self._source.n_cells:,} cells'}"
            f" x {len(s.genes):,} genes"
            + "".join(f"; {m} {w} ({what})" for m, w, what in s.summary()[1:]),
        ]
        if self.is_trained and not self._state.history:
            lines.append("trained by scvi-tools, whose history is not read")
        elif self.is_trained:
            t, last = self._state.summary, self._state.history[-1]
            lines.append(
                f"trained: {t['epochs']} epochs on {t['train_cells']:,} cells in {t['seconds']:.1f} s "
                f"(recipe {t['recipe']!r}, final KL weight {last['kl_weight']:.2g}), negative ELBO "
                f"{last['elbo_train']:.1f} train"
                + ("" if np.isnan(held := last["elbo_validation"]) else f", {held:.1f} validation")
            )
            if "verdict" in t:  # models saved by the first release have none
                lines.append(f"verdict: {t['verdict']}")
        else:
            lines.append("not trained: call train()")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary

    def _own_source(self) -> MemorySource:
        if self._source is None:
            raise DataError(
                "This model was loaded without data; pass adata= to load or to the method."
            )
        self._source.check_unchanged()
        return self._source

    def _own_adata(self) -> AnnData:
        self._own_source()
        assert self._adata is not None
        return self._adata

    def _cells(self, adata: AnnData | None, indices: Indices | None) -> tuple[MemorySource, Rows]:
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call train() first.")
        source = self._own_source() if adata is None else self._read(adata)
        return source, row_numbers(indices, source.n_cells)

    def _by_cell(
        self,
        question: Callable[..., NDArray[np.float64]],
        adata: AnnData | None,
        indices: Indices | None,
        batch_size: int | None,
        n_samples: int,
        seed: int | None,
    ) -> NDArray[np.float64]:
        """What ``n_samples`` draws say of each cell, shape (n,)."""
        source, rows = self._cells(adata, indices)
        size = _size(batch_size)
        return question(self.module, source, rows, size, n_samples, self._seeds.take(seed))


_TRAIN_ARGUMENTS = (
    "max_epochs",
    "recipe",
    "train_size",
    "validation_size",
    "batch_size",
    "max_steps",
    "early_stopping",
    "early_stopping_monitor",
    "early_stopping_patience",
    "early_stopping_min_delta",
    "early_stopping_mode",
    "early_stopping_warmup_epochs",
    "seed",
    "accelerator",
    "plan_kwargs",
    "callbacks",
    "logger",
    "progress",
)


def _check_options(config: ModelConfig, declared: Declarations) -> None:
    """Refuse options that need a column which was not declared."""
    for option, value, key in (
        ("dispersion", "gene-batch", "batch_key"),
        ("dispersion", "gene-label", "labels_key"),
        ("batch_representation", "embedding", "batch_key"),
    ):
        if getattr(config, option) == value and getattr(declared, key) is None:
            raise OptionError(
                f"{option}={value!r} needs a {key}; declare it with setup_anndata(adata, "
                f"{key}=...), or leave {option} at its default."
            )


def embedding_dim(given: object) -> int:
    """The dimensions in ``batch_embedding_kwargs``; 5 where it is None, as in scvi-tools."""
    if given is None:
        return ModelConfig.batch_embedding_dim
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(
            f"batch_embedding_kwargs must be a dict such as {{'embedding_dim': 5}}, not {given!r}."
        )
    unknown = {name: value for name, value in given.items() if name != "embedding_dim"}
    refuse_unknown("batch_embedding_kwargs", unknown, ["embedding_dim"])
    return given.get("embedding_dim", ModelConfig.batch_embedding_dim)  # type: ignore[no-any-return]


def _dimensions(schema: Schema) -> Dimensions:
    return Dimensions(
        n_genes=len(schema.genes),
        n_batches=len(schema.batches),
        n_categories=tuple(len(c) for c in schema.categories),
        n_continuous=schema.n_continuous,
        size_factor=schema.declarations.size_factor_key is not None,
        n_labels=len(schema.labels),
    )


def _keys(keys: Sequence[str] | None) -> tuple[str, ...]:
    if keys is None:
        return ()
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        return keys  # type: ignore[return-value]  # Declarations refuses it
    return tuple(keys)


def _mean(values: NDArray[np.float64]) -> float:
    if len(values) == 0:
        raise OptionError("There are no cells to average over; indices must name at least one.")
    return float(values.mean())


def _check_training(state: TrainState) -> None:
    """Refuse a history or a split that does not fit the summary it was saved with."""
    epochs = state.summary.get("epochs", 0)
    if len(state.history) != epochs:
        raise ValueError(f"history.csv has {len(state.history)} epochs of {epochs}")
    if not state.trained:  # a split without an epoch, which is drawn again
        state.train_rows, state.validation_rows = np.zeros((2, 0), np.int64)
    used = np.concatenate([state.train_rows, state.validation_rows])
    if used.min(initial=0) < 0 or used.max(initial=-1) >= state.summary.get("cells", 0):
        raise ValueError("the split names cells that the data did not have")


def _size(batch_size: int | None) -> int:
    size = settings.batch_size if batch_size is None else batch_size
    positive("batch_size", size)
    return size


def _same_cells(adata: AnnData, summary: Mapping[str, Any]) -> bool:
    """Whether the model was trained on these; scvi-tools keeps only their number."""
    if "scvi_tools" in summary and summary["cell_names"] is None:
        return bool(adata.n_obs == summary["cells"])
    return _digest(adata) == summary.get("cell_names")


def _digest(adata: AnnData) -> str:
    """What tells these cells, in this order, from others."""
    return hashlib.sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()
