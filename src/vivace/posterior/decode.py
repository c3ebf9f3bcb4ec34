"""What does the model expect to observe at these points of the latent space?"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from vivace.cells import Cells, generators_of, points, with_codes
from vivace.data.schema import Codes
from vivace.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from vivace.nn import VAE, Rates
from vivace.ops.runtime.threads import question

Observation = NegativeBinomial | Normal | Poisson | ZeroInflatedNegativeBinomial


@question
def decode(
    cells: Cells, point_nk: Tensor, codes: Codes, library_n: Tensor | None = None
) -> Observation:
    """The observation distribution of n points x g genes, with the covariates of ``cells``.

    ``library_n`` takes the place of the cells' library or size factor.
    """
    network = cells.network.eval()
    encoded = library_n is None and network.library_encoder is not None
    batch = cells.source.gather(cells.rows, counts=encoded).to(network.device)
    log_library_n = (
        network.log_library(batch) if library_n is None else library_n.to(network.device).log()
    )
    point_nk = point_nk.to(network.device, log_library_n.dtype)
    return observed(network, network.rates(point_nk, with_codes(batch, codes), log_library_n))


@question
def decoded(
    cells: Cells, codes: Codes, n_draws: int, seed: int, what: str = "Decoding"
) -> Iterator[tuple[slice, int, Observation]]:
    """The observation distribution of each minibatch at each draw of z (and of a latent library).

    With ``n_draws`` 0, the one at the means of q(z, l|x).
    """
    network = cells.network
    generators = generators_of(seed, n_draws)
    for part, batch, inference in cells.encoded(what):
        other = with_codes(batch, codes)
        for i, (point, log_library) in enumerate(points(network, batch, inference, generators)):
            yield part, i, observed(network, network.rates(point, other, log_library))


def observed(network: VAE, rates: Rates) -> Observation:
    """The distribution that ``rates`` are the parameters of."""
    likelihood = network.config.gene_likelihood
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
