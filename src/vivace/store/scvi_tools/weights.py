"""Converts weights of scvi-tools' SCVI and LinearSCVI to ours, and back.

In scvi-tools 1.4.2 every linear map stores its weight output-major (ours is input-major), each
hidden layer is a numbered pair of linear map and batch norm, and mean and log-variance are two
maps (ours is one). Its state dict always holds a library encoder, a dispersion decoder and a
dropout decoder. Those that our network does not use are stored apart, and written back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vivace.config import ModelConfig
from vivace.data.columns import Scale
from vivace.errors import ModelFileError
from vivace.nn import Dimensions
from vivace.ops.count_nll import LIKELIHOODS

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Pair:
    """A tensor of our network and the same in scvi-tools'.

    Parameters
    ----------
    vivace_name
        Name in our network.
    scvi_names
        Name in scvi-tools'; two names for two tensors that are one in our network.
    transposed
        Whether scvi-tools' tensor is the transpose of ours.
    """

    vivace_name: str
    scvi_names: tuple[str, ...]
    transposed: bool = False


def weights_from_scvi_tools(
    state: Mapping[str, Tensor], config: ModelConfig, size_factor: bool = False
) -> dict[str, Tensor]:
    """The tensors of our network, from those of an scvi-tools model.

    Parameters
    ----------
    state
        The ``model_state_dict`` that scvi-tools 1.4.2 saved.
    config
        Options of the model; they determine which tensors it uses.
    size_factor
        Whether the mean is scaled by a size factor.

    Returns
    -------
    Weights for ``VAE.load_state_dict``.

    Raises
    ------
    ModelFileError
        If a tensor is missing; the message names it.
    """
    weights = {}
    for pair in _pairs(config, size_factor):
        parts = [_get_tensor(state, name) for name in pair.scvi_names]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[pair.vivace_name] = _transpose(value) if pair.transposed else value
    for name in ("library_mean", "library_variance"):  # scvi-tools' have one row
        if name in weights:
            weights[name] = weights[name].flatten()
    return weights


def unused_in_scvi_tools(
    state: Mapping[str, Tensor], config: ModelConfig, size_factor: bool = False
) -> dict[str, Tensor]:
    """The tensors of an scvi-tools model that our network does not use, under their names."""
    used = {name for pair in _pairs(config, size_factor) for name in pair.scvi_names}
    return {name: value for name, value in state.items() if name not in used}


def weights_to_scvi_tools(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    dims: Dimensions,
    unused: Mapping[str, Tensor],
    scales: Sequence[Scale] = (),
) -> dict[str, Tensor]:
    """The complete state dict of an scvi-tools model.

    ``unused`` are the tensors that :func:`unused_in_scvi_tools` gave when the model was loaded.
    Those still missing are initialised as in scvi-tools, from a fixed seed. ``scales`` are those
    of the continuous covariates, which scvi-tools reads in their own unit.
    """
    weights = {k: v.detach().cpu() for k, v in weights.items()}
    if scales:
        weights |= _unscaled(weights, scales, dims.n_genes, config.n_latent)
    state: dict[str, Tensor] = {}
    for pair in _pairs(config, dims.size_factor):
        value = weights[pair.vivace_name]
        value = _transpose(value) if pair.transposed else value
        if pair.vivace_name in ("library_mean", "library_variance"):
            value = value[None, :]
        parts = value.chunk(len(pair.scvi_names)) if len(pair.scvi_names) > 1 else (value,)
        state |= {
            name: part.contiguous() for name, part in zip(pair.scvi_names, parts, strict=True)
        }
    generator = torch.Generator().manual_seed(0)
    for name, make in _missing_makers(config, dims).items():
        if name not in state:
            state[name] = unused[name].cpu() if name in unused else make(generator)
    return state


def _unscaled(
    weights: Mapping[str, Tensor], scales: Sequence[Scale], n_genes: int, n_latent: int
) -> dict[str, Tensor]:
    """The first layers with weights for covariates x in place of (x - mean) / sd."""
    mean, sd = torch.tensor([(s.mean, s.sd) for s in scales], dtype=torch.float64).T
    factor = torch.where(sd > 0, 1 / sd, 0.0)  # without spread there is no effect
    changed = {}
    for part, start in (("encoder", n_genes), ("library_encoder", n_genes), ("decoder", n_latent)):
        name = f"{part}.linears.0"
        weight = weights.get(f"{name}.weight")
        if weight is None or len(weight) == start:  # an encoder that reads no covariates
            continue
        rows = slice(start, start + len(scales))
        bias = weights[f"{name}.bias"]
        scaled = weight[rows].double() * factor[:, None]
        changed[f"{name}.weight"] = weight.clone()
        changed[f"{name}.weight"][rows] = scaled.to(weight.dtype)
        changed[f"{name}.bias"] = (bias.double() - mean @ scaled).to(bias.dtype)
    return changed


def _pairs(config: ModelConfig, size_factor: bool) -> Iterator[Pair]:
    """Every tensor of a network with these options, under both names."""
    family = LIKELIHOODS[config.gene_likelihood]
    per_cell = family.dispersed and config.dispersion == "gene-cell"
    yield from _encoder("encoder", "z_encoder", config, config.n_layers)
    if not (config.use_observed_lib_size or size_factor):
        yield from _encoder("library_encoder", "l_encoder", config, 1)
        yield Pair("library_mean", ("library_log_means",))
        yield Pair("library_variance", ("library_log_vars",))
    if config.batch_representation == "embedding":
        yield Pair("batch_embedding.weight", ("_embeddings_dict.batch.weight",))
    normed = config.use_batch_norm in ("decoder", "both")
    if config.linear_decoder:
        heads = [("scale", "factor_regressor")]
        heads += [("dropout", "px_dropout_decoder")] if family.zero_inflated else []
        for vivace_name, scvi_name in heads:
            layer = f"decoder.{scvi_name}.fc_layers.Layer 0"
            yield Pair(f"decoder.{vivace_name}.weight", (f"{layer}.0.weight",), transposed=True)
            if normed:
                yield from _norm(f"decoder.{vivace_name}.batch_norm", f"{layer}.1")
    else:
        yield from _stack("decoder", "decoder.px_decoder", config.n_layers, normed)
        yield from _linear("decoder.scale", "decoder.px_scale_decoder.0")
        if family.zero_inflated:
            yield from _linear("decoder.dropout", "decoder.px_dropout_decoder")
        if per_cell:
            yield from _linear("decoder.theta", "decoder.px_r_decoder")
    if family.dispersed and not per_cell:
        yield Pair(
            "log_theta", ("px_r",), transposed=True
        )  # scvi-tools' has one column per category


def _encoder(
    vivace_name: str, scvi_name: str, config: ModelConfig, n_layers: int
) -> Iterator[Pair]:
    normed = config.use_batch_norm in ("encoder", "both")
    yield from _stack(vivace_name, f"{scvi_name}.encoder", n_layers, normed)
    for name, transposed in (("weight", True), ("bias", False)):
        heads = (f"{scvi_name}.mean_encoder.{name}", f"{scvi_name}.var_encoder.{name}")
        yield Pair(f"{vivace_name}.latent.{name}", heads, transposed)


def _stack(vivace_name: str, scvi_name: str, n_layers: int, normed: bool) -> Iterator[Pair]:
    for i in range(n_layers):
        layer = f"{scvi_name}.fc_layers.Layer {i}"
        yield from _linear(f"{vivace_name}.linears.{i}", f"{layer}.0")
        if normed:
            yield from _norm(f"{vivace_name}.activations.{i}.batch_norm", f"{layer}.1")


def _linear(vivace_name: str, scvi_name: str) -> Iterator[Pair]:
    yield Pair(f"{vivace_name}.weight", (f"{scvi_name}.weight",), transposed=True)
    yield Pair(f"{vivace_name}.bias", (f"{scvi_name}.bias",))


def _norm(vivace_name: str, scvi_name: str) -> Iterator[Pair]:
    for name in _NORM:
        yield Pair(f"{vivace_name}.{name}", (f"{scvi_name}.{name}",))


def _transpose(value: Tensor) -> Tensor:
    return value if value.ndim == 1 else value.T.contiguous()


def _get_tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ModelFileError(
            f"The scvi-tools model holds no tensor {name!r}; save it with scvi-tools 1.4.2."
        )
    return state[name]


# ---- tensors that scvi-tools always makes -----------------------------------

Maker = Callable[[torch.Generator], Tensor]


def _missing_makers(config: ModelConfig, dims: Dimensions) -> dict[str, Maker]:
    """Functions that make the tensors of scvi-tools that our network may not have."""
    makers: dict[str, Maker] = {}
    g, h = dims.n_genes, config.n_hidden
    n_in = g
    if config.encode_covariates and not config.linear_decoder:
        embedded = config.batch_representation == "embedding"
        n_in += dims.n_continuous + (config.batch_embedding_dim if embedded else 0)
        n_in += sum(n for n in dims.n_categories if n > 1)
        n_in += dims.n_batches if dims.n_batches > 1 and not embedded else 0
    makers |= _linear_makers("l_encoder.encoder.fc_layers.Layer 0.0", n_in, h)
    if config.use_batch_norm in ("encoder", "both"):
        makers |= _norm_makers("l_encoder.encoder.fc_layers.Layer 0.1", h)
    makers |= _linear_makers("l_encoder.mean_encoder", h, 1)
    makers |= _linear_makers("l_encoder.var_encoder", h, 1)
    if config.linear_decoder:
        n_in = config.n_latent + (dims.n_batches if dims.n_batches > 1 else 0)
        layer = "decoder.px_dropout_decoder.fc_layers.Layer 0"
        makers[f"{layer}.0.weight"] = _linear_makers("", n_in, g)[".weight"]
        if config.use_batch_norm in ("decoder", "both"):
            makers |= _norm_makers(f"{layer}.1", g)
    else:
        makers |= _linear_makers("decoder.px_r_decoder", h, g)
        makers |= _linear_makers("decoder.px_dropout_decoder", h, g)
    if config.dispersion != "gene-cell":
        columns = {"gene": (), "gene-batch": (dims.n_batches,), "gene-label": (dims.n_labels,)}
        shape = (g, *columns[config.dispersion])
        makers["px_r"] = lambda generator: torch.randn(
            shape, dtype=torch.float32, generator=generator
        )
    return makers


def _linear_makers(name: str, n_in: int, n_out: int) -> dict[str, Maker]:
    bound = 1.0 / math.sqrt(n_in)
    return {
        f"{name}.weight": lambda gen: torch.empty(n_out, n_in, dtype=torch.float32).uniform_(
            -bound, bound, generator=gen
        ),
        f"{name}.bias": lambda gen: torch.empty(n_out, dtype=torch.float32).uniform_(
            -bound, bound, generator=gen
        ),
    }


def _norm_makers(name: str, n: int) -> dict[str, Maker]:
    return {
        f"{name}.weight": lambda _: torch.ones(n, dtype=torch.float32),
        f"{name}.bias": lambda _: torch.zeros(n, dtype=torch.float32),
        f"{name}.running_mean": lambda _: torch.zeros(n, dtype=torch.float32),
        f"{name}.running_var": lambda _: torch.ones(n, dtype=torch.float32),
        f"{name}.num_batches_tracked": lambda _: torch.tensor(0, dtype=torch.int64),
    }
