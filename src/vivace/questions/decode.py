"""What does the model expect to observe at these points of the latent space?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from vivace.cells import Cells, child_generators, decoder_inputs, question, with_codes
from vivace.core import Core
from vivace.data.schema import Codes
from vivace.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from vivace.errors import OptionError, ShapeError
from vivace.nn import VAE, Rates
from vivace.types import Indices, Transform
from vivace.validate import float_tensor

Observation = NegativeBinomial | Normal | Poisson | ZeroInflatedNegativeBinomial


@question()
def decode(
    self: Core,
    z: NDArray[Any] | Tensor,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    transform_batch: Transform = None,
    library_size: float | NDArray[Any] | Tensor | None = None,
) -> Observation:
    """The distribution of observations at points of the latent space.

    Parameters
    ----------
    z
        Points, shape (n, k); on the simplex for a logistic-normal latent space.
    adata, indices
        The n cells whose covariates are used, as in
        :meth:`get_latent_representation`.
    transform_batch
        A category of the batch in place of the cells' own, or a mapping from columns
        to one category each, as in :meth:`get_normalized_expression`.
    library_size
        Molecules, one number or one per cell; None for the observed library, the
        size factor, or the exponential of the mean of q(l|x).

    Returns
    -------
    A distribution of :mod:`vivace.distributions`, n x g, with ``log_prob``,
    ``sample``, ``mu`` (or ``rate``), ``scale``, and ``theta`` and ``zi_logits``
    where the likelihood has them. Dense: n x g numbers of each.

    Raises
    ------
    ShapeError
        If ``z`` is not of shape (n, k), or ``library_size`` not of length n.
    DataError
        If ``transform_batch`` is not a category of the batch.
    """
    cells = self._cells(adata, indices, None, repeats=True)
    n, k = len(cells), self.config.n_latent
    z_nk = float_tensor("z", z)
    if tuple(z_nk.shape) != (n, k):
        raise ShapeError(
            f"z has shape {tuple(z_nk.shape)}, but {n} cells and {k} latent dimensions need "
            f"({n}, {k}); choose the cells with indices."
        )
    library_n = None if library_size is None else _check_library(library_size, n)
    codes = self.schema.codes(transform_batch)
    if len(codes) > 1:
        raise OptionError(
            f"transform_batch names {len(codes)} combinations, but decode gives one distribution "
            "per cell; call it once for each."
        )
    network = cells.network.eval()
    encodes_library = library_n is None and network.library_encoder is not None
    batch = cells.source.gather(cells.rows, counts=encodes_library).to(network.device)
    if library_n is None:
        log_library_n = network.log_library(batch)
    else:
        log_library_n = library_n.to(network.device).log()
    z_nk = z_nk.to(network.device, log_library_n.dtype)
    rates = network.rates(z_nk, with_codes(batch, codes[0]), log_library_n)
    return observation_distribution(network, rates)


def decode_cells(
    cells: Cells, codes: Codes, n_samples: int, seed: int, title: str = "Decoding"
) -> Iterator[tuple[slice, int, Observation]]:
    """The observation distribution of each minibatch at each sample of z and of a latent library.

    With ``n_samples=0``, the distribution at the means of q(z, l|x).
    """
    network = cells.network
    generators = child_generators(seed, n_samples)
    for part, batch, inference in cells.encoded(title):
        recoded = with_codes(batch, codes)
        inputs = decoder_inputs(network, batch, inference, generators)
        for i, (point_nk, log_library_n) in enumerate(inputs):
            rates = network.rates(point_nk, recoded, log_library_n)
            yield part, i, observation_distribution(network, rates)


def observation_distribution(network: VAE, rates: Rates) -> Observation:
    """The distribution with the parameters ``rates``."""
    likelihood = network.config.gene_likelihood
    unchecked = {"validate_args": False}  # the network's parameters are valid
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


def _check_library(library_size: object, n_cells: int) -> Tensor:
    """Library sizes as a tensor, shape (n,)."""
    library_n = float_tensor("library_size", library_size)
    if library_n.ndim > 1 or len(library_n.reshape(-1)) not in (1, n_cells):
        raise ShapeError(
            f"library_size has shape {tuple(library_n.shape)}; give one number, or one for each of "
            f"the {n_cells} cells."
        )
    if not (library_n > 0).all():
        raise OptionError("library_size must be above 0; leave it None for the observed one.")
    return library_n.expand(n_cells)
