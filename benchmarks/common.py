"""What the benchmark scripts share: running the peer, and saying where a figure is from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COVARIATES = {  # of simulated counts, as both libraries' setup_anndata takes them
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["score"],
}


def batch_column(batch_key: str) -> str | None:
    """The column that a BATCH_KEY of the command line names; "none" is no batch."""
    return None if batch_key == "none" else batch_key


def provenance() -> dict[str, Any]:
    """Machine, commit and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
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
    """Run a script of this folder with some Python and read the JSON on its last line."""
    command = [str(python), str(HERE / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def report(name: str, result: dict[str, Any], save: bool) -> None:
    """Print the result, and keep it under ``results/`` if asked."""
    print(json.dumps(result, indent=1))
    if save:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
