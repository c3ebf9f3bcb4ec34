"""The default recipe compared with scvi-tools' default run, on the data sets of quality.py.

Usage: python benchmarks/recipe.py --raw DATA --folder SCRATCH --peer-python PEER --save

The seconds of both are from the same run, alternating: vivace's whole default ``train()``, and for
scvi-tools the seconds per epoch times the epochs of its default run, whose quality is read from
results/trajectories.json. ``--figure FILE`` draws the ELBO of the test cells against seconds.
Timing needs an otherwise idle machine, scoring does not: ``--only-time`` does the timing, and a
later call with the same folder does the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import anndata
import numpy as np
from scipy import stats

import trajectories
import vivace
from common import provenance, report, run_json
from quality import HELD_OUT, SETS, arguments, elbo, knn, marginal_ll, prepare, scib, setup

PEER_EPOCHS = 5  # timed, after one epoch of warm-up
NOT_WORSE = -0.5  # nats per cell


def timing(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both libraries, alternating; the models are kept in the folder."""
    kept = folder / "timing.json"
    arguments = {"seeds": args.seeds, "pairs": args.pairs, "code": _code()}
    if kept.exists():
        result: dict[str, Any] = json.loads(kept.read_text())
        if result["arguments"] == arguments or args.reuse:
            return result
    shared = (folder / "fit.h5ad", SETS[name].batch_key, "zinb")
    ours, theirs = [], []
    for seed in range(args.seeds):
        ours.append(
            run_json(sys.executable, "ours.py", "default", *shared, seed, folder / f"ours_{seed}")
        )
        if seed < args.pairs:
            p = run_json(args.peer_python, "peer.py", "speed", *shared, PEER_EPOCHS)
            theirs.append(p["seconds"] / PEER_EPOCHS)
    result = {
        "arguments": arguments,
        "ours": ours,
        "seconds_of_a_peer_epoch": theirs,
        **provenance(),
    }
    kept.write_text(json.dumps(result))
    return result


