"""Differential expression: accuracy, calibration, speed and memory.

Usage: python benchmarks/de.py --raw FOLDER --folder F --peer-python PEER --save

* truth: microarrays (Zheng et al. 2017 sorted T cells; PBMC 3k, B against dendritic cells), 20
  subsets of up to 100 cells per side; AUC of the score for genes with an adjusted P below 0.05
  (of all genes, and of those with a count in these cells), and Spearman's correlation of the log
  fold change; compared with scvi-tools 1.4.2 and a Wilcoxon test
* null: donors of Kang et al. split two against two, in each cell type and condition
* planted: counts sampled from a fitted model with known fold changes, between cells and between
  donors who also differ among themselves; realised false discoveries against the target
* repeat: agreement of the calls of two seeds
* speed: one test with both libraries, alternating, and all of 12 groups; memory: 1,000,000 cells x
  20,000
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import ranksums, spearmanr
from sklearn.metrics import roc_auc_score

import vivace
from common import DE_WAYS, de_answers, provenance, report, run_json
from quality import prepare, setup

Rows = np.ndarray
SUBSETS, CELLS = 20, 100
TARGETS = (0.01, 0.05, 0.1, 0.2)
# file, cell types, and the columns of the truth; fold changes are the second over the first
TRUTHS = {
    "CD4 against CD8 T cells": ("pbmc_facs_zheng", ("CD4 T", "CD8 T"), ("CD",)),
    "B against dendritic cells": ("pbmc3k", ("B", "DC"), ("BDC", "BDC2")),
}
STUDIES = ("truth", "null", "planted", "repeat", "speed", "memory")


# ---- both libraries' answers ---------------------------------------------------


def trained(data: Path, batch_key: str = "none") -> vivace.SCVI:
    """Train a default model on a file."""
    vivace.settings.seed = 0
    adata = anndata.read_h5ad(data)
    setup(adata, batch_key)
    model = vivace.SCVI(adata)
    model.train(progress=False)
    return model


def answer_vivace(
    model: vivace.SCVI, sides: list[tuple[Rows, Rows]], **more: Any
) -> dict[str, Any]:
    """Score, effect and calls for each pair of row sets, in each way, in the format of peer.py."""

    def ask(i: int, **options: Any) -> pd.DataFrame:
        first, second = sides[i]
        return model.differential_expression(
            idx1=first, idx2=second, seed=i, silent=True, **options, **more
        )

    ways = [way for way in DE_WAYS if not (more.get("sample_key") and way == "vanilla")]
    return de_answers(ask, list(model.schema.genes), len(sides), ways)


def answer_peer(
    data: Path, batch_key: str, weights: Path, sides: list[tuple[Rows, Rows]], peer_python: str
) -> dict[str, Any]:
    """The same for scvi-tools, whose default training is run if its weights are missing."""
    if not weights.exists():
        run_json(peer_python, "peer.py", "default", data, batch_key, "zinb", 0, weights)
    rows, out = weights.with_suffix(".rows.npz"), weights.with_suffix(".de.npz")
    named = {
        f"{n}_{i}": r
        for i, s in enumerate(sides)
        for n, r in zip(("first", "second"), s, strict=True)
    }
    if out.exists() and rows.exists():
        with np.load(rows) as old:
            is_current = set(old.files) == set(named) and all(
                np.array_equal(old[name], array) for name, array in named.items()
            )
        if is_current:
            return dict(np.load(out))
    np.savez(rows, **named)
    run_json(peer_python, "peer.py", "de", data, batch_key, weights, rows, out)
    return dict(np.load(out))


# ---- truth ----------------------------------------------------------------------


def prepare_truth(raw: Path, name: str, out: Path) -> pd.DataFrame:
    """Save the cells; return the truth for its genes that are in at least ten cells."""
    table = pd.read_csv(raw / "de_truth_pbmc_microarray.csv").set_index("ENSG")
    adata = anndata.read_h5ad(raw / f"{name}.h5ad")
    if "ensembl" in adata.var:
        adata.var_names = adata.var["ensembl"].astype(str).to_numpy()
    adata = adata[:, ~adata.var_names.duplicated()]
    seen = np.asarray((adata.X > 0).sum(0)).ravel() >= 10
    adata = adata[:, adata.var_names.isin(table.index) & seen].copy()
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    if not out.exists():
        adata.write_h5ad(out)
    return table.loc[adata.var_names]


def wilcoxon(adata: anndata.AnnData, sides: list[tuple[Rows, Rows]]) -> dict[str, Any]:
    """Score and effect from a rank sum test on log-normalised counts."""
    x = adata.X.toarray()
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    tests = [ranksums(x[first], x[second]) for first, second in sides]
    effect = [x[first].mean(0) - x[second].mean(0) for first, second in sides]
    return {
        "wilcoxon_score": np.stack([np.abs(t.statistic) for t in tests]),
        "wilcoxon_effect": np.stack(effect),
    }


def truth(raw: Path, folder: Path, peer_python: str) -> list[dict[str, Any]]:
    """AUC and rank correlation of every way, mean over subsets, and differences from the peer."""
    rows = []
    for comparison, (name, types, columns) in TRUTHS.items():
        data = folder / f"{name}.h5ad"
        table = prepare_truth(raw, name, data)
        model = trained(data)
        kind = model.adata.obs["cell_type_coarse"].to_numpy()
        rng = np.random.default_rng(0)
        rows_of_types = [np.flatnonzero(kind == t) for t in types]
        sides = [
            tuple(
                rng.choice(r, min(CELLS, int(0.8 * len(r))), replace=False) for r in rows_of_types
            )
            for _ in range(SUBSETS)
        ]
        result = {f"vivace, {k}": v for k, v in answer_vivace(model, sides).items()}
        peer = answer_peer(data, "none", folder / f"{name}.pt", sides, peer_python)
        result |= {f"scvi-tools, {k}": v for k, v in peer.items()}
        result |= wilcoxon(model.adata, sides)
        x = model.adata.X
        counted = [np.asarray((x[np.concatenate(side)] > 0).sum(0)).ravel() > 0 for side in sides]
        for column in columns:
            effect = -table[f"{column}_logFC"].to_numpy()
            differs = table[f"{column}_adj.P.Val"].to_numpy() < 0.05
            for key in (k[: -len("_score")] for k in result if k.endswith("_score")):
                tables = zip(result[f"{key}_score"], result[f"{key}_effect"], counted, strict=True)
                values = np.array(
                    [
                        (
                            roc_auc_score(differs, score),
                            roc_auc_score(differs[seen], score[seen]),
                            spearmanr(lfc, effect)[0],
                        )
                        for score, lfc, seen in tables
                    ]
                )
                mean, spread = values.mean(0).round(3), values.std(0, ddof=1).round(3)
                rows.append(
                    {
                        "comparison": f"{comparison} ({column})",
                        "cells": [len(side) for side in sides[0]],
                        "genes": len(table),
                        "differ": int(differs.sum()),
                        "way": key,
                        "auc": mean[0],
                        "auc_sd": spread[0],
                        "auc_of_genes_with_a_count": mean[1],
                        "spearman": mean[2],
                        "spearman_sd": spread[2],
                    }
                )
    return rows


# ---- null -----------------------------------------------------------------------


def null(raw: Path, folder: Path, peer_python: str) -> list[dict[str, Any]]:
    """Calls between donors of the same condition within a cell type, where nothing differs."""
    prepared = prepare("kang, condition", raw, folder, peer_python)
    data = prepared / "fit.h5ad"  # of which recipe.py and trajectories.py train too
    model = trained(data, "condition")
    obs = model.adata.obs
    sides, names = [], []
    for (kind, condition), group in obs.groupby(["cell_type", "condition"], observed=True):
        counts = group["donor"].value_counts()
        donors = sorted(counts[counts >= 10].index)
        if len(donors) != 4:
            continue  # two against two
        for other in donors[1:]:
            pair = [donors[0], other]
            first = obs.index.isin(group.index[group["donor"].isin(pair)])
            second = obs.index.isin(group.index[~group["donor"].isin(pair)])
            sides.append((np.flatnonzero(first), np.flatnonzero(second)))
            names.append(f"{kind}, {condition}")
    result = {f"vivace, {k}": v for k, v in answer_vivace(model, sides).items()}
    sample_tests = answer_vivace(model, sides, sample_key="donor")
    result |= {f"vivace, sample_key, {k}": v for k, v in sample_tests.items()}
    peer = answer_peer(data, "condition", folder / "kang.pt", sides, peer_python)
    result |= {f"scvi-tools, {k}": v for k, v in peer.items()}
    return [
        {
            "way": key[: -len("_called")],
            "tests": len(called),
            "types_and_conditions": len(set(names)),
            "genes": called.shape[1],
            "any_call": round(float(called.any(1).mean()), 3),
            "share_called": round(float(called.mean()), 5),
            "largest_share_called": round(float(called.mean(1).max()), 4),
        }
        for key, called in result.items()
        if key.endswith("_called")
    ]


# ---- planted effects -------------------------------------------------------------


TYPES = (("CD4 Naive T", "CD4 Memory T"), ("CD14 Mono", "CD16 Mono"), ("B", "NK"))
DONORS = 4


def plant(
    source: vivace.SCVI, rows: Rows, types: tuple[str, str], seed: int, donor_spread: float
) -> tuple[anndata.AnnData, np.ndarray]:
    """Simulate counts with known expression; return the true log2 fold changes of two types.

    Counts are sampled from a fitted model. In the first type, the expression of a tenth of the
    expressed genes is multiplied or divided by 2**(0.3 to 2). ``donor_spread`` is the standard
    deviation of the log2 effects of each donor on the first type. Expression is rescaled to sum
    to 1 after both.
    """
    rng = np.random.default_rng(seed)
    parameters = source.get_likelihood_parameters(indices=rows, seed=seed, silent=True)
    mean, theta = parameters["mean"].astype(float), parameters["dispersions"].astype(float)
    library = mean.sum(1, keepdims=True)
    kind = source.adata.obs["cell_type"].astype(str).to_numpy()[rows]
    donor = rng.integers(DONORS, size=len(rows))
    expressed = np.flatnonzero(mean.mean(0) > 0.02)
    changed = rng.choice(expressed, len(expressed) // 10, replace=False)
    effect = np.zeros(mean.shape[1])
    effect[changed] = rng.uniform(0.3, 2.0, len(changed)) * rng.choice([-1, 1], len(changed))
    first, second = (kind == t for t in types)
    rate = mean.copy()
    rate[first] *= 2.0**effect
    get_truth = rate / rate.sum(1, keepdims=True)
    true = np.log2(get_truth[first].mean(0) / get_truth[second].mean(0))
    rate[first] *= 2.0 ** rng.normal(0.0, donor_spread, (DONORS, len(effect)))[donor[first]]
    rate *= library / rate.sum(1, keepdims=True)
    counts = rng.poisson(rng.gamma(theta, rate / theta))
    counts[rng.random(counts.shape) < parameters["dropout"]] = 0
    counts[counts.sum(1) == 0, 0] = 1
    obs = pd.DataFrame(
        {"cell_type": kind, "donor": donor.astype(str)}, index=np.arange(len(rows)).astype(str)
    )
    var = pd.DataFrame(index=list(source.schema.genes))
    return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var), true


def planted(raw: Path, folder: Path, peer_python: str, times: int) -> list[dict[str, Any]]:
    """Realised share of false calls, and of changed genes called, at each target."""
    prepared = prepare("kang, condition", raw, folder, peer_python)
    source = trained(prepared / "data.h5ad")
    control = np.flatnonzero((source.adata.obs["condition"] == "ctrl").to_numpy())
    cases: dict[str, tuple[float, dict[str, Any]]] = {
        "cells, three": (0.0, {}),
        "cells, two": (0.0, {"test_mode": "two"}),
        "donors differ, three": (0.3, {}),
        "donors differ, two": (0.3, {"test_mode": "two"}),
        "donors differ, sample_key, three": (0.3, {"sample_key": "donor"}),
        "donors differ, sample_key, two": (0.3, {"sample_key": "donor", "test_mode": "two"}),
    }
    result: dict[tuple[str, float], list[tuple[int, int, int]]] = {}
    for seed in range(times):
        types = TYPES[seed % len(TYPES)]
        for donor_spread in (0.0, 0.3):
            adata, true = plant(source, control, types, seed, donor_spread)
            vivace.settings.seed = seed
            vivace.SCVI.setup_anndata(adata)
            model = vivace.SCVI(adata)
            model.train(progress=False)
            differs = pd.Series(np.abs(true) > 0.25, index=adata.var_names)
            for name, (_, options) in ((k, v) for k, v in cases.items() if v[0] == donor_spread):
                for target in TARGETS:
                    frame = model.differential_expression(
                        groupby="cell_type", group1=types[0], group2=types[1], fdr_target=target,
                        seed=seed, silent=True, **options,
                    )  # fmt: skip
                    called = frame[f"is_de_fdr_{target}"]
                    right = int((called & differs[frame.index]).sum())
                    result.setdefault((name, target), []).append(
                        (int(called.sum()), right, int(differs.sum()))
                    )
    rows = []
    for (name, target), values in result.items():
        called, right, there_are = np.array(values, float).T
        wrong = (called - right) / np.maximum(called, 1)
        rows.append(
            {
                "case": name,
                "fdr_target": target,
                "false_discovery_proportion": round(float(wrong.mean()), 4),
                "standard_error": round(float(wrong.std(ddof=1) / np.sqrt(len(wrong))), 4),
                "sensitivity": round(float((right / there_are).mean()), 3),
                "called": round(float(called.mean()), 1),
                "differ": round(float(there_are.mean()), 1),
                "data_sets": len(values),
            }
        )
    return rows


# ---- repeatability, speed, memory -------------------------------------------------


def repeat(raw: Path, folder: Path, peer_python: str) -> dict[str, Any]:
    """Genes called with both seeds as a share of those called with either, for six pairs."""
    prepared = prepare("kang, condition", raw, folder, peer_python)
    model = trained(prepared / "data.h5ad")
    cases = {
        "one against the rest, each of the cell types": {"groupby": "cell_type"},
        "B against NK cells": {"groupby": "cell_type", "group1": "B", "group2": "NK"},
        "stimulated against control": {"groupby": "condition", "group1": "stim"},
        "stimulated against control, sample_key": {
            "groupby": "condition", "group1": "stim", "sample_key": "donor",
        },
    }  # fmt: skip
    result = {}
    for name, options in cases.items():
        calls = []
        for seed in range(4):
            frame = model.differential_expression(seed=seed, silent=True, **options)
            called = frame[frame["is_de_fdr_0.05"]]
            calls.append(set(zip(called["comparison"], called.index, strict=True)))
        both = [(len(a & b), len(a | b)) for a, b in itertools.combinations(calls, 2)]
        pairs = [shared / max(either, 1) for shared, either in both]
        result[name] = {
            "called": [len(c) for c in calls],
            "shared": [shared for shared, _ in both],
            "agree": round(float(np.mean(pairs)), 4),
            "agree_of_each_pair": sorted(round(p, 3) for p in pairs),
        }
    return result


def speed(folder: Path, peer_python: str, pairs: int) -> dict[str, Any]:
    """Seconds of one test, one of 12 groups against the rest, with both libraries alternating."""
    data = folder / "answers_grouped.h5ad"
    if not data.exists():
        if not (folder / "answers.h5ad").exists():
            run_json(sys.executable, "simulate.py", folder / "answers.h5ad", 20_000, 2_000, 0.14)
        adata = anndata.read_h5ad(folder / "answers.h5ad")
        groups = np.random.default_rng(0).integers(12, size=adata.n_obs)
        adata.obs["group"] = pd.Categorical([f"group {g}" for g in groups])
        adata.write_h5ad(data)
    arguments = ("de_speed", data, "batch", "group", "group 0")
    result = [
        (
            run_json(peer_python, "peer.py", *arguments)["seconds"]["one"],
            run_json(sys.executable, "ours.py", *arguments)["seconds"],
        )
        for _ in range(pairs)
    ]
    ratios = sorted(peer / vivace_seconds["one"] for peer, vivace_seconds in result)
    all_to_one = sorted(s["all"] / s["one"] for _, s in result)
    return {
        "scvi_tools_seconds": round(median(t for t, _ in result), 3),
        "vivace_seconds": round(median(m["one"] for _, m in result), 3),
        "ratio": round(median(ratios), 1),
        "ratio_of_each_pair": [round(r, 1) for r in ratios],
        "vivace_seconds_of_12_groups": round(median(m["all"] for _, m in result), 3),
        "12_groups_to_one": round(median(all_to_one), 2),
        "12_groups_to_one_of_each_pair": [round(r, 2) for r in all_to_one],
    }


def picture(path: Path) -> None:
    """PBMC 3k, each type against the rest: volcano of B cells, heat map of top genes."""
    from matplotlib.figure import Figure

    vivace.settings.seed = 0
    adata = vivace.datasets.pbmc3k()
    setup(adata, "none")
    model = vivace.SCVI(adata)
    model.train(progress=False)
    result = model.differential_expression(groupby="cell_type", seed=0, silent=True)
    figure = Figure(figsize=(13, 4.4), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    vivace.pl.volcano(result, "B cells vs Rest", ax=left)
    vivace.pl.heatmap(result, adata, ax=right)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path, help="folder of the h5ad files")
    parser.add_argument("--folder", required=True, type=Path, help="folder for data and models")
    parser.add_argument("--peer-python", required=True, help="Python that has scvi-tools 1.4.2")
    parser.add_argument("--only", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--pairs", default=3, type=int)
    parser.add_argument(
        "--times", default=20, type=int, help="number of data sets with simulated effects"
    )
    parser.add_argument("--figure", type=Path, help="PNG file for a volcano plot and a heat map")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    sets = (args.raw, args.folder, args.peer_python)
    studies = {
        "speed": lambda: speed(args.folder, args.peer_python, args.pairs),
        "memory": lambda: run_json(sys.executable, "ours.py", "de_memory", 1_000_000, 20_000),
        "truth": lambda: truth(*sets),
        "null": lambda: null(*sets),
        "planted": lambda: planted(*sets, args.times),
        "repeat": lambda: repeat(*sets),
    }
    result: dict[str, Any] = {"benchmark": "de", **provenance()}
    for name, study in studies.items():
        if name in args.only:
            result[name] = study()
    if args.figure is not None:
        picture(args.figure)
    report("de", result, args.save)


if __name__ == "__main__":
    main()
