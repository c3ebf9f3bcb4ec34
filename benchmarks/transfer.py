"""Reference mapping and label transfer on held-out studies, donors and a stimulus.

Usage: python benchmarks/transfer.py --raw DATA --folder WORK --peer-python PEER [--only TASK ...]
                                     [--peer-only] [--figure FILE] [--save]

Compared with vivace: scvi-tools with the settings of its tutorial on reference mapping, followed by
scikit-learn's 15 nearest neighbours, and a logistic regression on log-normalised counts. The preset
and the transfer were chosen on other data (LOG.md, "Mapping"). Seconds are of processor time with
one thread. scvi-tools is run with --peer-only, once per folder; otherwise its results are taken
from the saved file and marked with their commit. For each task:

* ``accuracy``, ``macro_f1``: of query cells whose label occurs in the reference
* ``ece``: expected calibration error of the label's probability, 15 bins, of these cells
* ``mixing``: share of reference cells among the 30 nearest cells of the same type, relative to
  their share overall; 1 is perfect; mean over types
* ``novelty``: AUROC of a type that is removed from the reference, one at a time (genes were
  selected before its removal)
* ``found``: AUROC of the probability of that type when the reference contains it (an upper limit)
* ``novel_at``: share of cells of known types whose novelty is above 0.9, 0.95, 0.99
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import anndata
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import vivace
from common import BENCHMARKS, provenance, report, run_json
from vivace.transfer.classifiers import log_normalise

KEPT = BENCHMARKS / "results" / "transfer.json"
N_GENES = 2_000
NEIGHBORS = 15
FEWEST = 30  # cells of a type in the query and in the reference, for it to be removed
LEVELS = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Task:
    """A reference and a query.

    Parameters
    ----------
    file : of raw counts
    batch_key, label_key : columns
    query_key, query : cells with ``query`` in the column ``query_key`` are mapped onto the others
    """

    file: str
    batch_key: str
    label_key: str
    query_key: str
    query: str


_STUDIES, _KANG = "pbmc_multistudy_dev.h5ad", "kang_ifnb_dev.h5ad"
_COARSE = "cell_type_coarse"  # whose types are removed
TASKS = {
    "studies, kang": Task(_STUDIES, "batch", _COARSE, "batch", "kang_ctrl"),
    "studies, pbmc3k": Task(_STUDIES, "batch", _COARSE, "batch", "pbmc3k"),
    "studies, zheng": Task(_STUDIES, "batch", _COARSE, "batch", "zheng_facs"),
    "stimulated": Task(_KANG, "condition", "cell_type", "condition", "stim"),
    **{
        f"donor {d[1:]}": Task(_KANG, "donor", "cell_type", "donor", d)
        for d in ("d101", "d1015", "d107", "d1244")
    },
}


def prepare(name: str, raw: Path, folder: Path, peer_python: str) -> Path:
    """The folder of a task, with ``reference.h5ad`` (variable genes) and ``query.h5ad`` (all)."""
    task, prepared = TASKS[name], folder / name.replace(", ", "_").replace(" ", "_")
    if (prepared / "query.h5ad").exists():  # the last that is written
        return prepared
    prepared.mkdir(parents=True, exist_ok=True)
    adata = anndata.read_h5ad(raw / task.file)
    is_query = adata.obs[task.query_key].astype(str) == task.query
    known = adata[~is_query].copy()
    batch_key = task.batch_key if known.obs[task.batch_key].nunique() > 1 else "none"
    known.write_h5ad(prepared / "all.h5ad")
    run_json(
        peer_python, "peer.py", "prepare",
        prepared / "all.h5ad", prepared / "reference.h5ad", batch_key,
        N_GENES,
    )  # fmt: skip
    (prepared / "all.h5ad").unlink()
    adata[is_query].copy().write_h5ad(prepared / "query.h5ad")
    return prepared


def run_peer(name: str, prepared: Path, peer_python: str) -> None:
    """Run scvi-tools once; writes ``peer.npz`` and ``peer.json`` to the folder of the task."""
    if (prepared / "peer.json").exists():
        return
    result = run_json(
        peer_python, "peer.py", "map_query", prepared / "reference.h5ad", prepared / "query.h5ad",
        TASKS[name].batch_key, 0, prepared / "peer.npz", OMP_NUM_THREADS="1",
    )  # fmt: skip
    (prepared / "peer.json").write_text(json.dumps(result))


def transfer_vivace(
    task: Task, reference: anndata.AnnData, query: anndata.AnnData
) -> tuple[vivace.SCVI, pd.DataFrame, dict[str, float]]:
    """Map and label the query; return the results and the seconds of each part."""
    vivace.settings.seed = 0
    begun = time.process_time()
    vivace.SCVI.setup_anndata(reference, batch_key=task.batch_key)
    model = vivace.SCVI(reference, preset="mapping")
    model.train(progress=False)
    trained = time.process_time()
    mapped = vivace.SCVI.load_query_data(query, model)
    mapped.train(progress=False)
    done = time.process_time()
    labels = mapped.transfer_labels(
        None, task.label_key, all_probabilities=True, seed=0, silent=True
    )
    seconds = {
        "reference_seconds": round(trained - begun, 1),
        "query_seconds": round(done - trained, 1),
        "label_seconds": round(time.process_time() - done, 1),
    }
    return mapped, labels, seconds


def compile_kernels() -> None:
    """Compile or load kernels once, so that they do not count towards any task."""
    adata = vivace.datasets.pbmc3k()[:300].copy()
    adata.obs["half"] = np.where(np.arange(300) % 2, "a", "b")
    new = adata.copy()
    new.obs["half"] = "c"
    transfer_vivace(Task("", "half", "cell_type", "", ""), adata, new)


def judged(
    truth: np.ndarray, known: np.ndarray, label: np.ndarray, probability: np.ndarray
) -> dict[str, float]:
    """Accuracy, macro F1 and calibration error of cells whose label is ``known``."""
    right = label[known] == truth[known]
    return {
        "accuracy": round(float(right.mean()), 4),
        "macro_f1": round(float(f1_score(truth[known], label[known], average="macro")), 4),
        "ece": round(calibration_error(probability[known], right), 4),
    }


def calibration_error(probability: np.ndarray, right: np.ndarray, n_bins: int = 15) -> float:
    """Mean absolute difference of probability and share of correct labels, over bins."""
    bins = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    gaps = [
        (bins == b).mean() * abs(probability[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def mixing(
    z_reference: np.ndarray, types_r: np.ndarray, z_query: np.ndarray, types_q: np.ndarray
) -> float:
    """Reference cells near query cells of the same type, over their share of that type."""
    result = []
    for name in np.unique(types_q):
        known, new = z_reference[types_r == name], z_query[types_q == name]
        if min(len(known), len(new)) < FEWEST:
            continue
        both = np.concatenate([known, new])
        nearest = NearestNeighbors(n_neighbors=31).fit(both).kneighbors(new, return_distance=False)
        result.append((nearest[:, 1:] < len(known)).mean() / (len(known) / len(both)))
    return round(float(np.mean(result)), 3)


def logistic(
    reference: anndata.AnnData, query: anndata.AnnData, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Label and probability from logistic regression, and its seconds."""
    begun = time.process_time()
    model = LogisticRegression(max_iter=1_000).fit(log_normalise(reference.X), labels)
    shares = model.predict_proba(log_normalise(query.X))
    seconds = round(time.process_time() - begun, 1)
    return model.classes_[shares.argmax(1)], shares.max(1), seconds


