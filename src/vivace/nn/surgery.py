"""Architectural surgery: a network that has grown by categories, and what of it is trained.

A network for a query is the reference's with a row more, in every weight that sees
categories, for each category that the query has and the reference has not (our linear
maps store the inputs in rows).  What is not trained stays the same bit by bit: the
optimiser is only given the rows that are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from vivace.nn.decoder import Decoder
from vivace.nn.encoder import Encoder
from vivace.nn.layers import Activation, BatchNorm, columns_of

if TYPE_CHECKING:
    from vivace.nn.vae import VAE


@dataclass(frozen=True)
class Surgery:
    """What a network for a query knew before, and what of it is frozen.

    Parameters
    ----------
    n_batches, n_categories, n_labels
        Categories of the reference.
    unfrozen
        Everything is trained, whatever the other flags say.
    freeze_dropout
        No dropout.
    freeze_expression
        The first layer of the encoders, but for new categories.
    freeze_decoder_first_layer
        The first layer of the decoder, but for new categories.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Batch norm, which then uses its running statistics.
    """

    n_batches: int
    n_categories: tuple[int, ...]
    n_labels: int
    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False

    @property
    def keeps_encoder(self) -> bool:
        """Whether cells of the reference stay where they are in the latent space."""
        return not self.unfrozen and self.freeze_expression and self.freeze_batchnorm_encoder

    def __post_init__(self) -> None:
        numbers = (self.n_batches, self.n_labels, *self.n_categories)
        if any(type(n) is not int or n < 1 for n in numbers):
            raise ValueError(f"numbers of categories {numbers}")
        flags = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("n_")}
        wrong = [name for name, value in flags.items() if not isinstance(value, bool)]
        if wrong:
            raise ValueError(f"{wrong[0]} is neither true nor false")

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"n_categories": list(self.n_categories)}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        return cls(**{**parts, "n_categories": tuple(parts["n_categories"])})


@dataclass(frozen=True)
class Part:
    """A parameter that is trained, or a stretch of its rows.

    Parameters
    ----------
    name
        Of the parameter in the network.
    parameter
        The whole of it.
    rows
        Those that are trained; None for all.
    """

    name: str
    parameter: nn.Parameter
    rows: slice | None = None


def trained_parts(network: VAE) -> list[Part]:
    """What the optimiser may change: everything, unless surgery has frozen some."""
    surgery = network.surgery
    named = dict(network.named_parameters())
    if surgery is None or surgery.unfrozen:
        return [Part(name, parameter) for name, parameter in named.items()]
    whole = _trained_whole(network, surgery)
    injected = dict.fromkeys(_injected(network), _new_rows(network, surgery))
    rows = dict(injected)
    rows |= {name: [slice(known, n)] for name, known, n in _tables(network, surgery)}
    parts = []
    for name, parameter in named.items():
        if name in whole:
            parts.append(Part(name, parameter))
            continue
        offset = len(parameter) - sum(network.one_hot_sizes) if name in injected else 0
        for new in rows.get(name, []):
            if new.start < new.stop:
                stretch = slice(offset + new.start, offset + new.stop)
                parts.append(Part(name, parameter, stretch))
    return parts


def operate(network: VAE, surgery: Surgery) -> None:
    """Freeze what ``surgery`` says; the weights are there already."""
    _check_fit(network, surgery)
    network.surgery = surgery
    if surgery.unfrozen:
        return
    trained = {part.name for part in trained_parts(network)}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in network.named_modules():
        encoding = "encoder" in name
        if isinstance(module, BatchNorm):
            module.frozen = (
                surgery.freeze_batchnorm_encoder if encoding else surgery.freeze_batchnorm_decoder
            )
        if isinstance(module, Activation) and surgery.freeze_dropout:
            module.dropout = 0.0
        if isinstance(module, Encoder):
            module.genes_frozen = surgery.freeze_expression


def _check_fit(network: VAE, surgery: Surgery) -> None:
    """Refuse to know more categories than there are."""
    dims = network.dims
    there = (dims.n_batches, *dims.n_categories)
    known = (surgery.n_batches, *surgery.n_categories)
    if len(known) != len(there) or any(a > b for a, b in zip(known, there, strict=True)):
        raise ValueError(f"{known} categories are known of {there}")


def grown(reference: Mapping[str, Tensor], network: VAE, surgery: Surgery) -> dict[str, Tensor]:
    """The reference's weights for ``network``, which has more categories.

    What is known is copied.  New categories start at the mean of the known ones; where
    the reference had one category only, and so no row for it, that one gets zeros.
    The prior of a new batch's library is left as the network has it.
    """
    tables = {name: known for name, known, _ in _tables(network, surgery)}
    injected = set(_injected(network))
    weights = {}
    for name, new in network.state_dict().items():
        old = reference[name].to(new.device)
        if name in injected:
            weights[name] = _grown_rows(old, new, network, surgery)
        elif name in tables:
            mean = old.mean(0, keepdim=True).expand(len(new) - len(old), -1)
            weights[name] = torch.cat([old, mean])
        elif name in ("library_mean", "library_variance"):
            weights[name] = torch.cat([old, new[len(old) :]])
        else:
            weights[name] = old.clone()
    return weights


def _grown_rows(old: Tensor, new: Tensor, network: VAE, surgery: Surgery) -> Tensor:
    """A weight whose last rows are those of one-hot categories, covariate after covariate."""
    known = _known(network, surgery)
    widths = columns_of(known)
    at = len(old) - sum(widths)
    blocks = [old[:at]]
    for n_known, width, n in zip(known, widths, network.one_hot_sizes, strict=True):
        if n == 0:
            continue
        block = old[at : at + width] if width else torch.zeros_like(new[:n_known])
        blocks += [block, block.mean(0, keepdim=True).expand(n - n_known, -1)]
        at += width
    return torch.cat(blocks)


def _known(network: VAE, surgery: Surgery) -> list[int]:
    """Categories of the reference, for each covariate that may have one-hot columns."""
    embedded = network.batch_embedding is not None
    return [0 if embedded else surgery.n_batches, *surgery.n_categories]


def _new_rows(network: VAE, surgery: Surgery) -> list[slice]:
    """Rows of new categories among those of all categories."""
    found, at = [], 0
    for n_known, n in zip(_known(network, surgery), network.one_hot_sizes, strict=True):
        if n:
            found.append(slice(at + n_known, at + n))
        at += n
    return found


def _tables(network: VAE, surgery: Surgery) -> Iterator[tuple[str, int, int]]:
    """Parameters with a row a category: name, rows of the reference, rows."""
    dims = network.dims
    if network.batch_embedding is not None:
        yield "batch_embedding.weight", surgery.n_batches, dims.n_batches
    if network.log_theta is not None and network.config.dispersion == "gene-batch":
        yield "log_theta", surgery.n_batches, dims.n_batches
    if network.log_theta is not None and network.config.dispersion == "gene-label":
        yield "log_theta", surgery.n_labels, dims.n_labels


def _injected(network: VAE) -> Iterator[str]:
    """Names of the weights whose last rows are those of categories."""
    encoders = {"encoder": network.encoder, "library_encoder": network.library_encoder}
    for name, encoder in encoders.items():
        if encoder is not None and encoder.uses_covariates:
            yield from _layers(name, encoder)
    decoder = network.decoder
    if isinstance(decoder, Decoder):
        yield from _layers("decoder", decoder)
        return
    heads = {"scale": decoder.scale, "dropout": decoder.dropout, "theta": decoder.theta}
    yield from (f"decoder.{name}.weight" for name, head in heads.items() if head is not None)


def _layers(name: str, module: Encoder | Decoder) -> Iterator[str]:
    depth = len(module.linears) if module.inject else 1
    yield from (f"{name}.linears.{i}.weight" for i in range(depth))


def _trained_whole(network: VAE, surgery: Surgery) -> set[str]:
    """Names of the parameters that the flags leave to training."""
    found = set()
    linear = not isinstance(network.decoder, Decoder)
    heads = {n for n in _injected(network) if linear and n.startswith("decoder.")}  # first and only
    for name, _ in network.named_parameters():
        side = "encoder" if name.split(".")[0].endswith("encoder") else "decoder"
        if ".linears.0." in name or name in heads:
            frozen = (
                surgery.freeze_expression
                if side == "encoder"
                else surgery.freeze_decoder_first_layer
            )
        elif ".batch_norm." in name:
            frozen = (
                surgery.freeze_batchnorm_encoder
                if side == "encoder"
                else surgery.freeze_batchnorm_decoder
            )
        else:
            frozen = True
        if not frozen:
            found.add(name)
    return found
