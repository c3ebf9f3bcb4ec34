"""Questions to a trained model: speed compared with scvi-tools, memory, and correct answers.

Usage: python benchmarks/answers.py --raw FOLDER --folder F --peer-python PEER --save

Speed: 20,000 simulated cells x 2,000 genes, 14 % non-zero, ZINB, all threads; both libraries
alternating. Memory: the expression of a file of a million cells, as made by ``million.py``
(``--million``), written to zarr. Quality: interferon on Kang et al., a known batch effect, samples
and checks of held-out cells, gene programs of PBMC 3k.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import vivace
from common import provenance, report, run_json
from quality import prepare, setup
from vivace.report import draw_check, summarise_check

SHAPE = (20_000, 2_000, 0.14)
INTERFERON = ("ISG15", "IFI6", "IFIT1", "IFIT2", "IFIT3", "MX1", "ISG20", "LY6E", "OAS1")
MARKERS = {
    "B cells": ("MS4A1", "CD79A", "CD79B", "HLA-DQA1", "TCL1A"),
    "CD14+ Monocytes": ("S100A8", "S100A9", "LYZ", "CD14", "LGALS2"),
    "NK cells": ("NKG7", "GNLY", "PRF1", "GZMB", "FGFBP2"),
}


def speed(peer_python: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Seconds of each question, both libraries alternating."""
    data = folder / "answers.h5ad"
    if not data.exists():
        run_json(sys.executable, "simulate.py", data, *SHAPE)
    arguments = ("answers", data, "batch", "zinb")
    actual = [
        (
            run_json(peer_python, "peer.py", *arguments)["seconds"],
            run_json(sys.executable, "ours.py", *arguments)["seconds"],
        )
        for _ in range(pairs)
    ]
    result = {}
    for question in actual[0][1]:
        peer_seconds, vivace_seconds = ([pair[i][question] for pair in actual] for i in (0, 1))
        ratios = sorted(t / o for t, o in zip(peer_seconds, vivace_seconds, strict=True))
        result[question] = {
            "scvi_tools_seconds": round(median(peer_seconds), 3),
            "vivace_seconds": round(median(vivace_seconds), 3),
            "ratio": round(median(ratios), 1),
            "ratio_of_each_pair": [round(r, 1) for r in ratios],
        }
    return result


def interferon(data: Path) -> dict[str, Any]:
    """Control cells of Kang et al. decoded as stimulated: are interferon genes up?"""
    adata = anndata.read_h5ad(data)
    setup(adata, "condition")
    model = vivace.SCVI(adata)
    model.train(progress=False, seed=0)
    control = np.flatnonzero(adata.obs["condition"] == adata.obs["condition"].cat.categories[0])
    names = list(adata.obs["condition"].cat.categories)
    as_control, as_stimulated = (
        model.get_normalized_expression(indices=control, transform_batch=c, silent=True).mean()
        for c in names
    )
    fold = np.log2(as_stimulated / as_control)
    ranks = fold.rank(ascending=False)
    measured = [g for g in INTERFERON if g in fold.index]
    return {
        "from_to": names,
        "control_cells": len(control),
        "genes": len(fold),
        "log2_fold_change": {g: round(float(fold[g]), 2) for g in measured},
        "rank": {g: int(ranks[g]) for g in measured},
        "median_of_all_genes": round(float(fold.median()), 2),
    }


