"""How close vivace is to every array that scvi-tools 1.4.2 computes from its own models.

Usage: python benchmarks/golden_table.py --save

The error of an entry is |a - b| / (|b| + 1e-3 max |b|); the tolerance is 1e-4, and
1e-5 for the negative log-likelihood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import torch

from common import provenance, report
from vivace import LinearSCVI, model

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def arrays(loaded: model.SCVI | LinearSCVI, adata: anndata.AnnData, z: torch.Tensor) -> dict:
    """Every array, computed with the public methods and with the fused kernels."""
    ln = loaded.config.latent_distribution == "ln"
    point = z.softmax(-1) if ln else z
    mean, variance = loaded.get_latent_representation(return_dist=True)
    cells = loaded._own_source().gather(np.arange(adata.n_obs))
    with torch.no_grad():
        inference = loaded.module.encode(cells)
        nll = loaded.module.nll(point, cells)
        library_kl = loaded.module.library_kl(inference, cells)
    first = {"indices": range(24)}
    result = loaded.decode(point[:24], **first)
    last = loaded.decode(point[:24], transform_batch=_last(loaded), **first)
    normal = loaded.config.gene_likelihood == "normal"
    got = {
        "qz_mean": mean,
        "qz_var": variance,
        "library": cells.library.log() if inference.library is None else inference.library.mean,
        "px_scale": result.normal_mu if normal else result.scale,
        "px_scale_transform_last_batch": last.normal_mu if normal else last.scale,
        "neg_log_likelihood": nll,
        "kl_divergence_z": inference.z.kl(),
        "kl_divergence_l": library_kl,
    }
    if normal:
        got |= {"px_mu": result.mu, "px_sigma": result.stddev}
    elif loaded.config.gene_likelihood == "poisson":
        got["px_rate"] = result.rate
    else:
        got |= {"px_mu": result.mu, "px_theta": result.theta}
    if loaded.config.gene_likelihood == "zinb":
        got["px_zi_logits"] = result.zi_logits
    if inference.library is not None:
        got |= {"ql_mean": inference.library.mean, "ql_var": inference.library.variance}
    if isinstance(loaded, LinearSCVI):
        got["loadings"] = loaded.get_loadings().to_numpy()
    return got


def _last(loaded: model.SCVI | LinearSCVI) -> object:
    has_batch = loaded.schema.declarations.batch_key is not None
    return loaded.schema.batches[-1] if has_batch else None


def worst(a: object, b: np.ndarray) -> float:
    a = np.asarray(a, np.float64).reshape(b.shape)
    scale = np.abs(b) + 1e-3 * np.abs(b).max()
    return float((np.abs(a - b) / np.where(scale > 0, scale, 1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    table: dict[str, dict[str, float]] = {}
    for folder in sorted(p for p in GOLDEN.iterdir() if (p / "model.pt").exists()):
        loaded = model.load(folder, adata)
        expected = dict(np.load(folder / "expected.npz"))
        got = arrays(loaded, adata, torch.from_numpy(expected.pop("z")).float())
        table[folder.name] = {
            name: float(f"{worst(got[name], b):.1e}") for name, b in sorted(expected.items())
        }
        print(folder.name, table[folder.name])
    report("golden_table", {"benchmark": "golden_table", **provenance(), "worst": table}, args.save)


if __name__ == "__main__":
    main()
