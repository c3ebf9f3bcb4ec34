"""The demonstration: from real counts to a latent space, a model and a figure."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData
from rich.console import Console

from vivace import datasets
from vivace.config import settings
from vivace.model import SCVI
from vivace.report import draw_overview, need_plotting
from vivace.store.folder import write_h5ad

_ELBO_SAMPLES = 25  # of the latent, per held-out cell


def run_demo(folder: Path, *, seed: int = 0, progress: bool = True) -> None:
    """Train SCVI on PBMC 3k and write data, model and figure into ``folder``.

    Parameters
    ----------
    folder
        Where to write ``pbmc3k.h5ad``, ``model`` and ``overview.png``.
    seed
        Random seed of the model, its training and the figure.
    progress
        Whether to show a progress bar.

    Raises
    ------
    MissingExtraError
        If the plotting libraries are not installed.
    """
    need_plotting()
    console = Console()
    adata = datasets.pbmc3k()
    console.print(
        f"Data: 10x PBMC 3k, {adata.n_obs:,} cells x {adata.n_vars:,} genes, "
        f"{adata.obs['cell_type'].nunique()} cell types"
    )
    SCVI.setup_anndata(adata)
    settings.seed = seed
    model = SCVI(adata)
    if progress:
        console.print("Training")
    model.train(seed=seed, progress=progress)
    adata.obsm["X_scVI"] = model.get_latent_representation()
    console.print(_describe_training(model), highlight=False)

    _write(folder, adata, model, seed)
    console.print(
        f"Wrote {folder / 'pbmc3k.h5ad'} (latent space in obsm['X_scVI'])\n"
        f"      {folder / 'model'}\n"
        f"      {folder / 'overview.png'}",
        highlight=False,
        soft_wrap=True,
    )


def _describe_training(model: SCVI) -> str:
    """Size, time and held-out ELBO of a training run."""
    history = model.history
    held_out = model.get_elbo(indices=model.validation_indices, n_samples=_ELBO_SAMPLES, seed=0)
    seconds = history["seconds"].sum()
    n_encoded = len(history) * len(model.train_indices)  # a cell counts once per epoch
    compiled = history["compile_seconds"].sum()
    # kernels are compiled once per machine; the seconds of training exclude that time
    first = f"Compiled: kernels for this processor, once, {compiled:.1f} s\n" if compiled else ""
    return (
        f"{first}Trained: {len(model.train_indices):,} cells, {len(history)} epochs, {seconds:.1f} s "
        f"({n_encoded / seconds:,.0f} cells/s)\n"
        f"Held-out ELBO: {held_out:.1f} nats per cell ({len(model.validation_indices)} cells not "
        "trained on; higher is better)"
    )


def _write(folder: Path, adata: AnnData, model: SCVI, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_h5ad(adata, folder / "pbmc3k.h5ad")
    model.save(folder / "model", overwrite=True)
    draw_overview(
        folder / "overview.png",
        adata.obsm["X_scVI"],
        adata.obs["cell_type"],
        model.history,
        seed=seed,
    )
