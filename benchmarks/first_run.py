"""Compare both libraries: speed at scvi-tools' settings, and default training.

Usage: python benchmarks/first_run.py --raw kang_ifnb_dev.h5ad --peer-python .peer/bin/python --save
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import anndata
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import vivace
from common import provenance, report, run_json
from quality import elbo, load_peer, split


def paired_speed(args: argparse.Namespace, data: Path, likelihood: str) -> dict[str, Any]:
    """Cells per second of both libraries, alternating, several times."""
    peer, vivace_results = [], []
    for _ in range(args.pairs):
        peer.append(
            run_json(args.peer_python, "peer.py", "speed", data, args.batch_key, likelihood, 3)
        )
        vivace_results.append(
            run_json(sys.executable, "ours.py", "speed", data, args.batch_key, likelihood, 15)
        )
    rates = [
        (p["cells_per_second"], o["cells_per_second"])
        for p, o in zip(peer, vivace_results, strict=True)
    ]
    ratios = sorted(o / p for p, o in rates)
    return {
        "scvi_tools_cells_per_second": round(median(p for p, _ in rates)),
        "vivace_cells_per_second": round(median(o for _, o in rates)),
        "ratio": round(median(ratios), 2),
        "ratio_of_each_pair": [round(r, 2) for r in ratios],
    }


def quality(model: vivace.SCVI, test: anndata.AnnData) -> dict[str, float]:
    """ELBO of the test cells, and kNN accuracy of their cell types."""
    latent = model.get_latent_representation(test)
    knn = KNeighborsClassifier(15)
    labels = test.obs["cell_type"].astype(str)
    return {
        "test_elbo": elbo(model, test),
        "cell_type_knn_accuracy": round(
            float(cross_val_score(knn, latent, labels, cv=5).mean()), 3
        ),
    }


def default_training(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and test quality of both libraries' ``train()`` without arguments."""
    fit, test_file = folder / "fit.h5ad", folder / "test.h5ad"
    shared = (fit, args.batch_key, args.likelihood, args.seed)
    vivace_results = run_json(sys.executable, "ours.py", "default", *shared, folder / "model")
    peer = run_json(args.peer_python, "peer.py", "default", *shared, folder / "peer.pt")
    test = anndata.read_h5ad(test_file)
    model = vivace.SCVI.load(folder / "model")
    vivace_results |= quality(model, test)
    load_peer(model, folder / "peer.pt")
    peer |= quality(model, test)
    return {
        "vivace": vivace_results,
        "scvi_tools": peer,
        "time_ratio": round(peer["seconds"] / vivace_results["seconds"], 1),
        "test_elbo_gain": round(vivace_results["test_elbo"] - peer["test_elbo"], 2),
        "test_cells": test.n_obs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path, help="h5ad of raw counts")
    parser.add_argument("--batch-key", default="condition")
    parser.add_argument(
        "--genes", default=2000, type=int, help="number of most variable genes to keep"
    )
    parser.add_argument("--peer-python", required=True, help="Python that has scvi-tools 1.4.2")
    parser.add_argument("--pairs", default=3, type=int)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "data.h5ad"
        prepared = run_json(
            args.peer_python, "peer.py", "prepare", args.raw, data, args.batch_key, args.genes
        )
        split(data, args.batch_key, folder / "fit.h5ad", folder / "test.h5ad")
        result = {
            "benchmark": "first_run",
            "data": {"file": args.raw.name, "cells": prepared["cells"], "genes": prepared["genes"]},
            "peer": prepared["versions"],
            **provenance(),
            "speed": {k: paired_speed(args, data, k) for k in ("zinb", "nb")},
        }
        if not args.speed_only:
            result["default_train"] = default_training(args, folder)
    report("first_run", result, args.save)


if __name__ == "__main__":
    main()
