"""One picture of a trained model: the latent space beside the training curve."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vivace.errors import MissingExtraError
from vivace.types import F32

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def need_plotting() -> None:
    """Refuse early, in one sentence, where the plotting libraries are missing."""
    for package in ("matplotlib", "sklearn"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"Drawing needs {package}, which is not installed; run pip install 'vivace[plot]'."
            )


def draw_overview(
    path: str | Path,
    latent_nk: F32,
    labels: pd.Series[str],
    history: pd.DataFrame,
    *,
    seed: int = 0,
) -> None:
    """Write a PNG: t-SNE of the latent coloured by label, beside the training curve.

    Parameters
    ----------
    path
        File to write.
    latent_nk
        Latent representation, shape (n, k).
    labels
        A label for each cell.
    history
        ``model.history``.
    seed
        Of the t-SNE.
    """
    need_plotting()
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    place = TSNE(init="pca", perplexity=30, random_state=seed).fit_transform(latent_nk)
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _scatter(left, place, labels)
    _curve(right, history)
    figure.savefig(path)


def _scatter(axes: Axes, place: F32, labels: pd.Series[str]) -> None:
    from matplotlib import colormaps

    palette = colormaps["tab10" if labels.nunique() <= 10 else "tab20"]
    kinds = labels.astype(str).value_counts().index
    for i, kind in enumerate(kinds):
        at = (labels.astype(str) == kind).to_numpy()
        axes.scatter(
            place[at, 0], place[at, 1], s=5, linewidths=0, color=palette(i % palette.N), label=kind
        )
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axes.set_title("Latent space (X_scVI)", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _curve(axes: Axes, history: pd.DataFrame) -> None:
    epochs = history.index + 1
    axes.plot(epochs, history["elbo_train"], color="0.55", label="training cells")
    if history["elbo_validation"].notna().any():
        axes.plot(epochs, history["elbo_validation"], color="tab:red", label="held-out cells")
    axes.set(xlabel="epoch", ylabel="negative ELBO (nats a cell)")
    axes.set_title(
        f"Training: {len(history)} epochs in {history['seconds'].sum():.1f} s", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
