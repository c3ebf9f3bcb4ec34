"""Reference mapping and label transfer: data sets, and the comparison of both libraries.

Usage: python benchmarks/transfer.py --raw DATA --folder WORK --peer-python PEER [--only TASK ...]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import anndata

from common import run_json

N_GENES = 2_000


@dataclass(frozen=True)
class Task:
    """A reference and a query.

    Parameters
    ----------
    file : of raw counts
    batch_key, label_key : columns
    query_key, query : cells whose ``query_key`` is ``query`` are mapped onto the others
    """

    file: str
    batch_key: str
    label_key: str
    query_key: str
    query: str


_STUDIES, _KANG = "pbmc_multistudy_dev.h5ad", "kang_ifnb_dev.h5ad"
TASKS = {
    "studies, kang": Task(_STUDIES, "batch", "cell_type_coarse", "batch", "kang_ctrl"),
    "studies, pbmc3k": Task(_STUDIES, "batch", "cell_type_coarse", "batch", "pbmc3k"),
    "studies, zheng": Task(_STUDIES, "batch", "cell_type_coarse", "batch", "zheng_facs"),
    "stimulated": Task(_KANG, "condition", "cell_type", "condition", "stim"),
    **{
        f"donor {d[1:]}": Task(_KANG, "donor", "cell_type", "donor", d)
        for d in ("d101", "d1015", "d107", "d1244")
    },
}


def prepare(name: str, raw: Path, folder: Path, peer_python: str) -> Path:
    """The folder of a task, with ``reference.h5ad`` (its variable genes) and ``query.h5ad`` (all)."""
    task, there = TASKS[name], folder / name.replace(", ", "_").replace(" ", "_")
    if (there / "query.h5ad").exists():  # the last that is written
        return there
    there.mkdir(parents=True, exist_ok=True)
    adata = anndata.read_h5ad(raw / task.file)
    is_query = adata.obs[task.query_key].astype(str) == task.query
    known = adata[~is_query].copy()
    batch_key = task.batch_key if known.obs[task.batch_key].nunique() > 1 else "none"
    known.write_h5ad(there / "all.h5ad")
    run_json(
        peer_python, "peer.py", "prepare", there / "all.h5ad", there / "reference.h5ad", batch_key,
        N_GENES,
    )  # fmt: skip
    (there / "all.h5ad").unlink()
    adata[is_query].copy().write_h5ad(there / "query.h5ad")
    return there


def peer(name: str, there: Path, peer_python: str) -> None:
    """scvi-tools' side, once; ``peer.npz`` and ``peer.json`` in the folder of the task."""
    if (there / "peer.json").exists():
        return
    found = run_json(
        peer_python, "peer.py", "map_query", there / "reference.h5ad", there / "query.h5ad",
        TASKS[name].batch_key, 0, there / "peer.npz", OMP_NUM_THREADS="1",
    )  # fmt: skip
    (there / "peer.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    chosen = parser.parse_args()
    for name in chosen.only:
        there = prepare(name, chosen.raw, chosen.folder, chosen.peer_python)
        peer(name, there, chosen.peer_python)


if __name__ == "__main__":
    main()
