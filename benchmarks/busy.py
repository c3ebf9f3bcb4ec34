"""vivace on a shared machine: default threads, one thread, passive waiting.

Usage: python benchmarks/busy.py --raw kang_ifnb_dev.h5ad --save [--against SRC]

Kang et al., 2,000 variable genes: seconds of default ``train()``, of the latent representation of
the cells repeated 30 times, and of differential expression of each cell type against the rest. Each
run is its own process; the ways to run alternate, so a slow period affects all of them.

* idle; one and three busy neighbours (processes that keep a core busy); two jobs at once (the mean
  of both)
* a quota of one core (a cgroup), and an affinity mask of one core

``--against`` also measures an earlier version with its defaults, from its ``src`` folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import scanpy as sc

from common import BENCHMARKS, provenance, report

FIRST = "FIRST"  # modules that are imported before vivace
WAYS = {
    "default": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "default, scanpy imported first": {FIRST: "scanpy, sklearn.cluster"},
}
BEFORE = "default, before"
_RUN = (
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.path[0] = sys.argv[0].rpartition('/')[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
QUESTIONS = ("train", "latent", "de")
_GROUP = Path("/sys/fs/cgroup/cpu/vivace-benchmark")  # of control groups, version 1
_GROUP_V2 = Path("/sys/fs/cgroup/vivace-benchmark")


def prepare(raw: Path, out: Path) -> None:
    """Select the 2,000 most variable genes."""
    adata = anndata.read_h5ad(raw)
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    chosen = sc.pp.highly_variable_genes(normalised, n_top_genes=2_000, inplace=False)
    adata[:, chosen["highly_variable"].to_numpy()].copy().write_h5ad(out)


Start = Callable[[dict[str, str]], "subprocess.Popen[str]"]


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """Start this many processes that keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextmanager
def quota_of_one_core() -> Iterator[Path | None]:
    """Create a control group with a quota of one core, or None if this user may not create one."""
    new, folder = (True, _GROUP_V2) if (_GROUP_V2.parent / "cpu.max").exists() else (False, _GROUP)
    try:
        folder.mkdir(exist_ok=True)
        if new:
            (folder / "cpu.max").write_text("100000 100000")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        folder.rmdir()


def starter(data: Path, before: Callable[[], None] | None = None) -> Start:
    """Start one run; ``before`` is called first in its process."""

    def start(environment: dict[str, str]) -> subprocess.Popen[str]:
        imports = f"import {environment[FIRST]}; " if FIRST in environment else ""
        return subprocess.Popen(
            [sys.executable, "-c", imports + _RUN, str(BENCHMARKS / "ours.py"), "busy", str(data)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            preexec_fn=before,
        )

    return start


def finish(run: subprocess.Popen[str]) -> dict[str, Any]:
    """The output of a run."""
    out, _ = run.communicate()
    if run.returncode != 0:
        raise RuntimeError("a run failed; its error is above")
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


def measure(start: Start, ways: dict[str, dict[str, str]], repeats: int, jobs: int) -> Any:
    """Seconds of each question in each way, alternating; with several ``jobs``, their mean."""
    seconds: dict[str, dict[str, list[float]]] = {w: {q: [] for q in QUESTIONS} for w in ways}
    weights = set()
    shuffle = random.Random(0)  # the order is shuffled in each round
    for way in (w for _ in range(repeats) for w in shuffle.sample(list(ways), len(ways))):
        actual = [finish(run) for run in [start(ways[way]) for _ in range(jobs)]]
        for question in QUESTIONS:
            seconds[way][question].append(sum(f[question] for f in actual) / jobs)
        if way != BEFORE:
            weights |= {f["weights"] for f in actual}
        print(way, {q: round(seconds[way][q][-1], 2) for q in QUESTIONS}, file=sys.stderr)
    result: dict[str, Any] = {
        way: {
            q: {"median": round(median(s), 3), "all": [round(x, 3) for x in sorted(s)]}
            for q, s in by_question.items()
        }
        for way, by_question in seconds.items()
    }
    for question in QUESTIONS:
        pairs = zip(
            seconds["default"][question],
            seconds["one thread"][question],
            strict=True,
        )
        ratios = sorted(default / one_thread for default, one_thread in pairs)
        result["default"][question]["times_one_thread"] = round(median(ratios), 2)
        result["default"][question]["times_one_thread_of_each_pair"] = [round(r, 2) for r in ratios]
    return result | {"weights": sorted(weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path, help="h5ad of raw counts")
    parser.add_argument("--against", type=Path, help="src folder of an earlier version")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--only", nargs="*", help="some of the situations")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    ways: dict[str, dict[str, str]] = dict(WAYS)
    if args.against is not None:
        ways[BEFORE] = {"PYTHONPATH": str(args.against.resolve())}
    result: dict[str, Any] = {"benchmark": "busy", **provenance()}
    with tempfile.TemporaryDirectory() as scratch, quota_of_one_core() as group:
        data = Path(scratch) / "data.h5ad"
        prepare(args.raw, data)
        plain = starter(data)
        pinned = starter(data, lambda: os.sched_setaffinity(0, {0}))
        situations: dict[str, tuple[Start, int, int]] = {
            "idle": (plain, 0, 1),
            "one neighbour": (plain, 1, 1),
            "three neighbours": (plain, 3, 1),
            "two jobs at once": (plain, 0, 2),
            "affinity mask of one core": (pinned, 0, 1),
        }
        if group is not None:
            join = group / "cgroup.procs"
            limited = starter(data, lambda: join.write_text(str(os.getpid())) and None)
            situations["quota of one core"] = (limited, 0, 1)
        for environment in ways.values():  # compile the kernels that each needs
            finish(plain(environment))
        cases = {}
        for name, (start, busy, jobs) in situations.items():
            if args.only and name not in args.only:
                continue
            print(name, file=sys.stderr)
            with neighbours(busy):
                cases[name] = measure(start, ways, args.repeats, jobs)
    result["seconds"] = cases
    report("busy", result, args.save)


if __name__ == "__main__":
    main()