def known_batch_effect(seed: int = 0) -> dict[str, Any]:
    """Are the known factors between the expected expression of two batches recovered?"""
    rng = np.random.default_rng(seed)
    n, g, types = 4_000, 1_000, 5
    profile = np.exp(rng.normal(0.0, 1.2, g) + rng.normal(0.0, 0.6, (types, g)))
    effect = np.exp(np.stack([np.zeros(g), rng.normal(0.0, 0.5, g)]))  # batch x gene
    kind, batch = rng.integers(types, size=n), rng.integers(2, size=n)
    expected = [profile[kind] * effect[b] for b in (0, 1)]
    expected = [e / e.sum(1, keepdims=True) for e in expected]  # if each cell were in batch b
    observed = np.where(batch[:, None] == 0, *expected)
    depth = rng.lognormal(7.6, 0.3, (n, 1))
    counts = rng.poisson(observed * depth * rng.gamma(4.0, 0.25, (n, g)))
    obs = pd.DataFrame({"batch": batch.astype(str)}, index=np.arange(n).astype(str))
    adata = anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs)
    setup(adata, "batch")
    model = vivace.SCVI(adata, gene_likelihood="nb")
    model.train(progress=False, seed=seed)
    cells = np.flatnonzero(batch == 0)
    truth = np.log(expected[1][cells])
    ask = {"indices": cells, "silent": True, "return_numpy": True}
    errors = {}
    for name, values in (
        ("uncorrected", model.get_normalized_expression(**ask)),
        ("transform_batch", model.get_normalized_expression(transform_batch="1", **ask)),
        ("truth without the effect", expected[0][cells]),
    ):
        errors[name] = round(float(np.abs(np.log(values) - truth).mean()), 3)
    return {"cells": len(cells), "mean_abs_error_of_log_expression": errors}


def checks(figure: Path | None) -> list[dict[str, Any]]:
    """Held-out cells of PBMC 3k, under three likelihoods."""
    result = {}
    for likelihood in ("poisson", "nb", "zinb"):
        adata = vivace.datasets.pbmc3k()
        setup(adata, "none")
        model = vivace.SCVI(adata, gene_likelihood=likelihood)  # type: ignore[arg-type]
        model.train(progress=False, seed=0)
        result[likelihood] = model.posterior_predictive_check(
            indices=model.validation_indices, n_samples=25, seed=0, silent=True
        )
    if figure is not None:
        draw_check(figure, result)
    return summarise_check(result).round(4).to_dict("records")


def programs() -> dict[str, Any]:
    """PBMC 3k: the genes that increase most towards a cell type."""
    adata = vivace.datasets.pbmc3k()
    setup(adata, "none")
    model = vivace.SCVI(adata)
    model.train(progress=False, seed=0)
    z = model.get_latent_representation()
    types = adata.obs["cell_type"].astype(str).to_numpy()
    moves = {t: z[types == t].mean(0) - z[types != t].mean(0) for t in MARKERS}
    top = model.get_gene_programs(directions=moves, silent=True).top(20)
    result = {}
    for name, markers in MARKERS.items():
        genes = top.loc[(top["direction"] == name) & (top["sign"] == "+"), "gene"].tolist()
        result[name] = {"top_20": genes, "markers_among_them": [m for m in markers if m in genes]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path, help="folder of kang_ifnb_dev.h5ad")
    parser.add_argument("--folder", required=True, type=Path, help="folder for data")
    parser.add_argument(
        "--peer-python", required=True, help="Python interpreter with scvi-tools 1.4.2"
    )
    parser.add_argument("--pairs", default=3, type=int)
    parser.add_argument("--million", type=Path, help="h5ad of a million cells")
    parser.add_argument("--figure", type=Path, help="PNG of the checks")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"benchmark": "answers", **provenance()}
    result["speed"] = speed(args.peer_python, args.folder, args.pairs)
    if args.million is not None:
        out = args.folder / "expression.zarr"
        shutil.rmtree(out, ignore_errors=True)
        result["to_zarr"] = run_json(sys.executable, "ours.py", "to_zarr", args.million, out)
        shutil.rmtree(out)
    kang = prepare("kang, condition", args.raw, args.folder, args.peer_python) / "data.h5ad"
    result["interferon"] = interferon(kang)
    result["known_batch_effect"] = known_batch_effect()
    result["checks"] = checks(args.figure)
    result["programs"] = programs()
    report("answers", result, args.save)


if __name__ == "__main__":
    main()
