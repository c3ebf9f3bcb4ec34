"""Weights of scvi-tools' SCVI under our names.

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

from vivace.errors import ModelFileError

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_STACKS = {"encoder": "z_encoder.encoder", "decoder": "decoder.px_decoder"}


def weights_from_scvi_tools(
    state: Mapping[str, Tensor], *, dispersed: bool = True, zero_inflated: bool = True
) -> dict[str, Tensor]:
    """Rename and transpose the weights of an scvi-tools SCVI.

    Parameters
    ----------
    state
        ``model_state_dict`` as scvi-tools 1.4.2 saved it.
    dispersed, zero_inflated
        Whether the likelihood has a dispersion and zero-inflation logits.

    Returns
    -------
    Weights for ``VAE.load_state_dict``.

    Raises
    ------
    ModelFileError
        If a tensor is missing; the message names it.
    """
    weights: dict[str, Tensor] = {}
    for ours, theirs in _STACKS.items():
        n_layers = len(_layers(state, theirs))
        for i in range(n_layers):
            layer = f"{theirs}.fc_layers.Layer {i}"
            weights |= _linear(state, f"{ours}.linears.{i}", f"{layer}.0")
            if f"{layer}.1.weight" in state:
                norm = f"{ours}.activations.{i}.batch_norm"
                weights |= {f"{norm}.{k}": _get(state, f"{layer}.1.{k}") for k in _BATCH_NORM}
    mean = _linear(state, "encoder.latent", "z_encoder.mean_encoder")
    log_variance = _linear(state, "encoder.latent", "z_encoder.var_encoder")
    weights |= {name: torch.cat((mean[name], log_variance[name]), dim=-1) for name in mean}
    weights |= _linear(state, "decoder.scale", "decoder.px_scale_decoder.0")
    if zero_inflated:
        weights |= _linear(state, "decoder.dropout", "decoder.px_dropout_decoder")
    if dispersed:
        weights["log_theta"] = _get(state, "px_r")
    return weights


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
