"""Weights of scvi-tools' SCVI and LinearSCVI under our names.

Layout of scvi-tools 1.4.2: every linear map stores its weight output-major (ours
is input-major), and each hidden layer is a numbered pair of linear map and batch
norm.  Its state dict always holds a library encoder, a dispersion decoder and a
dropout decoder; those that the network does not use are left out here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vivace.config import ModelConfig
from vivace.errors import ModelFileError
from vivace.ops.count_nll import LIKELIHOODS

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def weights_from_scvi_tools(
    state: Mapping[str, Tensor], config: ModelConfig, size_factor: bool = False
) -> dict[str, Tensor]:
    """Rename and transpose the weights of an scvi-tools SCVI or LinearSCVI.

    Parameters
    ----------
    state
        ``model_state_dict`` as scvi-tools 1.4.2 saved it.
    config
        Options of the model: which of the tensors it uses.
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
    family = LIKELIHOODS[config.gene_likelihood]
    per_cell = family.dispersed and config.dispersion == "gene-cell"
    weights = _encoder(state, "encoder", "z_encoder")
    if not (config.use_observed_lib_size or size_factor):
        weights |= _encoder(state, "library_encoder", "l_encoder")
        weights["library_mean"] = _get(state, "library_log_means").flatten()
        weights["library_variance"] = _get(state, "library_log_vars").flatten()
    if config.batch_representation == "embedding":
        weights["batch_embedding.weight"] = _get(state, "_embeddings_dict.batch.weight")
    if config.linear_decoder:
        weights |= _linear_head(state, "decoder.scale", "decoder.factor_regressor")
        if family.zero_inflated:
            weights |= _linear_head(state, "decoder.dropout", "decoder.px_dropout_decoder")
    else:
        weights |= _stack(state, "decoder", "decoder.px_decoder")
        weights |= _linear(state, "decoder.scale", "decoder.px_scale_decoder.0")
        if family.zero_inflated:
            weights |= _linear(state, "decoder.dropout", "decoder.px_dropout_decoder")
        if per_cell:
            weights |= _linear(state, "decoder.theta", "decoder.px_r_decoder")
    if family.dispersed and not per_cell:
        log_theta = _get(state, "px_r")  # theirs has one column a category
        weights["log_theta"] = log_theta if log_theta.ndim == 1 else log_theta.T.contiguous()
    return weights


def _encoder(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    mean = _linear(state, f"{ours}.latent", f"{theirs}.mean_encoder")
    variance = _linear(state, f"{ours}.latent", f"{theirs}.var_encoder")
    both = {name: torch.cat((mean[name], variance[name]), dim=-1) for name in mean}
    return _stack(state, ours, f"{theirs}.encoder") | both


def _stack(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """Hidden layers, each a linear map and perhaps batch norm."""
    weights: dict[str, Tensor] = {}
    for i in range(len(_layers(state, theirs))):
        layer = f"{theirs}.fc_layers.Layer {i}"
        weights |= _linear(state, f"{ours}.linears.{i}", f"{layer}.0")
        weights |= _batch_norm(state, f"{ours}.activations.{i}.batch_norm", f"{layer}.1")
    return weights


def _linear_head(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """A head of LinearSCVI: a linear map without bias, and perhaps batch norm."""
    layer = f"{theirs}.fc_layers.Layer 0"
    weight = _get(state, f"{layer}.0.weight").T.contiguous()
    norm = _batch_norm(state, f"{ours}.batch_norm", f"{layer}.1")
    return {f"{ours}.weight": weight} | norm


def _batch_norm(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    if f"{theirs}.weight" not in state:
        return {}
    return {f"{ours}.{name}": _get(state, f"{theirs}.{name}") for name in _BATCH_NORM}


def _layers(state: Mapping[str, Tensor], stack: str) -> set[str]:
    pattern = re.compile(re.escape(stack) + r"\.fc_layers\.Layer (\d+)\.0\.weight")
    found = {m.group(1) for m in map(pattern.fullmatch, state) if m}
    if not found:
        raise _missing(f"{stack}.fc_layers.Layer 0.0.weight")
    return found


def _linear(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    return {
        f"{ours}.weight": _get(state, f"{theirs}.weight").T.contiguous(),
        f"{ours}.bias": _get(state, f"{theirs}.bias"),
    }


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise _missing(name)
    return state[name]


def _missing(name: str) -> ModelFileError:
    return ModelFileError(
        f"The scvi-tools model holds no tensor {name!r}; save it with scvi-tools 1.4.2."
    )
