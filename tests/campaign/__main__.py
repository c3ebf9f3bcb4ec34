"""Runs the campaign and prints the counts of outcomes."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # a fork has no other threads

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from campaign import (
    argument_cases,
    data_cases,
    disk_cases,
    folder_cases,
    kill_cases,
    rival_cases,
    thread_cases,
)
from campaign.outcomes import Tally

PARTS = {  # and how many cases of each for one of the first
    "data": (data_cases, 1.0),
    "arguments": (argument_cases, 1.0),
    "folders": (folder_cases, 0.5),
    "kills": (kill_cases, 0.1),
    "disks": (disk_cases, 0.1),
    "rivals": (rival_cases, 0.1),
    "threads": (thread_cases, 0.1),
}
KINDS = ("right", "sentence", "raw", "silent", "unmade")


def main() -> None:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=100, help="cases of data and of arguments")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--all", action="store_true", help="print every outcome, not only faults")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    chosen = parser.parse_args()
    if sys.platform != "linux":
        parser.error("the campaign needs Linux")
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="campaign-")) if chosen.folder is None else chosen.folder
    tallies: dict[str, Tally] = {}
    print(f"{'part':10}{''.join(f'{kind:>10}' for kind in KINDS)}{'seconds':>10}", flush=True)
    for name in chosen.part or PARTS:
        module, share = PARTS[name]
        start, tally = time.monotonic(), Tally()
        setting = module.Setting.make(_new(folder / f"setting-{name}"))
        n = max(1, round(chosen.size * share))
        for i in range(n) if chosen.case is None else [chosen.case]:
            rng = np.random.default_rng([chosen.seed, list(PARTS).index(name), i])
            place = folder / "cases" / f"{name}-{i}"
            outcome = setting.run(rng, _new(place))
            tally.add(i, outcome)
            if outcome.kind in ("raw", "silent") or chosen.all:
                print(f"  {name} {i}: {outcome.kind}: {outcome.detail}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
        tallies[name] = tally
        counts = "".join(f"{tally.counts[kind]:>10,}" for kind in KINDS)
        print(f"{name:10}{counts}{time.monotonic() - start:>10.0f}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({k: dict(t.counts) for k, t in tallies.items()}))
    if chosen.folder is None:
        shutil.rmtree(folder)
    sys.exit(any(tally.faults for tally in tallies.values()))


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
