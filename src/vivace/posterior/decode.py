"""What does the model expect to observe at these points of the latent space?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vivace.data import Rows, Source
from vivace.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from vivace.nn import VAE, Rates

Observation = NegativeBinomial | Normal | Poisson | ZeroInflatedNegativeBinomial


@torch.no_grad()
def decode(
    network: VAE,
    point_nk: Tensor,
    source: Source,
    rows: Rows,
    batch_code: int | None,
    library_n: Tensor | None,
) -> Observation:
    """The observation distribution of n points x g genes, with the covariates of ``rows``.

    ``batch_code`` takes the place of the cells' own batch, ``library_n`` that of
    their library or size factor.
    """
    network.eval()
    device = network.device
    batch = source.gather(rows).to(device)
    log_library_n = network.log_library(batch) if library_n is None else library_n.to(device).log()
    if batch_code is not None:
        batch = replace(batch, batch=torch.full_like(batch.batch, batch_code))
    rates = network.rates(point_nk.to(device, log_library_n.dtype), batch, log_library_n)
    return _distribution(network.config.gene_likelihood, rates)


def _distribution(likelihood: str, rates: Rates) -> Observation:
    unchecked = {"validate_args": False}  # the network gives nothing else
    if likelihood == "poisson":
        return Poisson(rates.mu, scale=rates.scale, **unchecked)
    assert rates.theta is not None
    if likelihood == "normal":
        return Normal(rates.mu, rates.theta, normal_mu=rates.scale, **unchecked)
    if rates.zi_logits is None:
        return NegativeBinomial(mu=rates.mu, theta=rates.theta, scale=rates.scale, **unchecked)
    return ZeroInflatedNegativeBinomial(
        mu=rates.mu,
        theta=rates.theta,
        zi_logits=rates.zi_logits,
        scale=rates.scale,
        **unchecked,
    )
