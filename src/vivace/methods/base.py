"""What a model is: set up, built, saved and loaded."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from vivace import store
from vivace.cells import Cells
from vivace.config import ModelConfig, settings
from vivace.data import (
    MemorySource,
    Minified,
    Rows,
    check_counts,
    count_matrix,
    hash_cell_names,
    minified_type,
    read_cells,
)
from vivace.data.schema import Declarations, Schema, read_declarations, write_declarations
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    ModelFileError,
    NotTrainedError,
    OptionError,
    VivaceWarning,
)
from vivace.nn import VAE, Dimensions, Surgery, operate
from vivace.seeds import SeedStream, check_seed
from vivace.state import TrainState, verdict
from vivace.store.folder import damaged_model, read_adata
from vivace.train.initialise import set_library_prior
from vivace.types import Indices
from vivace.validate import (
    folder,
    positive,
    refuse_unknown,
    row_numbers,
)

ARGUMENTS = (  # what the constructors take, under the names that users give
    "preset",
    *(
        "batch_embedding_kwargs" if name == "batch_embedding_dim" else name
        for name in ModelConfig.names()
        if name != "linear_decoder"
    ),
)
Format = Literal["vivace", "scvi-tools"]
_TELLING = 0.05  # seconds of compilation that the summary mentions


class Base(ABC):
    """A count model: its options, schema, network and data, and its files.

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
        refuse_minified(adata)
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
        self._reference: AnnData | None = None  # of a model of a query, if it is at hand
        self._origins: tuple[str, ...] = ()  # fingerprints of models whose encoder this one has
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.default_generator.manual_seed(weights_seed)
            self.module = VAE(config, dimensions(schema))
        self.module.eval()

    def _attach(self, adata: AnnData) -> None:
        self._source = self._read(adata)
        self._adata = adata

    def _read(self, adata: AnnData) -> MemorySource:
        normal = self.config.gene_likelihood == "normal"
        minified = isinstance(adata, AnnData) and minified_type(adata) is not None
        models = (self._fingerprint(), *self._origins) if minified else ()
        source = read_cells(adata, self.schema, allow_negative=normal, models=models)
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
        refuse_minified(adata)
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

    # ---- state ----------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, with scvi-tools' keys as columns.

        ``train_loss``, ``elbo_train``, ``reconstruction_loss_train``,
        ``kl_local_train`` and the same for validation, in nats a cell, then
        ``lr``, ``kl_weight``, ``seconds`` and ``compile_seconds``, in which kernels were
        compiled (once on a machine) and which ``seconds`` leaves out.  "elbo" is the
        negative ELBO there: lower is better.
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
            Keep the data in the folder too, as ``adata.h5ad``; minified data always are.
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
        if self.module.surgery is not None:
            sections["surgery"] = self.module.surgery.as_dict()
            sections["origins"] = list(self._origins)
        adata = self._own_adata() if save_anndata or self.minified_data_type else None
        weights = dict(self.module.state_dict()) | self._unused
        contents = store.StoredModel(weights, sections, state.frame())
        if format == "scvi-tools":
            if self.minified_data_type is not None:
                raise OptionError(
                    "scvi-tools' format has its own form of minified data, which is not written; "
                    "save the model from before minify_adata."
                )
            if self.module.surgery is not None and not self.module.surgery.unfrozen:
                warnings.warn(
                    "scvi-tools' format does not say what of this model of a query is frozen; once "
                    "loaded, training it would move the reference.",
                    VivaceWarning,
                    stacklevel=2,
                )
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
            if "surgery" in parts:
                operate(model.module, Surgery.from_dict(parts["surgery"]))
                model._origins = tuple(map(str, parts["origins"]))
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
    def minified_data_type(self) -> Minified | None:
        """How the model's own data were minified; None if they were not."""
        return None if self._adata is None else minified_type(self._adata)

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
            f" x {len(s.genes):,} genes{'' if self.minified_data_type is None else ', minified'}"
            + "".join(f"; {m} {w} ({what})" for m, w, what in s.summary()[1:]),
        ]
        if self.is_trained and not self._state.history:
            lines.append(
                "trained by scvi-tools, whose history is not read"
                if "scvi_tools" in self._state.summary
                else "the reference's, as it is: it knew every category of the query"
            )
        elif self.is_trained:
            t, last = self._state.summary, self._state.history[-1]
            lines.append(
                f"trained: {t['epochs']} epochs on {t['train_cells']:,} cells in {t['seconds']:.1f} s "
                f"(recipe {t['recipe']!r}, final KL weight {last['kl_weight']:.2g}), negative ELBO "
                f"{last['elbo_train']:.1f} train"
                + ("" if np.isnan(held := last["elbo_validation"]) else f", {held:.1f} validation")
            )
            if (compiled := t.get("compile_seconds", 0.0)) >= _TELLING:
                lines.append(f"compiled: kernels for this processor in {compiled:.1f} s, once")
            if (sentence := verdict(t)) is not None:  # the first release kept none
                lines.append(f"verdict: {sentence}")
        else:
            lines.append("not trained: call train()")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary

    def _seed(self, seed: int | None, drawn: bool) -> int:
        """Where draws start; what draws nothing leaves the model's stream as it is."""
        return self._seeds.take(seed) if drawn else 0 if seed is None else check_seed(seed)

    def _fingerprint(self) -> str:
        """What tells these weights from others."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

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

    def _data_of(self, adata: AnnData | None) -> AnnData:
        """The data of a question whose cells have been read: theirs, or the model's own."""
        data = self._adata if adata is None else adata
        assert data is not None
        return data

    def _cells(
        self,
        adata: AnnData | None,
        indices: Indices | None,
        batch_size: int | None,
        silent: bool = True,
        *,
        counts: bool = False,
    ) -> Cells:
        """What a question is about; ``counts`` says that it cannot do without them."""
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call train() first.")
        source = self._own_source() if adata is None else self._read(adata)
        if counts and not source.has_counts:
            raise DataError(
                "The counts were dropped by minify_adata, and this question needs them; pass data "
                "with counts as adata=."
            )
        rows = row_numbers(indices, source.n_cells)
        size = size_of(batch_size, len(self.schema.genes))
        return Cells(self.module, source, rows, size, bool(silent))


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