def _code() -> str:
    """A fingerprint of the package's code."""
    files = sorted(Path(vivace.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and quality of both on one data set."""
    timed = timing(name, folder, args)
    runs = trajectories.read()[name]
    peer_epochs = runs["0"]["epochs"]
    ours = timed["ours"]
    theirs = [s * peer_epochs for s in timed["seconds_of_a_peer_epoch"]]
    ratios = sorted(p / o["seconds"] for o, p in zip(ours, theirs, strict=False))
    mine = judge(name, folder, len(ours), args)
    last = [r["marks"][-1] for r in runs.values()]
    best = [
        next(m for m in r["marks"] if m["epoch"] == r["best_epoch_on_validation"])
        for r in runs.values()
    ]
    return {
        "timed": {k: timed[k] for k in ("machine", "commit")},
        "vivace": {
            "seconds": round(median(o["seconds"] for o in ours), 2),
            "epochs": ours[0]["epochs"],
            **_means(mine),
        },
        "scvi_tools": {
            "seconds": round(median(theirs), 1),
            "epochs": peer_epochs,
            "seeds": len(runs),
            **_means(last),
        },
        "scvi_tools_best_on_validation": {"epochs": [m["epoch"] for m in best], **_means(best)},
        "time_ratio": round(median(ratios), 1),
        "time_ratio_of_each_pair": [round(r, 1) for r in ratios],
        "test_elbo_gain": _gain(mine, last),
        "test_elbo_gain_over_its_best": _gain(mine, best),
        "each_seed": mine,
    }


def judge(name: str, folder: Path, seeds: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Scores of the models saved by ``ours.py default``."""
    data, test = (anndata.read_h5ad(folder / f"{f}.h5ad") for f in ("data", "test"))
    marks, latents = [], {}
    for seed in range(seeds):
        model = vivace.SCVI.load(folder / f"ours_{seed}")
        latent = model.get_latent_representation(data)
        marks.append(
            {
                "test_elbo": elbo(model, test),
                "marginal_ll": marginal_ll(model, test),
                "knn": knn(latent, data.obs[SETS[name].label_key]),
                "verdict": model.summary.splitlines()[-1],
            }
        )
        if seed < args.scib_seeds:
            latents[str(seed)] = latent
    for seed, result in scib(folder, name, latents, args.peer_python).items():
        marks[int(seed)]["scib"] = result
    return marks


def _means(marks: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the comparable scores over the seeds that have them."""
    flat = [{k: m[k] for k in ("test_elbo", "marginal_ll", "knn") if k in m} for m in marks]
    for row, mark in zip(flat, marks, strict=True):
        for short, name in (("bio", "Bio conservation"), ("batch", "Batch correction")):
            if name in mark.get("scib", {}):
                row[short] = mark["scib"][name]
    names = dict.fromkeys(k for row in flat for k in row)
    return {k: round(mean(row[k] for row in flat if k in row), 4) for k in names}


def _gain(vivace_marks: list[dict[str, Any]], peer_marks: list[dict[str, Any]]) -> dict[str, Any]:
    """Improvement of the test ELBO, and its one-sided 95 % bound (Welch).

    If the peer has a single run, its variance is assumed to equal vivace's.
    """
    a, b = (np.array([m["test_elbo"] for m in marks]) for marks in (vivace_marks, peer_marks))
    varies = [a.var(ddof=1), b.var(ddof=1) if len(b) > 1 else a.var(ddof=1)]
    parts = [varies[0] / len(a), varies[1] / len(b)]
    freedom = sum(parts) ** 2 / sum(
        p**2 / max(len(x) - 1, 1 if len(b) > 1 else len(a) - 1)
        for p, x in zip(parts, (a, b), strict=True)
    )
    gain = a.mean() - b.mean()
    bound = gain - stats.t.ppf(0.95, freedom) * math.sqrt(sum(parts))
    return {
        "nats": round(float(gain), 2),
        "lower_bound": round(float(bound), 2),
        "not_worse": bool(bound > NOT_WORSE),
    }


def curve(name: str, folder: Path) -> list[float]:
    """ELBO of the test cells after each epoch of a default run."""
    fit, test = (anndata.read_h5ad(folder / f"{f}.h5ad") for f in ("fit", "test"))
    vivace.settings.seed = 0
    setup(fit, SETS[name].batch_key)
    values: list[float] = []

    class Follow:
        def on_epoch_end(self, model: vivace.SCVI, row: dict[str, float]) -> None:
            values.append(elbo(model, test))

    vivace.SCVI(fit).train(progress=False, callbacks=[Follow()])
    return values


def draw(result: dict[str, Any], file: Path) -> None:
    """ELBO of the test cells against seconds, one panel per data set.

    The epochs of both libraries are spread evenly over the measured seconds.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peers = trajectories.read()
    names = list(result["sets"])
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        actual = result["sets"][name]
        epoch = actual["scvi_tools"]["seconds"] / actual["scvi_tools"]["epochs"]
        for seed, run in peers[name].items():
            axis.plot(
                [m["epoch"] * epoch for m in run["marks"]],
                [m["test_elbo"] for m in run["marks"]],
                "o-", ms=3, lw=1, color="0.45", label="scvi-tools 1.4.2" if seed == "0" else None,
            )  # fmt: skip
        values = actual["curve"]
        epoch = actual["vivace"]["seconds"] / len(values)
        seconds = [epoch * (i + 1) for i in range(len(values))]
        axis.plot(seconds, values, "o-", ms=3, lw=1.5, color="C3", label="vivace")
        ends = [*values[len(values) // 2 :], *(m["test_elbo"] for m in peers[name]["0"]["marks"])]
        low, high = min(ends), max(ends)
        axis.set_ylim(low - 0.25 * (high - low), high + 0.1 * (high - low))
        axis.set_xscale("log")
        axis.set_title(name, fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("seconds of training, 2 cores", fontsize=10)
    figure.supylabel("ELBO of test cells, nats per cell", fontsize=10)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--scib-seeds", type=int, default=5, help="number of seeds scored with scib-metrics"
    )
    parser.add_argument("--only-time", action="store_true")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="also accept timings and models of other commits, which are named in the result",
    )
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2, for the spread between them")
    if missing := set(args.only) - {n for n, runs in trajectories.read().items() if "0" in runs}:
        parser.error(f"trajectories.py has not run on {', '.join(sorted(missing))}")
    result: dict[str, Any] = {
        "benchmark": "recipe",
        **provenance(),
        "not_used_in_the_choice": HELD_OUT,
        "sets": {},
    }
    folders = {n: prepare(n, args.raw, args.folder, args.peer_python) for n in args.only}
    for name, folder in folders.items():
        timing(name, folder, args)
    if args.only_time:
        return
    for name, folder in folders.items():
        result["sets"][name] = measure(name, folder, args)
        result["sets"][name]["curve"] = curve(name, folder)
        (args.folder / "recipe.json").write_text(json.dumps(result))  # intermediate results
    report("recipe", result, args.save)
    if args.figure:
        draw(result, args.figure)


if __name__ == "__main__":
    main()
