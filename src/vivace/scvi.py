"""SCVI: the model that users hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

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
from vivace.methods import ARGUMENTS, Model, embedding_dim
from vivace.validate import refuse_unknown


@final
class SCVI(Model):
    """Single-cell variational inference on counts.

    Parameters
    ----------
    adata
        Cells x genes of raw counts, set up with :meth:`setup_anndata`.
    preset
        "mapping" for a reference that queries will be mapped onto: ``encode_covariates=True,
        use_layer_norm="both", use_batch_norm="none"``, whatever those arguments say.
    n_hidden, n_latent, n_layers
        Units of a hidden layer, latent dimensions, hidden layers.
    dropout_rate
        Dropout in the encoder.
    dispersion
        What has an inverse dispersion of its own: "gene", "gene-batch", "gene-label"
        (needs labels_key), or "gene-cell" (from a head of the decoder).
    gene_likelihood
        "zinb", "nb", "poisson", or "normal" for values that are not counts (set up with
        ``allow_non_integer=True``; each cell's must add up to more than 0);
        "negative_binomial" and "zero_inflated_negative_binomial" are understood.
    use_observed_lib_size
        The library is the sum of a cell's counts; False makes it a latent variable
        with a log-normal prior for each batch.  A size factor comes before both.
    latent_distribution
        "normal", or "ln": the softmax of a normal draw (logistic normal).
    encode_covariates
        The encoder sees batch and covariates too.
    deeply_inject_covariates
        Categories enter every layer, not only the first.
    batch_representation
        "one-hot" columns for the batch, or an "embedding" that is learned.
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
        If an option is not one of the above.

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
        **unknown: Any,
    ) -> None:
        refuse_unknown("SCVI", unknown, ARGUMENTS)
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
        self._start(adata, config)