def refuse_minified(adata: AnnData) -> None:
    """Refuse data without counts for a new model."""
    kind = minified_type(adata)
    if kind is not None and not kind.endswith("with_counts"):
        raise DataError(
            "The counts of this AnnData were dropped by minify_adata, and a new model needs them; "
            "load the model that was saved with it instead."
        )


def dimensions(schema: Schema) -> Dimensions:
    """What the network must know of the data, from their schema."""
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


def _check_training(state: TrainState) -> None:
    """Refuse a history or a split that does not fit the summary it was saved with."""
    verdict(state.summary)
    epochs = state.summary.get("epochs", 0)
    if len(state.history) != epochs:
        raise ValueError(f"history.csv has {len(state.history)} epochs of {epochs}")
    if not state.trained:  # a split without an epoch, which is drawn again
        state.train_rows, state.validation_rows = np.zeros((2, 0), np.int64)
    used = np.concatenate([state.train_rows, state.validation_rows])
    if used.min(initial=0) < 0 or used.max(initial=-1) >= state.summary.get("cells", 0):
        raise ValueError("the split names cells that the data did not have")


def size_of(batch_size: int | None, n_genes: int) -> int:
    """Cells at a time: as asked for, or as the settings say, or as suits the number of genes."""
    size = settings.batch_size if batch_size is None else batch_size
    positive("batch_size", size)
    return min(2048, max(256, (1 << 22) // n_genes)) if size is None else size


def _same_cells(adata: AnnData, summary: Mapping[str, Any]) -> bool:
    """Whether the model was trained on these; scvi-tools keeps only their number."""
    if "scvi_tools" in summary and summary["cell_names"] is None:
        return bool(adata.n_obs == summary["cells"])
    return hash_cell_names(adata) == summary.get("cell_names")
