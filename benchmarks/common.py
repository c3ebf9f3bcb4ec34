"""Code shared by the benchmark scripts: running the peer, and saying where a result is from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).parent
MARGINAL_CELLS, MARGINAL_SAMPLES = 1_000, 1_000  # of answers.py
PEER_SHARE = 10  # scvi-tools generates this part of the samples; its seconds are multiplied
DE_WAYS: dict[str, dict[str, str]] = {  # the options with which de.py calls both libraries
    "three": {"mode": "change", "test_mode": "three"},
    "two": {"mode": "change", "test_mode": "two"},
    "vanilla": {"mode": "vanilla"},
}
COVARIATES = {  # of simulated counts, as arguments of both libraries' setup_anndata
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["score"],
}


def batch_column(batch_key: str) -> str | None:
    """The batch column for a BATCH_KEY from the command line; None for "none"."""
    return None if batch_key == "none" else batch_key


def time_once(question: Callable[[], object]) -> float:
    """Time one call of a function, in seconds."""
    begun = time.perf_counter()
    question()
    return time.perf_counter() - begun


def time_questions(questions: dict[str, Callable[[], object]], times: int = 3) -> dict[str, float]:
    """The shortest time of each question over several calls after one warm-up, in seconds."""
    result = {}
    for name, question in questions.items():
        question()
        result[name] = min(time_once(question) for _ in range(times))
    return result


def de_answers(ask: Callable[..., Any], genes: Any, n_tests: int, ways: Any) -> dict[str, Any]:
    """Score, effect and calls of differential expression tests, arrays tests x genes.

    ``ask(i, **options)`` returns the table of test i, from either library.
    """
    result: dict[str, list[Any]] = {}
    for i in range(n_tests):
        for way in ways:
            frame = ask(i, **DE_WAYS[way]).loc[genes]
            if way == "vanilla":
                score = frame["bayes_factor"].abs()
                effect = np.log2(frame["scale1"] / frame["scale2"])
            else:
                score, effect = frame["proba_de"], frame["lfc_mean"]
                called = frame["is_de_fdr_0.05"].to_numpy(bool)
                result.setdefault(f"{way}_called", []).append(called)
            result.setdefault(f"{way}_score", []).append(score.to_numpy(float))
            result.setdefault(f"{way}_effect", []).append(effect.to_numpy(float))
    return {name: np.stack(values) for name, values in result.items()}


def provenance() -> dict[str, Any]:
    """Machine, commit and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=BENCHMARKS, capture_output=True, text=True
    ).stdout.strip()
    packages = ("vivace", "torch", "numba", "numpy", "anndata", "lightning-fabric")
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "commit": commit,
        "versions": {p: version(p) for p in packages},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def run_json(python: str | Path, script: str, *args: object, **environment: str) -> dict[str, Any]:
    """Run a script of this folder with some interpreter; return the JSON on its last line."""
    command = [str(python), str(BENCHMARKS / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def memory_mb(field: str = "VmHWM") -> int:
    """VmRSS of this process, or VmHWM (its peak); ``ru_maxrss`` would include the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return round(int(line.split()[1]) / 1024)
    return 0


def report(name: str, result: dict[str, Any], save: bool) -> None:
    """Print the result, and save it under ``results/`` if requested."""
    print(json.dumps(result, indent=1))
    if save:
        (BENCHMARKS / "results").mkdir(exist_ok=True)
        (BENCHMARKS / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
