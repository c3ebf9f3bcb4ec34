"""Compare this version with an earlier one, in pairs of processes: training, questions, start.

Usage: python benchmarks/against.py --raw kang_ifnb_dev.h5ad --before <src of another version> --save

Each measurement runs in its own process, and the two versions alternate; for training steps, two
processes stay alive and alternate in bursts. The ratio is the median over pairs of this version's
seconds divided by the other's; below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import scanpy as sc

from common import provenance, report

STEPS = 400
STEP_PAIRS = 21
CELLS = 20_000


def prepare_steps(data: Path, likelihood: str) -> Callable[[], float]:
    """Train briefly; return what measures milliseconds per step (128 cells, 2,000 genes)."""
    import vivace

    adata = anndata.read_h5ad(data)
    vivace.SCVI.setup_anndata(adata)
    model = vivace.SCVI(adata, gene_likelihood=likelihood)
    options: dict[str, Any] = {"batch_size": 128, "train_size": 1.0, "progress": False, "seed": 0}
    model.train(max_steps=60, **options)

    def measure_steps() -> float:
        begun = time.perf_counter()
        model.train(max_steps=STEPS, **options)
        return 1e3 * (time.perf_counter() - begun) / STEPS

    return measure_steps


def default_train(data: Path) -> float:
    """Seconds of the default ``train()``, with kernels cached."""
    import vivace

    adata = anndata.read_h5ad(data)
    vivace.SCVI.setup_anndata(adata, batch_key="batch")
    model = vivace.SCVI(adata)
    begun = time.perf_counter()
    model.train(progress=False)
    return time.perf_counter() - begun


def questions(data: Path) -> dict[str, float]:
    """Seconds of questions about 20,000 cells, the best of three."""
    import numpy as np

    import vivace

    adata = anndata.read_h5ad(data)
    adata = adata[np.resize(np.arange(adata.n_obs), CELLS)].copy()
    adata.obs_names_make_unique()
    vivace.SCVI.setup_anndata(adata, batch_key="batch")
    model = vivace.SCVI(adata)
    model.train(max_epochs=1, progress=False)
    out = np.empty((CELLS, adata.n_vars), np.float32)
    cases = {
        "latent": lambda: model.get_latent_representation(),
        "expression": lambda: model.get_normalized_expression(out=out),
        "de": lambda: model.differential_expression(
            groupby="cell_type", group1=adata.obs["cell_type"].iloc[0], silent=True, seed=0
        ),
    }
    seconds = {}
    for name, ask in cases.items():
        ask()
        seconds[name] = min(_seconds(ask) for _ in range(3))
    return seconds


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def first_train(data: Path) -> float:
    """Seconds from importing vivace to the end of the first ``train()``, of one epoch."""
    adata = anndata.read_h5ad(data)
    begun = time.perf_counter()
    import vivace

    vivace.SCVI.setup_anndata(adata, batch_key="batch")
    vivace.SCVI(adata).train(max_epochs=1, progress=False)
    return time.perf_counter() - begun


def import_vivace() -> float:
    """Seconds of ``import vivace; vivace.SCVI``, including torch and anndata."""
    begun = time.perf_counter()
    import vivace

    _ = vivace.SCVI
    return time.perf_counter() - begun


def measure(case: str, data: Path) -> dict[str, float]:
    """Run the measurement of one process."""
    if case == "questions":
        return {f"{name}, s": value for name, value in questions(data).items()}
    if case == "train":
        return {"default train(), s": default_train(data)}
    if case == "import":
        return {"import, s": import_vivace()}
    name = "first train() with compilation, s" if case == "compile" else "first train(), s"
    return {name: first_train(data)}


STEP_CASES = ("zinb", "nb", "poisson")
CASES = (*STEP_CASES, "train", "questions", "first", "import", "compile")


def serve_steps(likelihood: str, data: Path) -> None:
    """Measure once for each line of standard input, and print the result."""
    measure_steps = prepare_steps(data, likelihood)
    for _ in sys.stdin:
        print(measure_steps(), flush=True)


def pair_steps(
    likelihood: str, data: Path, sources: tuple[Path, Path], pairs: int
) -> list[tuple[float, float]]:
    """Milliseconds per step of two versions, each in one process, alternating.

    The speed of a shared machine drifts within seconds. One pair is two neighbouring bursts of 400
    steps, so both versions run under the same conditions.
    """
    command = [sys.executable, __file__, "--serve", likelihood, "--raw", str(data)]
    workers = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]

    def ask(worker: subprocess.Popen[str]) -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    for worker in workers:  # warm up, and wait until both are ready
        ask(worker)
    result = []
    for i in range(pairs):
        if i % 2 == 0:
            before = ask(workers[0])
            now = ask(workers[1])
        else:
            now = ask(workers[1])
            before = ask(workers[0])
        result.append((before, now))
    for worker in workers:
        worker.communicate()
    return result


def run(case: str, data: Path, source: Path, scratch: Path) -> dict[str, float]:
    """Run one process of one version."""
    environment = os.environ | {"PYTHONPATH": str(source)}
    if case == "compile":  # an empty cache of kernels
        folder = tempfile.mkdtemp(dir=scratch)
        environment["NUMBA_CACHE_DIR"] = folder
    command = [sys.executable, __file__, "--measure", case, "--raw", str(data)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--pairs", default=7, type=int)
    parser.add_argument("--only", nargs="*", default=CASES)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.raw)))
        return
    if args.serve:
        serve_steps(args.serve, args.raw)
        return
    now = Path(__file__).parents[1] / "src"
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        data = scratch / "kang.h5ad"
        adata = anndata.read_h5ad(args.raw)
        normal = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True)
        sc.pp.highly_variable_genes(normal, n_top_genes=2_000)
        adata = adata[:, normal.var["highly_variable"]].copy()
        sc.pp.filter_cells(adata, min_counts=1)
        adata.write_h5ad(data)
        for case in args.only:
            pairs: list[tuple[dict[str, float], dict[str, float]]] = []
            if case in STEP_CASES:
                key = f"step, {case}, ms"
                bursts = pair_steps(case, data, (args.before, now), STEP_PAIRS)
                pairs = [({key: a}, {key: b}) for a, b in bursts]
            else:
                for i in range(args.pairs):
                    order = (args.before, now) if i % 2 == 0 else (now, args.before)
                    values = {source: run(case, data, source, scratch) for source in order}
                    pairs.append((values[args.before], values[now]))
            for key in pairs[0][0]:
                ratios = sorted(b[key] / a[key] for a, b in pairs)
                table[key] = {
                    "before": round(median(a[key] for a, _ in pairs), 4),
                    "now": round(median(b[key] for _, b in pairs), 4),
                    "ratio": round(median(ratios), 3),
                    "ratios": [round(r, 3) for r in ratios],
                }
                print(key, table[key], file=sys.stderr)
    commit = ["git", "-C", str(args.before), "rev-parse", "--short", "HEAD"]
    before = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    result = {"benchmark": "against", **provenance(), "before": before, "cases": table}
    report("against", result, args.save)


if __name__ == "__main__":
    main()
