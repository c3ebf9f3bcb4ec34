"""With weights saved by scvi-tools 1.4.2, the network reproduces scvi-tools' numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from vivace.config import ModelConfig
from vivace.data import CountBatch, read_cells
from vivace.data.columns import NO_SCALE
from vivace.data.schema import Declarations, Schema
from vivace.errors import ModelFileError
from vivace.nn import VAE, Dimensions, LinearDecoder
from vivace.ops import Backend
from vivace.store.scvi_tools import weights_from_scvi_tools
from vivace.store.scvi_tools.read import _load

GOLDEN = Path(__file__).parents[1] / "golden"
FIRST = 24  # cells x genes arrays hold the first 24 cells


def stored_state(folder: str) -> dict[str, torch.Tensor]:
    state = _load(GOLDEN / folder / "model.pt")["model_state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class Case:
    network: VAE
    cells: CountBatch
    dtype: torch.dtype
    expected: dict[str, np.ndarray]

    def z(self) -> torch.Tensor:
        return torch.from_numpy(self.expected["z"]).to(self.dtype)


def assert_matches(name: str, got: torch.Tensor, b: np.ndarray) -> None:
    """Design, section 9: |a - b| <= tol (|b| + 1e-3 max|b|), elementwise."""
    tolerance = 1e-5 if name == "neg_log_likelihood" else 1e-4
    a = got.double().numpy().reshape(b.shape)
    bound = tolerance * (np.abs(b) + 1e-3 * np.abs(b).max())
    assert (np.abs(a - b) <= bound).all(), f"{name} is off by {np.abs(a - b).max():.3g}"


FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
LINEAR = {"linear_decoder": True, "use_observed_lib_size": False, "gene_likelihood": "nb"}


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def configured(folder: str) -> tuple[ModelConfig, Declarations]:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    defaults = LINEAR if config["class"] == "LinearSCVI" else {}
    return ModelConfig(**{**defaults, **config["constructor"]}), Declarations(
        **config["setup_anndata"]
    )


@pytest.fixture(params=[("auto", "float32"), ("reference", "float32"), ("reference", "float64")])
def case(request: pytest.FixtureRequest, folder: str) -> Case:
    """ "auto" uses the kernels, except for the normal likelihood, which has none."""
    backend: Backend = request.param[0]
    dtype = getattr(torch, request.param[1])
    config, declarations = configured(folder)
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    schema = Schema.from_anndata(adata, declarations)
    schema = replace(schema, scales=(NO_SCALE,) * len(schema.scales))  # as in scvi-tools
    size_factor = declarations.size_factor_key is not None
    dims = Dimensions(
        len(schema.genes),
        len(schema.batches),
        tuple(len(c) for c in schema.categories),
        schema.n_continuous,
        size_factor,
        len(schema.labels),
    )
    network = VAE(config, dims, backend)
    network.load_state_dict(weights_from_scvi_tools(stored_state(folder), config, size_factor))
    cells = read_cells(adata, schema).gather(np.arange(adata.n_obs))
    cells = replace(cells, library=cells.library.to(dtype))
    if size_factor:
        cells = replace(cells, size_factor=cells.size_factor.to(dtype))
    expected = dict(np.load(GOLDEN / folder / "expected.npz"))
    return Case(network.to(dtype).eval(), cells, dtype, expected)


def result(case: Case) -> dict[str, torch.Tensor]:
    """Every array that a golden folder may contain, computed with vivace's network."""
    network, cells = case.network, case.cells
    inference = network.encode(cells)
    point = network.place(case.z())
    rates = network.rates(point, cells)
    last = replace(cells, batch=torch.full_like(cells.batch, network.dims.n_batches - 1))
    normal = network.config.gene_likelihood == "normal"
    got = {
        "qz_mean": inference.z.mean,
        "qz_var": inference.z.variance,
        "z": case.z(),
        "library": cells.library.log()
        if inference.library is None
        else inference.library.mean[:, 0],
        "px_scale": rates.scale[:FIRST],
        "px_mu": rates.mu[:FIRST],
        "px_rate": rates.mu[:FIRST],
        "px_scale_transform_last_batch": network.rates(point, last).scale[:FIRST],
        "neg_log_likelihood": network.nll(point, cells),
        "kl_divergence_z": inference.z.kl(),
        "kl_divergence_l": network.library_kl(inference, cells),
    }
    if rates.theta is not None:
        got["px_sigma" if normal else "px_theta"] = rates.theta.expand_as(rates.mu)[:FIRST]
    if rates.zi_logits is not None:
        got["px_zi_logits"] = rates.zi_logits[:FIRST]
    if inference.library is not None:
        got |= {"ql_mean": inference.library.mean, "ql_var": inference.library.variance}
    if isinstance(network.decoder, LinearDecoder):
        got["loadings"] = network.decoder.scale.loadings(network.config.n_latent)
    return got


@torch.no_grad()
def test_every_array_matches(case: Case) -> None:
    got = result(case)
    assert set(case.expected) <= set(got), sorted(set(case.expected) - set(got))
    assert len(case.expected) >= 10
    for name, wanted in case.expected.items():
        assert_matches(name, got[name], wanted)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["zinb_default"])
def test_the_tolerance_tells_one_batch_from_another(case: Case) -> None:
    name = "px_scale_transform_last_batch"
    own_batch = case.network.rates(case.z(), case.cells).scale[:FIRST]
    with pytest.raises(AssertionError, match=f"{name} is off"):
        assert_matches(name, own_batch, case.expected[name])


@pytest.mark.parametrize(
    "name", ["px_r", "z_encoder.mean_encoder.bias", "z_encoder.encoder.fc_layers.Layer 0.0.weight"]
)
def test_a_missing_tensor_is_named(name: str) -> None:
    state = {k: v for k, v in stored_state("zinb_default").items() if k != name}
    with pytest.raises(ModelFileError, match=f"holds no tensor '{name}'"):
        weights_from_scvi_tools(state, ModelConfig())
