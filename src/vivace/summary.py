"""A model in a few lines of text: options, data, training."""

from __future__ import annotations

import math

from vivace.config import ModelConfig
from vivace.data import Minified
from vivace.data.schema import Schema
from vivace.state import TrainState, count_epochs, verdict

_LEAST_COMPILATION = 0.05  # seconds; less is not mentioned


def summarise(
    name: str,
    config: ModelConfig,
    schema: Schema,
    state: TrainState,
    n_cells: int | None,
    minified: Minified | None,
) -> str:
    """The text of ``model.summary``."""
    layers = f"{config.n_layers} layer{'s' if config.n_layers > 1 else ''} of {config.n_hidden}"
    columns = "".join(
        f"; {meaning} {place}{f' ({content})' if content else ''}"
        for meaning, place, content in schema.summary()[1:]
    )
    lines = [
        f"{name}: {config.gene_likelihood} likelihood, {config.n_latent} latent dimensions, {layers}",
        f"{'no data attached; ' if n_cells is None else f'data: {n_cells:,} cells x '}"
        f"{len(schema.genes):,} genes{'' if minified is None else ', minified'}{columns}",
    ]
    return "\n".join(lines + _training_lines(state))


def _training_lines(state: TrainState) -> list[str]:
    facts = state.summary
    if not state.trained:
        return ["not trained: call train()"]
    if not state.history:
        if "scvi_tools" in facts:
            return ["trained by scvi-tools; its history is not read"]
        return ["not trained further: the reference knew every category of the query"]
    last = state.history[-1]
    validation = last["elbo_validation"]
    lines = [
        f"trained: {count_epochs(facts['epochs'])} on {facts['train_cells']:,} cells in "
        f"{facts['seconds']:.1f} s (recipe {facts['recipe']!r}, final KL weight "
        f"{last['kl_weight']:.2g}), negative ELBO {last['elbo_train']:.1f} train"
        + ("" if math.isnan(validation) else f", {validation:.1f} validation")
    ]
    if (seconds := facts.get("compile_seconds", 0.0)) >= _LEAST_COMPILATION:
        lines.append(f"compiled: kernels for this processor in {seconds:.1f} s, once")
    if (sentence := verdict(facts)) is not None:  # the first release stored none
        lines.append(f"verdict: {sentence}")
    return lines
