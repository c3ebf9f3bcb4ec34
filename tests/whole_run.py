"""Everything that a user does with a model, and the answers: set-up, training, questions, files."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch.distributions import Distribution

from simulated import simulate_cells
from vivace import SCVI, LinearSCVI
from vivace.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vivace.model import load

QUESTIONS: dict[str, dict[str, Any]] = {
    "decode": {"z": np.linspace(-1, 1, 180).reshape(60, 3)},
    "differential_abundance": {"sample_key": "donor"},
    "differential_expression": {"groupby": "cell_type", "n_samples_overall": 200},
    "get_aggregated_posterior": {},
    "get_elbo": {"return_mean": False},
    "get_feature_correlation_matrix": {"n_samples": 3},
    "get_gene_programs": {},
    "get_importance_weights": {"n_mc_samples": 20},
    "get_latent_library_size": {},
    "get_latent_representation": {"give_mean": False},
    "get_likelihood_parameters": {},
    "get_loadings": {},
    "get_marginal_ll": {"n_mc_samples": 10, "return_mean": False},
    "get_normalized_expression": {"n_samples": 2, "transform_batch": "b1"},
    "get_reconstruction_error": {"return_mean": False},
    "posterior_predictive_check": {"n_samples": 3},
    "posterior_predictive_sample": {"n_samples": 2},
    "view_anndata_setup": {},
}
NETWORKS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "fused": (SCVI, {}),
    "autograd": (
        SCVI,
        {
            "dispersion": "gene-label", "gene_likelihood": "nb", "n_layers": 2,
            "use_layer_norm": "both", "use_batch_norm": "none", "use_observed_lib_size": False,
            "batch_representation": "embedding", "encode_covariates": True,
            "latent_distribution": "ln",
        },
    ),
    "linear": (LinearSCVI, {}),
    "poisson": (SCVI, {"gene_likelihood": "poisson", "n_layers": 2}),
}  # fmt: skip


def simulate(n_cells: int = 60, n_genes: int = 30, seed: int = 0) -> AnnData:
    """Cells of which no column determines another."""
    adata, cells = simulate_cells(n_cells, n_genes, seed), np.arange(n_cells)
    adata.obs["batch"] = np.array(["b0", "b1"])[cells // 4 % 2]
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"])
    adata.obs["donor"] = np.array(["d0", "d1", "d2", "d3"])[cells % 4]
    return adata


def make_model(cls: type[Any] = SCVI, n_cells: int = 60, **options: Any) -> Any:
    """A trained model, whose training was continued once."""
    adata = simulate(n_cells)
    cls.setup_anndata(
        adata,
        batch_key="batch",
        labels_key="cell_type",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = cls(adata, **{"n_hidden": 16, "n_latent": 3} | options)
    for seed in (1, 2):
        model.train(2, batch_size=20, seed=seed, progress=False, accelerator="cpu")
    return model


def run_everything(folder: Path) -> dict[str, Any]:
    """The answers by name, as arrays; files go to ``folder``."""
    answers: dict[str, Any] = {}
    for name, (cls, options) in NETWORKS.items():
        model = make_model(cls, **options)
        ask_everything(model, name, answers)
        for form in ("vivace", "scvi-tools")[: 1 if name == "linear" else 2]:
            path = folder / f"{name} {form}"
            model.save(path, format=form, save_anndata=True)
            _add(f"{path.name}.latent", load(path).get_latent_representation(), answers)
    reference = make_model()
    query = simulate(40, seed=5)[:, 2:].copy()
    query.obs["batch"] = "new"
    SCVI.prepare_query_anndata(query, reference)
    mapped = SCVI.load_query_data(query, reference, unfrozen=True)
    mapped.train(1, batch_size=16, seed=3, progress=False, accelerator="cpu")
    _add("query", mapped.get_latent_representation(), answers)
    _add("labels", mapped.transfer_labels(None, "cell_type", n_samples=2, seed=1), answers)
    samples = {"groupby": "cell_type", "sample_key": "donor", "seed": 1}
    _add("samples", make_model(n_cells=400).differential_expression(**samples), answers)
    ask_distributions(answers)
    reference.minify_adata()
    reference.save(folder / "small")
    _add("minified", load(folder / "small").get_normalized_expression(), answers)
    return answers


def ask_everything(model: Any, title: str, answers: dict[str, Any]) -> None:
    """Add the answers of a model to all questions that it has."""
    _add(f"{title}.history", model.history.drop(columns=["seconds", "compile_seconds"]), answers)
    for name, arguments in QUESTIONS.items():
        if not hasattr(model, name):
            continue
        method = getattr(model, name)
        has_seed = "seed" in inspect.signature(method).parameters
        _add(f"{title}.{name}", method(**arguments, **{"seed": 4} if has_seed else {}), answers)


def ask_distributions(answers: dict[str, Any]) -> None:
    """Tails that underflow, in the type of the parameters."""
    mu, theta = torch.from_numpy(np.geomspace(1e-4, 1e4, 40, dtype=np.float32).reshape(2, 20))
    x, u = torch.from_numpy(np.array([[0.0], [1e3], [1e6]], np.float32)), theta / theta.sum()
    for family in (
        NegativeBinomial(mu=mu, theta=theta),
        ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=theta.log()),
        Poisson(theta),
    ):
        generator = torch.Generator("cpu").manual_seed(1)
        for ask in (family.log_prob, family.cdf):
            _add(f"{type(family).__name__}.{ask.__name__}", ask(x).numpy(), answers)
        _add(f"{type(family).__name__}.icdf", family.icdf(u).numpy(), answers)
        sample = family.sample((2,), generator=generator)
        _add(f"{type(family).__name__}.sample", sample.numpy(), answers)


def _add(name: str, value: Any, answers: dict[str, Any]) -> None:
    """Add an answer, taken apart into arrays."""
    if isinstance(value, pd.DataFrame):
        for column in value:
            _add(f"{name}.{column}", value[column], answers)
        _add(f"{name}.index", value.index, answers)
    elif isinstance(value, pd.Series | pd.Index):
        kind = value.dtype.kind
        answers[name] = value.to_numpy() if kind in "biuf" else np.array(value.astype(str), str)
    elif isinstance(value, dict):
        for key, part in value.items():
            _add(f"{name}.{key}", part, answers)
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            _add(f"{name}.{i}", part, answers)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _add(f"{name}.{field.name}", getattr(value, field.name), answers)
    elif isinstance(value, Distribution):
        answers[name] = np.stack([value.mean.numpy(), value.variance.numpy()])
    elif hasattr(value, "todense"):
        answers[name] = np.asarray(value.todense())
    elif value is not None:
        answers[name] = np.asarray(value)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        exec(sys.argv[3])
    np.savez(sys.argv[2], **run_everything(Path(sys.argv[1])))
