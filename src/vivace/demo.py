"""The demonstration: from real counts to a latent space, a model and a figure."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData
from rich.console import Console

from vivace import datasets
from vivace.config import settings
from vivace.model import SCVI
from vivace.report import draw_overview, need_plotting
from vivace.store.arrays import write_anndata
from vivace.store.folder import check_place
from vivace.store.place import check_free, written_whole

_DATA, _MODEL, _FIGURE = "pbmc3k.h5ad", "model", "overview.png"
_ELBO_SAMPLES = 25  # of the latent, per held-out cell


def run_demo(
    folder: Path, *, seed: int = 0, overwrite: bool = False, progress: bool = True
) -> None:
    """Train SCVI on PBMC 3k and write data, model and figure into ``folder``.

    Parameters
    ----------
    folder
        Where to write ``pbmc3k.h5ad``, ``model`` and ``overview.png``.
    seed
        Random seed of the model, its training and the figure.
    overwrite
        Whether to replace them if they exist.
    progress
        Whether to show a progress bar.

    Raises
    ------
    OptionError, ModelFileError
        If one of them exists and ``overwrite`` is False.
    MissingExtraError
        If the plotting libraries are not installed.
    """
    need_plotting()
    for name in (_DATA, _FIGURE):
        check_free(folder / name, overwrite)
    check_place(folder / _MODEL, overwrite)
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
        f"Wrote {folder / _DATA} (latent space in obsm['X_scVI'])\n"
        f"      {folder / _MODEL}\n"
        f"      {folder / _FIGURE}",
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
    write_anndata(adata, folder / _DATA, {"compression": "gzip"})
    model.save(folder / _MODEL, overwrite=True)
    latent, labels = adata.obsm["X_scVI"], adata.obs["cell_type"]
    with written_whole(folder / _FIGURE) as new:
        draw_overview(new, latent, labels, model.history, seed=seed)
