"""Architectural surgery: grows a network by new categories, and freezes parts of it.

A network for a query has, for each category that the reference lacks, one more row in
every weight that reads categories. Frozen parts stay the same bit for bit, because the
optimiser is given only the rows that are trained.

The functions walk over the layers of a network. A layer says which of its rows belong to
categories (``category_rows``), which flag freezes it (``role``) and what else it does
when something is frozen (``freeze``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vivace.nn.category_rows import CategoryRows, HasCategoryRows
from vivace.nn.surgery import Freezable, HasRole, Surgery
from vivace.nn.vae import VAE


@dataclass(frozen=True)
class Part:
    """A parameter that is trained, or some of its rows.

    Parameters
    ----------
    name
        Name of the parameter in the network.
    parameter
        The whole parameter.
    rows
        The rows that are trained; None for all.
    """

    name: str
    parameter: nn.Parameter
    rows: slice | None = None


def trained_parts(network: VAE) -> list[Part]:
    """The parts that the optimiser may change: all, unless surgery has frozen some."""
    surgery = network.surgery
    if surgery is None or surgery.unfrozen:
        return [Part(name, parameter) for name, parameter in network.named_parameters()]
    parts = []
    for path, layer in network.named_modules():
        trains_all = isinstance(layer, HasRole) and surgery.trains(layer.role)
        category_rows = _category_rows(layer)
        for name, parameter in layer.named_parameters(prefix=path, recurse=False):
            if trains_all:
                parts.append(Part(name, parameter))
                continue
            rows = category_rows.get(name.rpartition(".")[2])
            if rows is not None:
                new = rows.find_new(len(parameter), surgery)
                parts += [Part(name, parameter, stretch) for stretch in new]
    return parts


def trains_encoder(network: VAE) -> bool:
    """Whether training can move cells in the latent space."""
    read = list(network.encoder.parameters())
    if network.batch_embedding is not None and network.encoder.uses_covariates:
        read += network.batch_embedding.parameters()
    trained = {id(part.parameter) for part in trained_parts(network)}
    return any(id(parameter) in trained for parameter in read)


def grow_weights(
    reference: Mapping[str, Tensor], network: VAE, surgery: Surgery
) -> dict[str, Tensor]:
    """The weights of a reference for a network that has more categories.

    Parameters
    ----------
    reference
        State dict of the reference's network.
    network
        Network for the query, with its initial weights.
    surgery
        Categories of the reference.

    Returns
    -------
    State dict for ``network``: a copy, with rows for new categories.
    """
    weights = {}
    for name, initial in network.state_dict().items():
        known = reference[name].to(initial.device)
        path, _, own_name = name.rpartition(".")
        rows = _category_rows(network.get_submodule(path)).get(own_name)
        weights[name] = known.clone() if rows is None else rows.grow(known, initial, surgery)
    return weights


def freeze_network(network: VAE, surgery: Surgery) -> None:
    """Apply the flags of ``surgery`` to a network that has its weights already."""
    _check_categories(network, surgery)
    network.surgery = surgery
    if surgery.unfrozen:
        return
    trained = {part.name for part in trained_parts(network)}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    for layer in network.modules():
        if isinstance(layer, Freezable):
            layer.freeze(surgery)


def _category_rows(layer: nn.Module) -> Mapping[str, CategoryRows]:
    return layer.category_rows if isinstance(layer, HasCategoryRows) else {}


def _check_categories(network: VAE, surgery: Surgery) -> None:
    """Refuse a reference with more categories than the network."""
    n_all = (network.dims.n_batches, *network.dims.n_categories)
    n_known = surgery.n_known
    if len(n_known) != len(n_all) or any(a > b for a, b in zip(n_known, n_all, strict=True)):
        raise ValueError(f"the reference has {n_known} categories, but the network {n_all}")
