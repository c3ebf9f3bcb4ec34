"""scvi-tools' default training on the data sets of quality.py: quality over epochs.

Usage: python benchmarks/trajectories.py --raw DATA --folder SCRATCH --peer-python PEER

Takes hours. Each finished run is added to results/trajectories.json, and runs in that file are not
repeated. Seconds are processor time on one thread; speed ratios are measured in pairs by other
scripts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import anndata

import vivace
from common import BENCHMARKS, provenance, run_json
from quality import (
    SETS,
    arguments,
    elbo,
    knn,
    load_peer,
    marginal_ll,
    prepare,
    scib,
    setup,
    slug,
)

RESULTS = BENCHMARKS / "results" / "trajectories.json"
SEEDS = (0, 1, 2)


def run(name: str, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One default run of scvi-tools, scored after the epochs in MARKS."""
    chosen = SETS[name]
    kept = folder / f"peer_{seed}"
    kept.mkdir(exist_ok=True)
    peer = run_json(
        args.peer_python, "peer.py", "trajectory",
        folder / "fit.h5ad", chosen.batch_key, "zinb", seed, kept,
        OMP_NUM_THREADS=str(args.threads),
    )  # fmt: skip
    data, fit, test = (anndata.read_h5ad(folder / f"{f}.h5ad") for f in ("data", "fit", "test"))
    validation = fit[peer.pop("validation_cells")].copy()
    model = _model(fit, chosen.batch_key)
    marks = []
    files = sorted(kept.glob("epoch_*.pt"), key=_epoch)
    for file in files:
        load_peer(model, file)
        latent = model.get_latent_representation(data)
        marks.append(
            {
                "epoch": _epoch(file),
                "validation_elbo": elbo(model, validation),
                "test_elbo": elbo(model, test),
                "knn": knn(latent, data.obs[chosen.label_key]),
            }
        )
    best = max(range(len(marks)), key=lambda i: marks[i]["validation_elbo"])
    for i in {best, len(marks) - 1}:
        load_peer(model, files[i])
        marks[i]["marginal_ll"] = marginal_ll(model, test)
    return {
        "seconds": round(peer["seconds"], 1),
        "seconds_per_epoch": round(peer["seconds"] / peer["epochs"], 3),
        "epochs": peer["epochs"],
        "threads": peer["threads"],
        "best_epoch_on_validation": marks[best]["epoch"],
        "marks": marks,
        "versions": peer["versions"],
        "machine": provenance()["machine"],
    }


def scores(name: str, folder: Path, done: dict[str, Any], peer_python: str) -> None:
    """Add scib-metrics' scores, at the last epoch and the best by validation, to runs without."""
    missing = {
        (seed, mark["epoch"]): mark
        for seed, result in done.items()
        for mark in result["marks"]
        if mark["epoch"] in (result["epochs"], result["best_epoch_on_validation"])
        and "scib" not in mark
        and (folder / f"peer_{seed}" / f"epoch_{mark['epoch']}.pt").exists()
    }
    if not missing:
        return
    data, fit = (anndata.read_h5ad(folder / f"{f}.h5ad") for f in ("data", "fit"))
    model = _model(fit, SETS[name].batch_key)
    latents = {}
    for seed, epoch in missing:
        load_peer(model, folder / f"peer_{seed}" / f"epoch_{epoch}.pt")
        latents[f"{seed} {epoch}"] = model.get_latent_representation(data)
    result = scib(folder, name, latents, peer_python)
    for (seed, epoch), mark in missing.items():
        mark["scib"] = result[f"{seed} {epoch}"]


def _model(fit: anndata.AnnData, batch_key: str) -> vivace.SCVI:
    setup(fit, batch_key)
    model = vivace.SCVI(fit)
    model.train(max_steps=1, progress=False)  # questions need a trained model
    return model


def _epoch(file: Path) -> int:
    return int(file.stem.split("_")[1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for seed in args.seeds:
        for name in args.only:
            if str(seed) in read().get(name, {}):
                continue
            folder = prepare(name, args.raw, args.folder, args.peer_python)
            result = run(name, seed, folder, args)
            _keep(name, {str(seed): result})
            print(name, seed, json.dumps(result["marks"][-1]), flush=True)
    for name in args.only:
        runs = read().get(name, {})
        scores(name, args.folder / slug(name), runs, args.peer_python)
        _keep(name, runs)


def read() -> dict[str, Any]:
    """The finished runs, by data set and seed."""
    sets: dict[str, Any] = json.loads(RESULTS.read_text())["sets"] if RESULTS.exists() else {}
    return sets


def _keep(name: str, runs: dict[str, Any]) -> None:
    """Merge runs into the file, to which other processes may have added some."""
    sets = read()
    sets[name] = dict(sorted((sets.get(name, {}) | runs).items()))
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps({"benchmark": "trajectories", "sets": sets}, indent=1) + "\n")
    new.replace(RESULTS)


if __name__ == "__main__":
    main()
