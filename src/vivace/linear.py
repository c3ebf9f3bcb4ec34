"""LinearSCVI: scVI with a decoder that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import pandas as pd
import torch
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
from vivace.errors import OptionError
from vivace.methods import ARGUMENTS, Model, embedding_dim
from vivace.nn import LinearDecoder
from vivace.validate import refuse_unknown


@final
class LinearSCVI(Model):
    """Linearly decoded variational inference on counts: each latent dimension weighs genes.

    Log expression is linear in the latent space, up to the softmax over genes, so
    that :meth:`get_loadings` says what each dimension means.  Covariates of every
    kind are taken, as in :class:`~vivace.SCVI`.

    Parameters
    ----------
    adata
        Cells x genes of raw counts, set up with :meth:`setup_anndata`.
    preset
        "mapping" for a reference that queries will be mapped onto: ``encode_covariates=True,
        use_layer_norm="encoder", use_batch_norm="decoder"``, whatever those arguments say.
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
        As in :class:`~vivace.SCVI`; so are the arguments that are not named here.

    Raises
    ------
    DataError
        If the counts or a declared column cannot be used.
    OptionError, ArgumentTypeError
        If an option is not one of the above.

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
        **unknown: Any,
    ) -> None:
        refuse_unknown("LinearSCVI", unknown, ARGUMENTS)
        if isinstance(use_batch_norm, bool):  # scvi-tools' LinearSCVI has it so
            use_batch_norm = "both" if use_batch_norm else "encoder"
        if use_layer_norm in ("decoder", "both"):
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
        self._start(adata, config)

    @torch.no_grad()
    def get_loadings(self) -> pd.DataFrame:
        """Weight of each latent dimension on each gene, shape (g, k).

        Genes in rows, ``Z_0`` and so on in columns; batch norm is included,
        batch and covariates are not.
        """
        decoder = self.module.decoder
        assert isinstance(decoder, LinearDecoder)
        n_latent = self.config.n_latent
        return pd.DataFrame(
            decoder.scale.loadings(n_latent).cpu().numpy(),
            index=list(self.schema.genes),
            columns=[f"Z_{i}" for i in range(n_latent)],
        )
