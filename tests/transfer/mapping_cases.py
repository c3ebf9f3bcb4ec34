"""References of every architecture, queries for them, and checks of what training changed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vivace import SCVI, LinearSCVI
from vivace.errors import VivaceWarning

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL: dict[str, Any] = {"n_hidden": 8, "n_latent": 3}
SEES: dict[str, Any] = {"encode_covariates": True}
SHORT: dict[str, Any] = {"max_steps": 3, "seed": 0, "accelerator": "cpu", "progress": False}
DECAYING = {  # a recipe whose weight decay pulls at vectors too
    **SHORT,
    "recipe": "scvi-tools",
    "plan_kwargs": {"weight_decay": 0.1},
}
NO_STEP = {**SHORT, "max_steps": 1, "plan_kwargs": {"lr": 0.0}}
COVARIATES = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "categorical_covariate_keys": ["donor", "lane"],
    "continuous_covariate_keys": ["age"],
}


def rows_after(start: int) -> dict[int, list[int]]:
    """Row of each new category of ``query``: rows of the known ones of its covariate.

    One-hot columns are b0 b1 (a8 a9) d0 d1 d2 (d00) l0 l1 (k), those in brackets being new.
    Before them come 30 genes (encoder) or 3 latent dimensions (decoder) and the age, or
    8 hidden units (deeper layers).
    """
    batches, donors = [start, start + 1], [start + 2, start + 3, start + 4]
    lanes = [start + 5, start + 6]
    return {start + 2: batches, start + 3: batches, start + 7: donors, start + 10: lanes}


@dataclass(frozen=True)
class Architecture:
    """A model class, its arguments, and for each weight that sees categories its new rows."""

    new: dict[str, dict[int, list[int]]]
    options: dict[str, Any] = field(default_factory=dict)
    cls: type[SCVI] | type[LinearSCVI] = SCVI


ENCODER = {"encoder.linears.0.weight": rows_after(31)}
DEEP_ENCODER = {"encoder.linears.1.weight": rows_after(8)}
LIBRARY = {"library_encoder.linears.0.weight": rows_after(31)}
DECODER = {"decoder.linears.0.weight": rows_after(4)}
DEEP_DECODER = {"decoder.linears.1.weight": rows_after(8)}
ARCHITECTURES = {
    "mapping": Architecture(ENCODER | DECODER, {"preset": "mapping"}),
    "seeing": Architecture(ENCODER | DECODER, SEES),
    "blind": Architecture(DECODER),
    "two layers, deep": Architecture(
        ENCODER | DEEP_ENCODER | DECODER | DEEP_DECODER, {**SEES, "n_layers": 2}
    ),
    "two layers, not deep": Architecture(
        ENCODER | DECODER, {**SEES, "n_layers": 2, "deeply_inject_covariates": False}
    ),
    "embedding": Architecture(  # its five columns stand between the age and d0
        {
            "batch_embedding.weight": {2: [0, 1], 3: [0, 1]},
            "encoder.linears.0.weight": {39: [36, 37, 38], 42: [39, 40]},
            "encoder.linears.1.weight": {11: [8, 9, 10], 14: [11, 12]},
            "decoder.linears.0.weight": {12: [9, 10, 11], 15: [12, 13]},
            "decoder.linears.1.weight": {11: [8, 9, 10], 14: [11, 12]},
        },
        {**SEES, "n_layers": 2, "batch_representation": "embedding"},
    ),
    "gene-batch": Architecture(
        ENCODER | DECODER | {"log_theta": {2: [0, 1], 3: [0, 1]}},
        {**SEES, "dispersion": "gene-batch"},
    ),
    "gene-label": Architecture(
        ENCODER | DECODER | {"log_theta": {3: [0, 1, 2]}}, {**SEES, "dispersion": "gene-label"}
    ),
    "gene-cell": Architecture(ENCODER | DECODER, {**SEES, "dispersion": "gene-cell"}),
    "latent library": Architecture(
        ENCODER | LIBRARY | DECODER, {**SEES, "use_observed_lib_size": False}
    ),
    "linear": Architecture(
        ENCODER
        | LIBRARY
        | {"decoder.scale.weight": rows_after(4), "decoder.dropout.weight": rows_after(4)},
        {**SEES, "gene_likelihood": "zinb"},
        LinearSCVI,
    ),
}

# ---- cells and models --------------------------------------------------------


def with_lane(adata: AnnData) -> AnnData:
    """With a second categorical covariate."""
    adata.obs["lane"] = np.array(["l0", "l1"])[np.arange(adata.n_obs) // 2 % 2]
    return adata


def of_batch(tiny: Callable[..., AnnData], *batches: str, n_cells: int = 60) -> AnnData:
    """Cells of these batches, by turns."""
    adata = with_lane(tiny(n_cells=n_cells, seed=7))
    adata.obs["batch"] = np.resize(np.array(batches), n_cells)
    return adata


def trained_on(adata: AnnData, cls: Any = SCVI, options: dict[str, Any] = SEES, **keys: Any) -> Any:
    """A small reference; ``keys`` go to ``setup_anndata``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has the single value", VivaceWarning)
        cls.setup_anndata(adata, **keys)
    model = cls(adata, **SMALL, **options)
    model.train(**SHORT)
    return model