def neighbours(
    z_reference: np.ndarray, labels: np.ndarray, z_query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label and probability from scikit-learn's nearest neighbours."""
    model = KNeighborsClassifier(NEIGHBORS).fit(z_reference, labels)
    shares = model.predict_proba(z_query)
    return model.classes_[shares.argmax(1)], shares.max(1)


def score(name: str, prepared: Path) -> dict[str, Any]:
    """Scores of all three methods on a task."""
    task = TASKS[name]
    reference = anndata.read_h5ad(prepared / "reference.h5ad")
    query = anndata.read_h5ad(prepared / "query.h5ad")
    query = query[:, reference.var_names].copy()
    known_labels = reference.obs[task.label_key].astype(str).to_numpy()
    truth = query.obs[task.label_key].astype(str).to_numpy()
    known = np.isin(truth, known_labels)
    mapped, table, seconds = transfer_vivace(task, reference, query)
    z_r = mapped.get_latent_representation(reference, silent=True)
    z_q = mapped.get_latent_representation(silent=True)
    label, probability = table["label"].to_numpy(str), table["probability"].to_numpy()
    result: dict[str, Any] = {
        "cells": {"reference": reference.n_obs, "query": query.n_obs, "known": int(known.sum())},
        "vivace": judged(truth, known, label, probability)
        | seconds
        | {
            "mixing": mixing(z_r, known_labels, z_q, truth),
            "exponents": {k: round(v, 2) for k, v in table.attrs["exponents"].items()},
            "reliability": reliability(probability[known], label[known] == truth[known]),
            "novel_at": {
                str(at): round(float((table["novelty"][known] > at).mean()), 4) for at in LEVELS
            },
        },
        "vivace, neighbours only": judged(truth, known, *neighbours(z_r, known_labels, z_q)),
    }
    if not known.all():
        result["vivace"]["novelty_of_its_own"] = auroc(~known, table["novelty"])
    label, probability, lr_seconds = logistic(reference, query, known_labels)
    result["logistic"] = judged(truth, known, label, probability) | {"seconds": lr_seconds}
    if (prepared / "peer.json").exists():
        with np.load(prepared / "peer.npz") as arrays:
            z_r, z_q = arrays["reference"], arrays["query"]
            before = arrays["reference_before"]
        peer = json.loads((prepared / "peer.json").read_text())
        result["scvi_tools"] = judged(truth, known, *neighbours(z_r, known_labels, z_q)) | {
            "reference_seconds": round(peer["reference_seconds"], 1),
            "query_seconds": round(peer["query_seconds"], 1),
            "mixing": mixing(z_r, known_labels, z_q, truth),
            "reference_moved": round(float(np.abs(z_r - before).max()), 4),
        }
    else:
        kept = earlier().get(name, {})
        if kept.get("cells") == result["cells"] and "scvi_tools" in kept:
            result["scvi_tools"] = kept["scvi_tools"]
    result["found"] = dict(recognised(task, reference, query, table))
    result["novelty"] = dict(removed(task, reference, query))
    return result


def earlier() -> dict[str, Any]:
    """Tasks of the saved result; scvi-tools' part is marked with its commit."""
    if not KEPT.exists():
        return {}
    kept = json.loads(KEPT.read_text())
    for task in kept["tasks"].values():
        if "scvi_tools" in task:
            task["scvi_tools"].setdefault("of", kept["commit"])
    return dict(kept["tasks"])


def reliability(probability: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Ten bins of the probability: mean probability, share of correct labels, number of cells."""
    bins = np.minimum((probability * 10).astype(int), 9)
    return [
        [
            round(float(probability[bins == b].mean()), 3),
            round(float(right[bins == b].mean()), 3),
            int((bins == b).sum()),
        ]
        for b in np.unique(bins)
    ]


def removed(
    task: Task, reference: anndata.AnnData, query: anndata.AnnData
) -> Iterator[tuple[str, float]]:
    """AUROC of the novelty of each type that is removed from the reference."""
    types_r, types_q, names = removable(reference, query)
    known = np.isin(types_q, types_r)  # without types that are missing anyway
    for name in names:
        _, table, _ = transfer_vivace(task, reference[types_r != name].copy(), query)
        yield name, auroc(types_q[known] == name, table["novelty"][known])


def recognised(
    task: Task, reference: anndata.AnnData, query: anndata.AnnData, table: pd.DataFrame
) -> Iterator[tuple[str, float]]:
    """AUROC of the probability of each type of :func:`removed`, if the reference has it."""
    types_r, types_q, names = removable(reference, query)
    known = np.isin(types_q, types_r)
    labels = reference.obs[task.label_key].astype(str).to_numpy()
    for name in names:
        columns = [f"probability_{label}" for label in np.unique(labels[types_r == name])]
        yield name, auroc(types_q[known] == name, table[columns].sum(axis=1)[known])


def removable(
    reference: anndata.AnnData, query: anndata.AnnData
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Types of both data sets, and those with enough cells in both."""
    types_r, types_q = (a.obs[_COARSE].astype(str).to_numpy() for a in (reference, query))
    names = [
        name
        for name in np.unique(types_q)
        if min((types_r == name).sum(), (types_q == name).sum()) >= FEWEST
    ]
    return types_r, types_q, names


def auroc(truth: np.ndarray, score: pd.Series) -> float:
    """Rounded."""
    return round(float(roc_auc_score(truth, score)), 4)


def averages(tasks: dict[str, Any]) -> dict[str, Any]:
    """Means over the tasks; novelty over all types of all tasks; ratio of the seconds."""
    means: dict[str, Any] = {}
    for method in ("vivace", "scvi_tools", "logistic"):
        rows = [t[method] for t in tasks.values() if method in t]
        if len(rows) == len(tasks):
            numbers = ("accuracy", "macro_f1", "ece", "mixing")
            means[method] = {n: get_mean(r[n] for r in rows) for n in numbers if n in rows[0]}
    for which in ("novelty", "found"):
        means[which] = get_mean(v for t in tasks.values() for v in t[which].values())
    if "scvi_tools" in means and not any("of" in t["scvi_tools"] for t in tasks.values()):
        ratios = [seconds(t["scvi_tools"]) / seconds(t["vivace"]) for t in tasks.values()]
        means["times_faster"] = [round(float(f(ratios)), 1) for f in (np.median, min, max)]
    return means


def seconds(result: dict[str, Any]) -> float:
    """Total seconds."""
    return float(sum(v for k, v in result.items() if k.endswith("_seconds")))


def get_mean(values: Iterable[float]) -> float:
    """Rounded."""
    return round(float(np.mean(list(values))), 4)


def draw(tasks: dict[str, Any], file: Path) -> None:
    """Accuracy of the tasks, reliability of the probabilities, novelty of removed types."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=(1.2, 1, 1.3)
    )
    rows = np.arange(len(tasks))[::-1]
    for method, label, color, marker in (
        ("logistic", "logistic regression", "C0", "s"),
        ("scvi_tools", "scvi-tools 1.4.2, 15 neighbours", "0.45", "D"),
        ("vivace", "vivace", "C3", "o"),
    ):
        values = [t.get(method, {}).get("accuracy", np.nan) for t in tasks.values()]
        axes[0].plot(values, rows, marker, ms=6, color=color, label=label)
    axes[0].set_yticks(rows, list(tasks))
    axes[0].set_xlabel("accuracy of labels")
    axes[0].legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes[1].plot([0, 1], [0, 1], lw=1, color="0.7")
    for name, task in tasks.items():
        mean, right, cells = (np.array(v) for v in zip(*task["vivace"]["reliability"], strict=True))
        seen = cells >= 20
        axes[1].plot(mean[seen], right[seen], "o-", ms=3, lw=1, label=name)
    axes[1].set(xlabel="probability of the label", ylabel="share of right labels")
    axes[1].set(xlim=(0.3, 1), ylim=(0.3, 1))
    axes[1].legend(frameon=False, fontsize=6.5)
    types = sorted({t for task in tasks.values() for t in task["novelty"]})
    for name, task in tasks.items():
        at = [types.index(t) for t in task["novelty"]]
        axes[2].plot(at, list(task["novelty"].values()), "o", ms=5, alpha=0.8, label=name)
    axes[2].set_xticks(range(len(types)), types, fontsize=8)
    axes[2].axhline(0.5, lw=1, color="0.7")
    axes[2].set(ylabel="AUROC of novelty, type removed", ylim=(0.3, 1.02))
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--peer-only", action="store_true", help="run only scvi-tools")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    tasks = {}
    if not chosen.peer_only:
        compile_kernels()
    for name in chosen.only:
        prepared = prepare(name, chosen.raw, chosen.folder, chosen.peer_python)
        if chosen.peer_only:
            run_peer(name, prepared, chosen.peer_python)
            continue
        tasks[name] = score(name, prepared)
        print(name, json.dumps(tasks[name]), flush=True)
    if tasks:
        if chosen.save:  # saved results of tasks that were not chosen
            tasks = {n: t for n, t in (earlier() | tasks).items() if n in TASKS}
        result = {**provenance(), "mean": averages(tasks), "tasks": tasks}
        report("transfer", result, chosen.save)
        if chosen.figure:
            draw(tasks, chosen.figure)


if __name__ == "__main__":
    main()
