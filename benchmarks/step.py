"""Training steps at scvi-tools' settings: cells per second of both, over a grid of options.

Usage: python benchmarks/step.py --peer-python .peer/bin/python --pairs 5 --save

If other work on the machine halves its speed for minutes, the ratio of the fastest runs is more
stable. The floor is the time of the matrix products alone: per step six of batch size x 128 x genes
for ZINB and three for the others, with the same library on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import provenance, report, run_json

MIXED = {"dispersion": "gene-batch", "covariates": True}
CASES: dict[str, dict[str, Any]] = {
    "zinb": {"data": "wide"},
    "nb": {"data": "wide", "likelihood": "nb"},
    "poisson": {"data": "wide", "likelihood": "poisson"},
    "zinb, 20,000 genes at 5 %": {"data": "deep", "epochs": (1, 1)},
    "zinb, gene-batch dispersion, covariates": {"data": "wide", "options": MIXED},
    "zinb, 1 thread": {"data": "wide", "threads": 1},
    "nb, 1 thread": {"data": "wide", "likelihood": "nb", "threads": 1},
    "zinb, batch size 64": {"data": "wide", "options": {"batch_size": 64}},
    "zinb, batch size 512": {"data": "wide", "options": {"batch_size": 512}},
    "zinb, batch size 4096": {"data": "wide", "options": {"batch_size": 4096}},
}
DATA = {"wide": (6_400, 2_000, 0.14), "deep": (2_560, 20_000, 0.05)}


def measure(case: dict[str, Any], files: dict[str, Path], args: argparse.Namespace) -> Any:
    """Cells per second of both libraries, alternating, several times."""
    threads = case.get("threads", os.cpu_count())
    likelihood, options = case.get("likelihood", "zinb"), json.dumps(case.get("options", {}))
    theirs_epochs, ours_epochs = case.get("epochs", (2, 6))
    shared = (files[case["data"]], "batch", likelihood)
    environment = {"OMP_NUM_THREADS": str(threads)}
    peer, vivace_rates = [], []
    for _ in range(args.pairs):
        rest = (theirs_epochs, options)
        peer.append(run_json(args.peer_python, "peer.py", "speed", *shared, *rest, **environment))
        rest = (ours_epochs, options)
        vivace_rates.append(
            run_json(sys.executable, "ours.py", "speed", *shared, *rest, **environment)
        )
    rates = [
        (p["cells_per_second"], o["cells_per_second"])
        for p, o in zip(peer, vivace_rates, strict=True)
    ]
    ratios = sorted(o / p for p, o in rates)
    genes = DATA[case["data"]][1]
    cells = case.get("options", {}).get("batch_size", 128)
    floor = run_json(sys.executable, "ours.py", "floor", likelihood, genes, cells, **environment)
    vivace_rate = median(o for _, o in rates)
    return {
        "threads": threads,
        "scvi_tools_cells_per_second": round(median(p for p, _ in rates)),
        "vivace_cells_per_second": round(vivace_rate),
        "ratio": round(median(ratios), 2),
        "ratio_of_each_pair": [round(r, 2) for r in ratios],
        "ratio_of_fastest_runs": round(max(o for _, o in rates) / max(p for p, _ in rates), 2),
        "floor_cells_per_second": round(floor["cells_per_second"]),
        "share_of_floor": round(vivace_rate / floor["cells_per_second"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="Python that has scvi-tools 1.4.2")
    parser.add_argument("--pairs", default=5, type=int)
    parser.add_argument("--only", nargs="*", help="run only these cases")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    chosen = {name: case for name, case in CASES.items() if not args.only or name in args.only}
    with tempfile.TemporaryDirectory() as scratch:
        files, described = {}, {}
        for name, shape in DATA.items():
            files[name] = Path(scratch) / f"{name}.h5ad"
            described[name] = run_json(sys.executable, "simulate.py", files[name], *shape)
        result = {
            "benchmark": "step",
            "data": described,
            **provenance(),
            "cases": {name: measure(case, files, args) for name, case in chosen.items()},
        }
    report("step", result, args.save)


if __name__ == "__main__":
    main()