def mapped(adata: AnnData, reference: Any, **flags: Any) -> Any:
    """A query's model, with or without the warning that no cell will move."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The encoder of the reference", VivaceWarning)
        return type(reference).load_query_data(adata, reference, **flags)


def assert_unchanged(after: AnnData, before: AnnData) -> None:
    """A query is unchanged, whether it is refused or mapped."""
    if isinstance(before.X, np.ndarray):
        np.testing.assert_array_equal(after.X, before.X)
    else:
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(after.X, part), getattr(before.X, part))
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert dict(after.uns) == dict(before.uns)
    assert set(after.layers) == set(before.layers)
    assert set(after.obsm) == set(before.obsm)


# ---- weights -----------------------------------------------------------------

Place = tuple[str, int | None]


def get_state(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers, on the CPU."""
    return {name: value.cpu().clone() for name, value in model.module.state_dict().items()}


def without(values: torch.Tensor, rows: Iterable[int]) -> np.ndarray:
    """What is left when rows are taken out."""
    return np.delete(values.numpy(), list(rows), axis=0) if rows else values.numpy()


def hashes(model: Any) -> dict[Place, str]:
    """Of every row of what has rows, and of every vector, parameters and buffers alike."""
    result = {}
    for name, tensor in get_state(model).items():
        rows = list(enumerate(tensor)) if tensor.ndim > 1 else [(None, tensor)]
        for row, values in rows:
            result[name, row] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return result


def changed(before: dict[Place, str], model: Any) -> set[Place]:
    """The rows and vectors that have changed."""
    after = hashes(model)
    assert after.keys() == before.keys()
    return {at for at in after if after[at] != before[at]}


def new_rows(name: str) -> set[Place]:
    """All rows of an architecture that belong to new categories."""
    return {(weight, row) for weight, rows in ARCHITECTURES[name].new.items() for row in rows}


# ---- answers -----------------------------------------------------------------


def answers(model: Any, adata: AnnData) -> dict[str, Any]:
    """What a model says about cells: encoder, decoder, dispersions and library."""
    mean, variance = model.get_latent_representation(adata, return_dist=True)
    return {
        "mean": mean,
        "variance": variance,
        "expression": model.get_normalized_expression(adata, return_numpy=True, seed=0),
        "elbo": model.get_elbo(adata, n_samples=2, seed=0),
    }


def assert_same_answers(one: Any, other: Any, adata: AnnData) -> None:
    """Equal up to the order of floating-point sums."""
    expected = answers(other, adata)
    for name, value in answers(one, adata).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
