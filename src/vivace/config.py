"""Settings of the package, and the options of a model."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args, get_type_hints

import numpy as np

from vivace.errors import ArgumentTypeError, MissingNameError, OptionError, brief, instead

GeneLikelihood = Literal["zinb", "nb", "poisson", "normal"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
LatentDistribution = Literal["normal", "ln"]
BatchRepresentation = Literal["one-hot", "embedding"]
VarActivation = Literal["exp", "softplus"]
Where = Literal["none", "encoder", "decoder", "both"]
Preset = Literal["mapping"]


# chosen on cell lines and simulated batch effects: benchmarks/LOG.md, "Mapping"
_PRESETS: dict[str, dict[str, Any]] = {
    "mapping": {
        "encode_covariates": True,
        "use_layer_norm": "both",
        "use_batch_norm": "none",
    }
}
# beyond these, no network could be made
_LARGEST = {"n_hidden": 65_536, "n_latent": 65_536, "n_layers": 256, "batch_embedding_dim": 65_536}
MOST_THREADS = max(256, 4 * (os.cpu_count() or 1))  # of which the system can start all
_SPELLED_OUT = {"negative_binomial": "nb", "zero_inflated_negative_binomial": "zinb"}


@dataclass
class Settings:
    """Package-wide settings, at ``vivace.settings``.

    Parameters
    ----------
    seed
        Seed of the random stream of a new model.
    batch_size
        Cells per minibatch outside training. None chooses 256 to 2,048 cells, about four million
        values (cells x genes).
    """

    seed: int = 0
    batch_size: int | None = None

    _num_threads: int | None = field(default=None, init=False, repr=False)
    _torch_threads: int = field(default=0, init=False, repr=False)  # torch's own number

    def __setattr__(self, name: str, value: object) -> None:
        if not hasattr(type(self), name):
            known = ["seed", "batch_size", "num_threads"]
            raise MissingNameError(
                f"vivace.settings has no {name!r}; {instead(name, known, 'vivace.settings')}"
            )
        super().__setattr__(name, value)

    @property
    def num_threads(self) -> int:
        """Number of threads of torch's operations and of the kernels.

        Setting a number also sets torch's. Until then, and after setting None, it is at most
        torch's own number (the cores, or ``OMP_NUM_THREADS``), and lower while other processes
        use the cores: see :mod:`vivace.ops.runtime.threads`.
        """
        import torch

        return torch.get_num_threads()

    @num_threads.setter
    def num_threads(self, number: int | None) -> None:
        import torch

        if number is None:
            if self._num_threads is not None:
                torch.set_num_threads(self._torch_threads)
            self._num_threads = None
            return
        if isinstance(number, float) and number % 1 == 0:
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise ArgumentTypeError(
                f"settings.num_threads must be an integer or None, not {brief(number)}."
            )
        if number < 1:
            raise OptionError(f"settings.num_threads must be at least 1, not {brief(number)}.")
        if number > MOST_THREADS:
            raise OptionError(
                f"settings.num_threads must be at most {MOST_THREADS:,}, not {brief(number)}."
            )
        if self._num_threads is None:
            self._torch_threads = torch.get_num_threads()
        self._num_threads = int(number)
        torch.set_num_threads(self._num_threads)

    @property
    def fixed_threads(self) -> int | None:
        """The number that was set; None if it follows the load of the machine."""
        return self._num_threads

    def restored_threads(self, before: int) -> int:
        """Torch's number of threads after work that began with ``before``.

        A number that was set during the work is kept.
        """
        self._torch_threads = before
        return self._num_threads or before


settings = Settings()


def _one_thread() -> None:
    """Use one thread in a forked process, which otherwise waits for threads that it lacks."""
    if "torch" in sys.modules:
        settings.num_threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)


@dataclass(frozen=True)
class ModelConfig:
    """Options of the network: the constructor arguments of ``SCVI``, in one place.

    The formats of ``store`` use these names.

    Parameters
    ----------
    n_hidden
        Units of each hidden layer.
    n_latent
        Dimensions of the latent space.
    n_layers
        Hidden layers of the encoder and of the decoder.
    dropout_rate
        Dropout in the encoder.
    dispersion
        Level at which the inverse dispersion varies: "gene", "gene-batch", "gene-label", or
        "gene-cell" (a head of the decoder).
    gene_likelihood
        "zinb", "nb", "poisson" or "normal"; "negative_binomial" and
        "zero_inflated_negative_binomial" are accepted too.
    latent_distribution
        "normal", or "ln", the softmax of a normal.
    use_observed_lib_size
        Whether the library is the sum of a cell's counts; False makes it a latent variable with
        a log-normal prior for each batch.
    encode_covariates
        Whether the encoder sees batch and covariates.
    deeply_inject_covariates
        Whether categories enter every layer, not only the first.
    batch_representation
        "one-hot" columns, or a learned "embedding".
    batch_embedding_dim
        Dimensions of that embedding.
    log_variational
        Whether the encoder sees log(1 + counts).
    var_activation
        Function that makes the variance of q(z|x) positive: "exp" or "softplus".
    use_batch_norm, use_layer_norm
        "none", "encoder", "decoder" or "both".
    linear_decoder
        Whether the decoder is one linear map, as in LinearSCVI.

    Examples
    --------
    >>> ModelConfig(gene_likelihood="negative_binomial").gene_likelihood
    'nb'
    """

    n_hidden: int = 128
    n_latent: int = 10
    n_layers: int = 1
    dropout_rate: float = 0.1
    dispersion: Dispersion = "gene"
    gene_likelihood: GeneLikelihood = "zinb"
    latent_distribution: LatentDistribution = "normal"
    use_observed_lib_size: bool = True
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True
    batch_representation: BatchRepresentation = "one-hot"
    batch_embedding_dim: int = 5
    log_variational: bool = True
    var_activation: VarActivation = "exp"
    use_batch_norm: Where = "both"
    use_layer_norm: Where = "none"
    linear_decoder: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.gene_likelihood, str):
            short = _SPELLED_OUT.get(self.gene_likelihood, self.gene_likelihood)
            object.__setattr__(self, "gene_likelihood", short)
        hints = get_type_hints(type(self))
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, np.generic):  # such as an element of an array; JSON cannot hold it
                object.__setattr__(self, option.name, value := value.item())
            _check_option(option.name, value, hints[option.name])
        for name, most in _LARGEST.items():
            size = getattr(self, name)
            if not 1 <= size <= most:
                bound = "at least 1" if size < 1 else f"at most {most:,}"
                raise OptionError(f"{name} must be {bound}, not {brief(size)}.")
        if not 0 <= self.dropout_rate < 1:
            raise OptionError(
                f"dropout_rate must be at least 0 and below 1, not {brief(self.dropout_rate)}."
            )

    def as_dict(self) -> dict[str, Any]:
        """The options as types that JSON can hold."""
        return asdict(self)

    def with_preset(self, preset: Preset | None) -> Self:
        """A copy with the options of ``preset``; None changes nothing.

        Examples
        --------
        >>> ModelConfig().with_preset("mapping").encode_covariates
        True
        """
        if preset is None:
            return self
        _check_option("preset", preset, Preset)
        options = dict(_PRESETS[preset])
        if self.linear_decoder:  # there is no hidden layer to normalise
            options |= {"use_layer_norm": "encoder", "use_batch_norm": "decoder"}
        return replace(self, **options)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(f.name for f in fields(cls))


def _check_option(name: str, value: object, hint: Any) -> None:
    """Refuse a value of the wrong type, or one that its Literal does not list."""
    choices = get_args(hint)
    if choices:
        if not isinstance(value, str) or value not in choices:
            listed = ", ".join(repr(c) for c in choices)
            raise OptionError(f"{name} must be one of {listed}, not {brief(value)}.")
        return
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise ArgumentTypeError(
            f"{name} must be {'a number' if hint is float else f'of type {hint.__name__}'}, "
            f"not {brief(value)}."
        )
