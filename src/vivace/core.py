"""Core: the state of a count model, which every question reads.

The classes in ``model.py`` add a constructor and the list of what they answer. The answers
are functions of ``self: Core``, one question per file.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells
from vivace.config import ModelConfig, settings
from vivace.data import Minified, Source, minified_type, read_cells
from vivace.data.checks import Door
from vivace.data.declare import refuse_without_counts
from vivace.data.schema import Declarations, Schema, allows_fractions, read_declarations
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    NotTrainedError,
    OptionError,
    TrainingError,
    brief,
)
from vivace.nn import VAE, Dimensions
from vivace.seeds import SeedStream, check_seed, torch_generator
from vivace.selection import row_numbers
from vivace.split import Split
from vivace.state import TrainState
from vivace.summary import summarise
from vivace.types import Indices, Rows
from vivace.validate import OPTIONAL_COUNT, check_anndata, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    P = ParamSpec("P")
    M = TypeVar("M")

    class constructor(Generic[P]):  # noqa: N801
        """A classmethod that returns a model of the class it is called on, as type checkers see it."""

        def __init__(self, function: Callable[Concatenate[type[Any], P], Any]) -> None: ...
        def __get__(self, instance: object, owner: type[M]) -> Callable[P, M]: ...

else:
    constructor = classmethod


TRAINERS: WeakKeyDictionary[Core, int] = WeakKeyDictionary()  # threads that train models now


class Core:
    """A count model: options, schema, network, data, seeds and training state.

    Parameters
    ----------
    adata
        The data, set up with ``setup_anndata``.
    config
        Options of the network.

    Attributes
    ----------
    config
        Options of the network.
    schema
        The genes, columns and categories that the model was created with.
    module
        The network.
    """

    config: ModelConfig
    schema: Schema
    module: VAE

    def __init__(self, adata: AnnData, config: ModelConfig) -> None:
        check_anndata(f"{type(self).__name__} takes", adata)
        refuse_without_counts(adata)
        schema = Schema.from_anndata(adata, read_declarations(adata))
        _check_columns(config, schema.declarations)
        seeds = SeedStream(check_seed(settings.seed, "settings.seed"))
        self._build(config, schema, seeds, weights_seed=seeds.take())
        self._attach(adata, Door.SETUP, library_prior=True)

    def _build(
        self, config: ModelConfig, schema: Schema, seeds: SeedStream, weights_seed: int
    ) -> None:
        """Make an untrained network, without data."""
        self.config = config
        self.schema = schema
        self._seeds = seeds
        self._state = TrainState()
        self._split: Split | None = Split.from_state(self._state, None)
        self._unused: dict[str, Tensor] = {}  # scvi-tools' tensors that are kept but not used
        self._adata: AnnData | None = None
        self._source: Source | None = None
        self._reference: AnnData | None = None  # of a query's model: the reference's data
        self._origins: tuple[str, ...] = ()  # fingerprints of models with the same encoder
        generator = torch_generator(weights_seed)
        self.module = VAE(config, network_dimensions(schema), generator=generator)
        self.module.eval()

    def _attach(
        self, adata: AnnData, door: Door = Door.QUESTION, *, library_prior: bool = False
    ) -> None:
        """Read the model's own data and, if asked, set the prior of a latent library from them."""
        self._source = self._read(adata, door)
        self._adata = adata
        if library_prior and self.module.library_encoder is not None:
            source = self._source
            log_library_n = np.log(source.library.astype(np.float64))
            self.module.set_library_prior(log_library_n, source.batch)

    def _read(self, adata: AnnData, door: Door = Door.QUESTION) -> Source:
        """Read and check the cells of ``adata``, with the model's genes and codes."""
        normal = self.config.gene_likelihood == "normal"
        minified = isinstance(adata, AnnData) and minified_type(adata) is not None
        models = (self._fingerprint(), *self._origins) if minified else ()
        schema = self.schema
        if self.config.dispersion != "gene-label":
            schema = schema.without_labels()
        if isinstance(adata, AnnData) and allows_fractions(adata):
            schema = schema.with_fractions()
        source = read_cells(
            adata,
            schema,
            allow_negative=normal,
            door=door,
            models=models,
        )
        if normal and self.config.log_variational and source.smallest < 0:
            raise OptionError(
                "log_variational=True takes the logarithm of the values, but some are negative; "
                "use log_variational=False."
            )
        return source

    # ---- helpers of the questions ---------------------------------------------------

    def _cells(
        self,
        adata: AnnData | None,
        indices: Indices | None,
        batch_size: int | None,
        silent: bool = True,
        *,
        counts: bool = False,
        repeats: bool = False,
    ) -> Cells:
        """The cells that a question is about.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As the questions have them.
        counts
            Whether the question needs their counts.
        repeats
            Whether cells are usually asked for several times.
        """
        if not self.is_trained:
            raise NotTrainedError("The model has not been trained; call train() first.")
        if TRAINERS.get(self, threading.get_ident()) != threading.get_ident():
            raise TrainingError(
                "The model is being trained in another thread; ask it when that train() has ended."
            )
        source = self._own_source() if adata is None else self._read(adata)
        if counts and not source.has_counts:
            raise DataError(
                "The counts were dropped by minify_adata, and this question needs them; pass data "
                "with counts as adata=."
            )
        rows = row_numbers(indices, self._resolve_adata(adata).obs_names, repeats=repeats)
        size = minibatch_size(batch_size, len(self.schema.genes))
        return Cells(self.module, source, rows, size, silent)

    def _own_source(self) -> Source:
        """The model's own data; raises an error if they changed since they were read."""
        if self._source is None:
            raise DataError(
                "This model was loaded without data; pass adata= to load or to the method."
            )
        self._source.check_unchanged(self._adata)
        return self._source

    def _own_adata(self) -> AnnData:
        self._own_source()
        assert self._adata is not None
        return self._adata

    def _resolve_adata(self, adata: AnnData | None) -> AnnData:
        """The AnnData of a question whose cells have been read: ``adata``, or the model's own."""
        data = self._adata if adata is None else adata
        assert data is not None
        return data

    def _seed(self, seed: int | None, random: bool) -> int:
        """The seed of a question; without ``random`` the model's stream does not advance."""
        return self._seeds.take(seed) if random else 0 if seed is None else check_seed(seed)

    def _fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # ---- state ------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch, with scvi-tools' keys as columns.

        ``train_loss``, ``elbo_train``, ``reconstruction_loss_train``, ``kl_local_train`` and
        the same for validation, in nats per cell; then ``lr``, ``kl_weight``, ``seconds`` and
        ``compile_seconds``. Kernels are compiled once per machine; ``seconds`` excludes that
        time. "elbo" is the negative ELBO here: lower is better.
        """
        return self._state.frame()

    @property
    def is_trained(self) -> bool:
        """Whether ``train`` has run."""
        return self._state.trained

    @property
    def train_indices(self) -> Rows:
        """Rows of the data with cells that the model was trained on.

        They are found by their names if the model was loaded with other data.
        """
        return self._own_split().train

    @property
    def validation_indices(self) -> Rows:
        """Rows used for validation."""
        return self._own_split().validation

    @property
    def test_indices(self) -> Rows:
        """Rows used for neither training nor validation."""
        split, n_cells = self._own_split(), self._own_source().n_cells
        return np.setdiff1d(np.arange(n_cells), np.concatenate([split.train, split.validation]))

    def _own_split(self) -> Split:
        """Which of the model's own cells were trained on."""
        if self._adata is not None:
            self._own_source()  # the cells must be those that were read
        if self._split is None:
            raise DataError(
                "It is not known which of these cells the model was trained on, because their names "
                "are not unique or were not saved; load the model with the data that it was trained "
                "on, or without data."
            )
        return self._split

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

    @checked()
    def to_device(self, device: str | torch.device) -> None:
        """Move the weights to ``device``, for example "cpu" or "cuda:0"."""
        if not isinstance(device, str | int | torch.device) or isinstance(device, bool):
            raise ArgumentTypeError(
                f"device must be the name of a device, not {brief(device)}; use for example 'cpu'."
            )
        try:
            place = torch.device(device)
            torch.empty(0, dtype=torch.float32, device=place)
        except (AssertionError, ImportError, RuntimeError, ValueError) as error:
            raise OptionError(
                f"device={brief(device)} is not a device of this machine; use for example 'cpu'."
            ) from error
        self.module.to(place)

    @checked()
    def view_anndata_setup(self) -> pd.DataFrame:
        """The declarations: meaning, place in the AnnData, and content."""
        return pd.DataFrame(self.schema.summary(), columns=["meaning", "where", "content"])

    @property
    def summary(self) -> str:
        """A few lines on options, data and training."""
        n_cells = None if self._source is None else self._source.n_cells
        return summarise(
            type(self).__name__,
            self.config,
            self.schema,
            self._state,
            n_cells,
            self.minified_data_type,
        )

    def __repr__(self) -> str:
        return self.summary


def network_dimensions(schema: Schema) -> Dimensions:
    """The sizes that the network takes from the data."""
    return Dimensions(
        n_genes=len(schema.genes),
        n_batches=len(schema.batches),
        n_categories=tuple(len(c) for c in schema.categories),
        n_continuous=schema.n_continuous,
        size_factor=schema.declarations.size_factor_key is not None,
        n_labels=len(schema.labels),
    )


def minibatch_size(batch_size: int | None, n_genes: int) -> int:
    """Cells per minibatch: as given, from the settings, or chosen by the number of genes."""
    size = settings.batch_size if batch_size is None else batch_size
    size = OPTIONAL_COUNT("batch_size", size)
    return min(2048, max(256, (1 << 22) // n_genes)) if size is None else size


def _check_columns(config: ModelConfig, declared: Declarations) -> None:
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
