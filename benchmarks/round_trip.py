"""Convert a model from each library to the other and compare the ELBO of the same cells in both.

Usage: python benchmarks/round_trip.py --raw kang_ifnb_dev.h5ad --peer-python .peer/bin/python --save

Both ELBOs are means over cells with one sample per cell, so they agree up to sampling noise; the
latent means agree to float32 accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np

import vivace
from common import provenance, report, run_json

EPOCHS = 10
N_SAMPLES = 10


def score_vivace(folder: Path, adata: anndata.AnnData, latent_file: Path) -> dict[str, Any]:
    """ELBO, its standard error over samples, and the distance to the peer's latent means."""
    model = vivace.SCVI.load(folder, adata)
    elbos = [model.get_elbo(seed=i) for i in range(N_SAMPLES)]
    peer_latent = np.load(latent_file)
    return {
        "vivace_elbo": round(float(np.mean(elbos)), 3),
        "vivace_elbo_sd_of_a_draw": round(float(np.std(elbos)), 3),
        "latent_largest_difference": float(
            f"{np.abs(model.get_latent_representation() - peer_latent).max():.1e}"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, type=Path, help="h5ad of raw counts")
    parser.add_argument("--batch-key", default="condition")
    parser.add_argument("--genes", default=2000, type=int)
    parser.add_argument("--peer-python", required=True, help="Python that has scvi-tools 1.4.2")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "round_trip", **provenance()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "data.h5ad"
        run_json(args.peer_python, "peer.py", "prepare", args.raw, data, args.batch_key, args.genes)
        adata = anndata.read_h5ad(data)
        vivace.SCVI.setup_anndata(adata, batch_key=args.batch_key)
        model = vivace.SCVI(adata)
        model.train(EPOCHS, progress=False)
        model.save(folder / "to_peer", format="scvi-tools")
        for name, path in (("vivace to scvi-tools", folder / "to_peer"), ("back", folder / "back")):
            # the peer loads the first, trains two more epochs, and saves the second
            peer = run_json(
                args.peer_python, "peer.py", "judge", path, data, N_SAMPLES, folder / "latent.npy",
                *([folder / "back"] if name != "back" else []),
            )  # fmt: skip
            result[name] = peer | score_vivace(path, adata, folder / "latent.npy")
            print(name, result[name])
    report("round_trip", result, args.save)


if __name__ == "__main__":
    main()
