"""Decoders: one file each, behind one protocol."""

from __future__ import annotations

import torch

from vivace.config import ModelConfig
from vivace.nn.decoders.linear import LinearDecoder
from vivace.nn.decoders.mlp import MLPDecoder
from vivace.nn.decoders.protocol import Decoder
from vivace.ops.count_nll import LIKELIHOODS

__all__ = ["Decoder", "LinearDecoder", "MLPDecoder", "build_decoder"]


def build_decoder(
    config: ModelConfig,
    n_genes: int,
    n_continuous: int,
    one_hot_sizes: tuple[int, ...],
    generator: torch.Generator | None = None,
) -> Decoder:
    """The decoder that the options ask for.

    Parameters
    ----------
    config
        Options.
    n_genes, n_continuous
        Genes, and columns of continuous covariates.
    one_hot_sizes
        One-hot columns of each categorical covariate.
    generator
        Of the initial values; None for torch's global one.
    """
    family = LIKELIHOODS[config.gene_likelihood]
    dispersed = family.dispersed and config.dispersion == "gene-cell"
    batch_norm = config.use_batch_norm in ("decoder", "both")
    if config.linear_decoder:
        return LinearDecoder(
            config.n_latent,
            n_genes,
            n_continuous=n_continuous,
            one_hot_sizes=one_hot_sizes,
            zero_inflated=family.zero_inflated,
            dispersed=dispersed,
            batch_norm=batch_norm,
            generator=generator,
        )
    return MLPDecoder(
        config.n_latent,
        config.n_hidden,
        n_genes,
        config.n_layers,
        n_continuous=n_continuous,
        one_hot_sizes=one_hot_sizes,
        zero_inflated=family.zero_inflated,
        dispersed=dispersed,
        inject=config.deeply_inject_covariates,
        batch_norm=batch_norm,
        layer_norm=config.use_layer_norm in ("decoder", "both"),
        generator=generator,
    )
