"""A trained model in one figure: the latent space beside the training curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vivace.pl.canvas import need_plotting
from vivace.types import F32

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_overview(
    path: str | Path,
    latent_nk: F32,
    labels: pd.Series[str],
    history: pd.DataFrame,
    *,
    seed: int = 0,
) -> None:
    """Write a PNG of the latent space, by t-SNE and coloured by label, and the training curve.

    Parameters
    ----------
    path
        File to write.
    latent_nk
        Latent representation, shape (n, k).
    labels
        Label of each cell, length n.
    history
        ``model.history``.
    seed
        Random seed of the t-SNE.

    Raises
    ------
    MissingExtraError
        If the plotting libraries are not installed.
    """
    need_plotting()
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    tsne = TSNE(init="pca", perplexity=30, random_state=seed).fit_transform(latent_nk)
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_cells(left, tsne, labels)
    _draw_curve(right, history)
    figure.savefig(path)


def _draw_cells(ax: Axes, tsne: F32, labels: pd.Series[str]) -> None:
    from matplotlib import colormaps

    palette = colormaps["tab10" if labels.nunique() <= 10 else "tab20"]
    # the most frequent label first, because later points cover earlier ones
    for i, label in enumerate(labels.astype(str).value_counts().index):
        points = tsne[(labels.astype(str) == label).to_numpy()]
        colour = palette(i % palette.N)
        ax.scatter(points[:, 0], points[:, 1], s=5, linewidths=0, color=colour, label=label)
    ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    ax.set_title("Latent space (X_scVI)", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_curve(ax: Axes, history: pd.DataFrame) -> None:
    epochs = history.index + 1
    ax.plot(epochs, history["elbo_train"], color="0.55", label="training cells")
    if history["elbo_validation"].notna().any():
        ax.plot(epochs, history["elbo_validation"], color="tab:red", label="held-out cells")
    ax.set(xlabel="epoch", ylabel="negative ELBO (nats per cell)")
    seconds = history["seconds"].sum()
    ax.set_title(f"Training: {len(history)} epochs in {seconds:.1f} s", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
