"""The models: SCVI and LinearSCVI, each a constructor and the list of what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

from anndata import AnnData

from vivace.config import (
    BatchRepresentation,
    Dispersion,
    GeneLikelihood,
    LatentDistribution,
    ModelConfig,
    Preset,
    VarActivation,
    Where,
)
from vivace.core import Core, constructor
from vivace.data import declare
from vivace.de import differential
from vivace.errors import ArgumentTypeError, MissingNameError, OptionError, brief, instead
from vivace.questions import (
    abundance,
    check,
    correlation,
    decode,
    expression,
    importance,
    latent,
    likelihood,
    marginal,
    minify,
    parameters,
    programs,
    sample,
)
from vivace.store import saving
from vivace.train import run
from vivace.transfer import genes, labels, query
from vivace.validate import COUNT, checked, folder_path, refuse_unknown

__all__ = ["SCVI", "LinearSCVI", "load"]


@final
class SCVI(Core):
    """Single-cell variational inference on counts.

    Parameters
    ----------
    adata
        Cells x genes of raw counts, set up with :meth:`setup_anndata`.
    preset
        "mapping" for a reference that queries will be mapped onto: ``encode_covariates=True,
        use_layer_norm="both", use_batch_norm="none"``, overriding those arguments.
    n_hidden, n_latent, n_layers
        Units of a hidden layer, latent dimensions, hidden layers.
    dropout_rate
        Dropout in the encoder.
    dispersion
        Level at which the inverse dispersion varies: "gene", "gene-batch", "gene-label"
        (needs labels_key), or "gene-cell" (from a head of the decoder).
    gene_likelihood
        "zinb", "nb", "poisson", or "normal" for values that are not counts (set up with
        ``allow_non_integer=True``; each cell's values must sum to more than 0);
        "negative_binomial" and "zero_inflated_negative_binomial" are accepted too.
    use_observed_lib_size
        The library is the sum of a cell's counts; False makes it a latent variable
        with a log-normal prior for each batch. A size factor takes precedence over both.
    latent_distribution
        "normal", or "ln": the softmax of a normal sample (logistic normal).
    encode_covariates
        The encoder sees batch and covariates too.
    deeply_inject_covariates
        Categories enter every layer, not only the first.
    batch_representation
        "one-hot" columns for the batch, or a learned "embedding".
    batch_embedding_kwargs
        ``{"embedding_dim": 5}``: dimensions of that embedding.
    log_variational
        The encoder sees log(1 + counts).
    var_activation
        What makes the variance of q(z|x) positive: "exp" or "softplus".
    use_batch_norm, use_layer_norm
        "none", "encoder", "decoder" or "both".

    Raises
    ------
    DataError
        If the counts or a declared column cannot be used.
    OptionError, ArgumentTypeError
        If an option has an invalid value.

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()[:200].copy()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> model.get_latent_representation().shape
    (200, 5)
    """

    @checked()
    def __init__(
        self,
        adata: AnnData,
        *,
        preset: Preset | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Dispersion = "gene",
        gene_likelihood: GeneLikelihood = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: LatentDistribution = "normal",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        batch_embedding_kwargs: Mapping[str, int] | None = None,
        log_variational: bool = True,
        var_activation: VarActivation = "exp",
        use_batch_norm: Where = "both",
        use_layer_norm: Where = "none",
    ) -> None:
        config = ModelConfig(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            batch_embedding_dim=embedding_dim(batch_embedding_kwargs),
            log_variational=log_variational,
            var_activation=var_activation,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
        ).with_preset(preset)
        super().__init__(adata, config)

    # data and training
    setup_anndata = classmethod(declare.setup_anndata)
    train = run.train
    # questions
    get_latent_representation = latent.get_latent_representation
    get_latent_library_size = latent.get_latent_library_size
    get_elbo = likelihood.get_elbo
    get_reconstruction_error = likelihood.get_reconstruction_error
    get_marginal_ll = marginal.get_marginal_ll
    get_normalized_expression = expression.get_normalized_expression
    posterior_predictive_sample = sample.posterior_predictive_sample
    posterior_predictive_check = check.posterior_predictive_check
    get_likelihood_parameters = parameters.get_likelihood_parameters
    decode = decode.decode
    get_feature_correlation_matrix = correlation.get_feature_correlation_matrix
    get_gene_programs = programs.get_gene_programs
    get_aggregated_posterior = abundance.get_aggregated_posterior
    differential_abundance = abundance.differential_abundance
    get_importance_weights = importance.get_importance_weights
    differential_expression = differential.differential_expression
    minify_adata = minify.minify_adata
    # reference and query
    load_query_data = constructor(query.load_query_data)
    prepare_query_anndata = staticmethod(genes.prepare_query_anndata)
    transfer_labels = labels.transfer_labels
    # files
    save = saving.save
    load = constructor(saving.load)


@final
class LinearSCVI(Core):
    """Variational inference on counts with a linear decoder, whose weights are gene loadings.

    Log expression is linear in the latent space, up to the softmax over genes, so
    :meth:`get_loadings` shows what each dimension means. All kinds of covariates are
    accepted, as in :class:`~vivace.SCVI`.

    Parameters
    ----------
    adata
        Cells x genes of raw counts, set up with :meth:`setup_anndata`.
    preset
        "mapping" for a reference that queries will be mapped onto: ``encode_covariates=True,
        use_layer_norm="encoder", use_batch_norm="decoder"``, overriding those arguments.
    n_layers
        Hidden layers of the encoder; the decoder has none.
    gene_likelihood
        "nb" (default), "zinb", "poisson" or "normal".
    use_observed_lib_size
        False (default): the library is latent, with a log-normal prior for each batch.
    use_batch_norm
        "both" (default, or True), "encoder" (or False), "decoder" or "none"; that of
        the decoder follows its linear map.
    use_layer_norm
        "none" (default) or "encoder".
    n_hidden, n_latent, dropout_rate, dispersion, latent_distribution
        As in :class:`~vivace.SCVI`, like all arguments that are not named here.

    Raises
    ------
    DataError
        If the counts or a declared column cannot be used.
    OptionError, ArgumentTypeError
        If an option has an invalid value.

    Notes
    -----
    Source: Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()[:200].copy()
    >>> vivace.LinearSCVI.setup_anndata(adata)
    >>> model = vivace.LinearSCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> model.get_loadings().shape
    (2005, 5)
    """

    @checked()
    def __init__(
        self,
        adata: AnnData,
        *,
        preset: Preset | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Dispersion = "gene",
        gene_likelihood: GeneLikelihood = "nb",
        use_observed_lib_size: bool = False,
        latent_distribution: LatentDistribution = "normal",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        batch_embedding_kwargs: Mapping[str, int] | None = None,
        log_variational: bool = True,
        var_activation: VarActivation = "exp",
        use_batch_norm: Where | bool = "both",
        use_layer_norm: Where = "none",
    ) -> None:
        if isinstance(use_batch_norm, bool):  # scvi-tools' LinearSCVI has it so
            use_batch_norm = "both" if use_batch_norm else "encoder"
        if isinstance(use_layer_norm, str) and use_layer_norm in ("decoder", "both"):
            raise OptionError(
                f"use_layer_norm={use_layer_norm!r} needs a hidden layer, which the linear decoder "
                "does not have; use 'none' or 'encoder'."
            )
        config = ModelConfig(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            batch_embedding_dim=embedding_dim(batch_embedding_kwargs),
            log_variational=log_variational,
            var_activation=var_activation,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            linear_decoder=True,
        ).with_preset(preset)
        super().__init__(adata, config)

    # data and training
    setup_anndata = classmethod(declare.setup_anndata)
    train = run.train
    # questions
    get_latent_representation = latent.get_latent_representation
    get_latent_library_size = latent.get_latent_library_size
    get_elbo = likelihood.get_elbo
    get_reconstruction_error = likelihood.get_reconstruction_error
    get_marginal_ll = marginal.get_marginal_ll
    get_normalized_expression = expression.get_normalized_expression
    posterior_predictive_sample = sample.posterior_predictive_sample
    posterior_predictive_check = check.posterior_predictive_check
    get_likelihood_parameters = parameters.get_likelihood_parameters
    decode = decode.decode
    get_feature_correlation_matrix = correlation.get_feature_correlation_matrix
    get_loadings = programs.get_loadings
    get_gene_programs = programs.get_gene_programs
    get_aggregated_posterior = abundance.get_aggregated_posterior
    differential_abundance = abundance.differential_abundance
    get_importance_weights = importance.get_importance_weights
    differential_expression = differential.differential_expression
    minify_adata = minify.minify_adata
    # reference and query
    load_query_data = constructor(query.load_query_data)
    prepare_query_anndata = staticmethod(genes.prepare_query_anndata)
    transfer_labels = labels.transfer_labels
    # files
    save = saving.save
    load = constructor(saving.load)


@checked()
def load(dir_path: str | Path, adata: AnnData | None = None) -> SCVI | LinearSCVI:
    """Read a model folder of vivace or scvi-tools, of either class.

    Parameters
    ----------
    dir_path
        The folder.
    adata
        Data to continue with, as in :meth:`vivace.SCVI.load`.

    Raises
    ------
    ModelFileError
        If the folder is missing, damaged or of another format.
    """
    path = folder_path(dir_path)
    stored = saving.read_model(path)
    if stored.sections["class"] == "LinearSCVI":
        return saving.restore(LinearSCVI, path, stored, adata)
    return saving.restore(SCVI, path, stored, adata)


def embedding_dim(batch_embedding_kwargs: object) -> int:
    """The dimensions in ``batch_embedding_kwargs``; 5 where it is None, as in scvi-tools."""
    if batch_embedding_kwargs is None:
        return ModelConfig.batch_embedding_dim
    if not isinstance(batch_embedding_kwargs, Mapping):
        raise ArgumentTypeError(
            "batch_embedding_kwargs must be a dict such as {'embedding_dim': 5}, not "
            f"{brief(batch_embedding_kwargs)}."
        )
    refuse_unknown("batch_embedding_kwargs", set(batch_embedding_kwargs), ["embedding_dim"])
    dim = batch_embedding_kwargs.get("embedding_dim", ModelConfig.batch_embedding_dim)
    return cast("int", COUNT("batch_embedding_kwargs['embedding_dim']", dim))


if not TYPE_CHECKING:  # type checkers know the names

    def __getattr__(name: str) -> object:
        """Name the models there are, in place of scvi-tools' others."""
        raise MissingNameError(
            f"vivace.model has no {name!r}; {instead(name, __all__, 'vivace.model')}"
        )

    def _refuse_name(self: Core, name: str) -> object:
        """Say what takes the place of scvi-tools' attributes, or which name is similar."""
        known = [] if name.startswith("_") else [n for n in dir(self) if not n.startswith("_")]
        raise MissingNameError(
            f"{type(self).__name__} has no {name!r}; {instead(name, known, 'model')}"
        )

    SCVI.__getattr__ = LinearSCVI.__getattr__ = _refuse_name
