"""scvi-tools' part of the comparisons; run with a Python interpreter that has scvi-tools 1.4.2.

Usage: python peer.py prepare RAW.h5ad OUT.h5ad BATCH_KEY N_GENES
       python peer.py speed DATA.h5ad BATCH_KEY LIKELIHOOD EPOCHS [OPTIONS_AS_JSON]
       python peer.py default DATA.h5ad BATCH_KEY LIKELIHOOD SEED WEIGHTS.pt
       python peer.py trajectory DATA.h5ad BATCH_KEY LIKELIHOOD SEED FOLDER
       python peer.py scib DATA.h5ad BATCH_KEY LABEL_KEY LATENTS.npz
       python peer.py answers DATA.h5ad BATCH_KEY LIKELIHOOD
       python peer.py de DATA.h5ad BATCH_KEY WEIGHTS.pt ROWS.npz OUT.npz
       python peer.py de_speed DATA.h5ad BATCH_KEY GROUPBY GROUP
       python peer.py map_query REFERENCE.h5ad QUERY.h5ad BATCH_KEY SEED OUT.npz
       python peer.py judge MODEL DATA.h5ad N_SAMPLES LATENT.npy [MODEL_TO_SAVE]

Prints one JSON line. A BATCH_KEY of "none" means no batch.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np

from common import (
    COVARIATES,
    DE_WAYS,
    MARGINAL_CELLS,
    MARGINAL_SAMPLES,
    PEER_SHARE,
    batch_column,
    de_answers,
    memory_mb,
    time_once,
    time_questions,
)

warnings.filterwarnings("ignore")


def prepare(raw: str, out: str, batch_key: str, n_genes: str) -> dict[str, object]:
    """Keep the most variable genes, and drop cells without counts of them."""
    import scanpy as sc

    adata = sc.read_h5ad(raw)
    sc.pp.highly_variable_genes(
        adata,
        n_top_genes=int(n_genes),
        flavor="seurat_v3",
        batch_key=batch_column(batch_key),
        subset=True,
    )
    sc.pp.filter_cells(adata, min_counts=1)
    adata.write_h5ad(out)
    return {"cells": adata.n_obs, "genes": adata.n_vars}


def _model(  # type: ignore[no-untyped-def]
    data: str,
    batch_key: str,
    likelihood: str,
    seed: int,
    covariates: bool = False,
    dispersion: str = "gene",
):
    import anndata
    import scvi

    scvi.settings.seed = seed
    scvi.settings.verbosity = 40
    adata = anndata.read_h5ad(data)
    scvi.model.SCVI.setup_anndata(
        adata, batch_key=batch_column(batch_key), **(COVARIATES if covariates else {})
    )
    return scvi.model.SCVI(adata, gene_likelihood=likelihood, dispersion=dispersion)


def speed(
    data: str, batch_key: str, likelihood: str, epochs: str, options: str = "{}"
) -> dict[str, object]:
    """Training cells per second with the defaults, after one epoch of warm-up."""
    chosen = json.loads(options)
    batch_size = chosen.pop("batch_size", 128)
    model = _model(data, batch_key, likelihood, 0, **chosen)
    model.train(max_epochs=1, batch_size=batch_size, enable_progress_bar=False)
    begun = time.perf_counter()
    model.train(max_epochs=int(epochs), batch_size=batch_size, enable_progress_bar=False)
    seconds = time.perf_counter() - begun
    n_train = len(model.train_indices)
    return {"seconds": seconds, "cells_per_second": int(epochs) * n_train / seconds}


def default(data: str, batch_key: str, likelihood: str, seed: str, out: str) -> dict[str, object]:
    """Wall time of a default ``train()``; writes the weights."""
    import torch

    model = _model(data, batch_key, likelihood, int(seed))
    begun = time.perf_counter()
    model.train(enable_progress_bar=False)
    seconds = time.perf_counter() - begun
    torch.save(model.module.state_dict(), out)
    elbo = model.history["elbo_train"]
    last = float(elbo.iloc[-1, 0])
    return {"seconds": seconds, "epochs": len(elbo), "elbo_train": last, "peak_mb": memory_mb()}


MARKS = (10, 20, 50, 100, 150, 200, 300, 400)  # epochs whose weights are kept


def trajectory(
    data: str, batch_key: str, likelihood: str, seed: str, folder: str
) -> dict[str, object]:
    """Default ``train()``; writes the weights after the epochs of MARKS.

    Seconds are processor time, minus that of writing weights, so other processes do not count; with
    one thread they equal wall time.
    """
    import torch
    from lightning.pytorch.callbacks import Callback

    class Keep(Callback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_epoch_end(self, trainer, module) -> None:  # type: ignore[no-untyped-def]
            begun, epoch = time.process_time(), trainer.current_epoch + 1
            if epoch in MARKS:
                torch.save(module.module.state_dict(), f"{folder}/epoch_{epoch}.pt")
            self.seconds += time.process_time() - begun

    keep, model = Keep(), _model(data, batch_key, likelihood, int(seed))
    begun = time.process_time()
    model.train(enable_progress_bar=False, callbacks=[keep])
    seconds = time.process_time() - begun - keep.seconds
    epochs = len(model.history["elbo_train"])
    torch.save(model.module.state_dict(), f"{folder}/epoch_{epochs}.pt")
    return {
        "seconds": seconds,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "validation_cells": model.validation_indices.tolist(),
    }


def scib(data: str, batch_key: str, label_key: str, latents: str) -> dict[str, object]:
    """Scores of scib-metrics for every latent representation in an npz of cells x latent arrays."""
    import anndata
    import scanpy as sc
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    adata = anndata.read_h5ad(data)
    if batch_key == "none":
        adata.obs["none"] = "one"
    counts = adata.copy()
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    sc.pp.pca(counts)
    adata.obsm["Unintegrated"] = counts.obsm["X_pca"]
    with np.load(latents) as arrays:
        names = list(arrays)
        for name in names:
            adata.obsm[name] = arrays[name]
    one = adata.obs[batch_key].nunique() == 1
    bench = Benchmarker(
        adata,
        batch_key=batch_key,
        label_key=label_key,
        embedding_obsm_keys=names,
        bio_conservation_metrics=BioConservation(nmi_ari_cluster_labels_kmeans=True),
        batch_correction_metrics=None if one else BatchCorrection(),
        pre_integrated_embedding_obsm_key="Unintegrated",
        n_jobs=1,
        progress_bar=False,
    )
    bench.benchmark()
    table = bench.get_results(min_max_scale=False)
    rows = {n: {k: round(float(v), 4) for k, v in table.loc[n].items()} for n in names}
    return {"scores": rows}


def answers(data: str, batch_key: str, likelihood: str) -> dict[str, object]:
    """Seconds of questions to a model trained for one epoch, of the cells of a file."""
    model = _model(data, batch_key, likelihood, 0)
    model.train(max_epochs=1, enable_progress_bar=False)
    ask = {
        "latent": model.get_latent_representation,
        "expression": lambda: model.get_normalized_expression(return_numpy=True),
        "samples": model.posterior_predictive_sample,
        "elbo": model.get_elbo,
    }
    seconds = time_questions(ask)
    # one pass of its thousand; all take the same time
    first_cells = np.arange(MARGINAL_CELLS)
    passes = MARGINAL_SAMPLES // PEER_SHARE
    seconds["marginal_ll"] = PEER_SHARE * time_once(
        lambda: model.get_marginal_ll(indices=first_cells, n_mc_samples=passes)
    )
    return {"seconds": seconds}


def de(data: str, batch_key: str, weights: str, rows: str, out: str) -> dict[str, object]:
    """Differential expression of pairs of row sets, in three ways; arrays go to an npz file.

    ``rows`` contains the arrays "first_0", "second_0", "first_1" and so on.
    """
    import torch

    model = _model(data, batch_key, "zinb", 0)
    model.module.load_state_dict(torch.load(weights, weights_only=True))
    model.is_trained_ = True
    model.module.eval()
    genes = model.adata.var_names
    with np.load(rows) as sets:

        def ask(i: int, **options: str):  # type: ignore[no-untyped-def]
            sides = {"idx1": sets[f"first_{i}"], "idx2": sets[f"second_{i}"]}
            return model.differential_expression(**sides, silent=True, **options)

        result = de_answers(ask, genes, len(sets.files) // 2, DE_WAYS)
    np.savez(out, **result)
    return {"tests": len(result["three_score"])}


def de_speed(data: str, batch_key: str, groupby: str, group: str) -> dict[str, object]:
    """Seconds of one test of a group against the other cells, after one epoch of training."""
    model = _model(data, batch_key, "zinb", 0)
    model.train(max_epochs=1, enable_progress_bar=False)
    ask = {"groupby": groupby, "group1": group, "mode": "change", "silent": True}
    return {"seconds": time_questions({"one": lambda: model.differential_expression(**ask)})}


# the options of scvi-tools' tutorial on reference mapping
_REFERENCE = {
    "use_layer_norm": "both",
    "use_batch_norm": "none",
    "encode_covariates": True,
    "dropout_rate": 0.2,
    "n_layers": 2,
}
_QUERY_EPOCHS = 200


def map_query(reference: str, query: str, batch_key: str, seed: str, out: str) -> dict[str, object]:
    """Train a reference and map a query as recommended; latent means go to an npz file.

    Seconds are processor time; with one thread they equal wall time.
    """
    import anndata
    import scvi
    import torch

    scvi.settings.seed = int(seed)
    scvi.settings.verbosity = 40
    known, new = anndata.read_h5ad(reference), anndata.read_h5ad(query)
    scvi.model.SCVI.setup_anndata(known, batch_key=batch_key)
    begun = time.process_time()
    model = scvi.model.SCVI(known, **_REFERENCE)
    model.train(enable_progress_bar=False)
    trained = time.process_time()
    scvi.model.SCVI.prepare_query_anndata(new, model)
    mapped = scvi.model.SCVI.load_query_data(new, model)
    mapped.train(
        max_epochs=_QUERY_EPOCHS, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False
    )
    done = time.process_time()
    np.savez(
        out,
        reference=mapped.get_latent_representation(known),
        query=mapped.get_latent_representation(new),
        reference_before=model.get_latent_representation(),
    )
    return {
        "reference_seconds": trained - begun,
        "query_seconds": done - trained,
        "reference_epochs": len(model.history["elbo_train"]),
        "query_epochs": len(mapped.history["elbo_train"]),
        "threads": torch.get_num_threads(),
    }


def judge(path: str, data: str, n_samples: str, latent: str, out: str = "") -> dict[str, object]:
    """ELBO of a saved model; writes its latent means, and the model after two more epochs."""
    import anndata
    import scvi

    scvi.settings.seed = 0
    scvi.settings.verbosity = 40
    adata = anndata.read_h5ad(data)
    model = scvi.model.SCVI.load(path, adata, accelerator="cpu")
    elbos = [float(model.get_elbo()) for _ in range(int(n_samples))]
    np.save(latent, model.get_latent_representation())
    if out:
        model.train(max_epochs=2, enable_progress_bar=False)
        model.save(out)
    return {"scvi_tools_elbo": round(float(np.mean(elbos)), 3)}


if __name__ == "__main__":
    import importlib.metadata

    commands = (prepare, speed, default, trajectory, scib, answers, de, de_speed, map_query, judge)
    command = {c.__name__: c for c in commands}[sys.argv[1]]
    result = command(*sys.argv[2:])
    versions = {p: importlib.metadata.version(p) for p in ("scvi-tools", "torch")}
    print(json.dumps({**result, "versions": versions}))
