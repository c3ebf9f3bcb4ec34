"""Pictures of a differential expression result: a volcano, and a heat map of the surest genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vivace.errors import DataError, OptionError, near
from vivace.report.overview import need_plotting
from vivace.types import F64, Bool

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_BY_CHANCE = 1e-4  # least probability not to differ that is drawn: draws say no more
_WIDE = 0.18  # inches of a gene in the heat map


def volcano(
    result: pd.DataFrame,
    comparison: str | None = None,
    *,
    n_genes: int = 10,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Log2 fold change against how sure it is, genes that are called in colour.

    Parameters
    ----------
    result
        ``model.differential_expression(...)``, of mode "change".
    comparison
        Which one, by its column ``comparison``; None where there is one only.
    n_genes
        Genes that are named on either side.
    ax
        Where to draw; None for a figure of its own.
    save
        File to write, such as ``volcano.png``.

    Returns
    -------
    The axes.

    Raises
    ------
    DataError, OptionError
        If there is no such comparison, or if the result is of mode "vanilla".
    MissingExtraError
        If matplotlib is not installed.
    """
    need_plotting()
    table = _one(result, comparison)
    called = _called(table)
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5.2, 4.4), layout="constrained", dpi=150).subplots()
    effect = table["lfc_mean"].to_numpy(float)
    unsure = np.maximum(table["proba_not_de"].to_numpy(float), _BY_CHANCE)
    for mask, colour, label in (
        (~called, "0.7", "not called"),
        (called & (effect > 0), "tab:red", "up"),
        (called & (effect <= 0), "tab:blue", "down"),
    ):
        label = f"{label} ({int(mask.sum()):,})"
        ax.scatter(effect[mask], unsure[mask], s=7, linewidths=0, color=colour, label=label)
    delta = float(table["delta"].iloc[0])
    for edge in (-delta, delta):
        if np.isfinite(edge):
            ax.axvline(edge, color="0.5", linewidth=0.7, linestyle=":")
    ax.set_yscale("log")
    ax.invert_yaxis()
    _name_genes(ax, table, effect, unsure, called, n_genes)
    ax.set(xlabel="log2 fold change", ylabel="probability not to differ")
    ax.set_title(str(table["comparison"].iloc[0]), loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7, loc="lower right", markerscale=2)
    _write(ax, save)
    return ax


def _name_genes(
    ax: Axes,
    table: pd.DataFrame,
    effect: F64,
    unsure: F64,
    called: Bool,
    n_genes: int,
) -> None:
    for side in (1, -1):
        mine = np.flatnonzero(called & (np.sign(effect) == side))
        for at in mine[np.argsort(-np.abs(effect[mine]), kind="stable")][:n_genes]:
            ax.annotate(
                str(table.index[at]),
                (effect[at], unsure[at]),
                xytext=(2 * side, 2),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                fontsize=6,
            )


def heatmap(
    result: pd.DataFrame,
    adata: AnnData,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    n_genes: int = 5,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Mean expression of the surest genes of each comparison in every group.

    Parameters
    ----------
    result
        ``model.differential_expression(groupby=...)``, of mode "change".
    adata
        The cells, with raw counts in X or ``layer``; they are normalised and logarithmised for
        the picture, and each gene is shown from its lowest group (0) to its highest (1).
    groupby
        Column of obs; None for the result's own.
    layer
        Layer with raw counts; None for X.
    n_genes
        Genes of each comparison: those that are called and up, the surest first.
    ax
        Where to draw; None for a figure of its own.
    save
        File to write.

    Returns
    -------
    The axes.
    """
    need_plotting()
    import scipy.sparse as sp

    groupby = result.attrs.get("groupby") if groupby is None else groupby
    if groupby is None or groupby not in adata.obs:
        raise DataError(
            f"obs has no column {groupby!r} to take groups from; give groupby=, "
            f"{near(groupby, adata.obs.columns)}"
        )
    genes: list[str] = []
    for _, table in result.groupby("comparison", sort=False):
        called = _called(table)
        up = table.index[called & (table["lfc_mean"].to_numpy(float) > 0)]
        genes += [str(g) for g in up[:n_genes] if str(g) not in genes]
    if not genes:
        raise DataError("No gene is called and up in any comparison, so there is nothing to draw.")
    missing = [g for g in genes if g not in adata.var_names]
    if missing:
        raise DataError(f"adata has no gene {missing[0]!r}; {near(missing[0], adata.var_names)}")
    if layer is not None and layer not in adata.layers:
        raise DataError(
            f"adata.layers has no {layer!r} (layer); {near(layer, adata.layers.keys())}"
        )
    counts = sp.csr_matrix(adata.X if layer is None else adata.layers[layer])
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1.0)
    x = counts[:, adata.var_names.get_indexer(genes)].toarray()
    frame = pd.DataFrame(np.log1p(1e4 * x / total[:, None]), columns=genes)
    groups = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    mean = frame.groupby(groups.to_numpy(), observed=True).mean()
    shown = (mean - mean.min()) / (mean.max() - mean.min()).replace(0.0, 1.0)
    if ax is None:
        from matplotlib.figure import Figure

        size = (2.5 + _WIDE * len(genes), 1.3 + 0.22 * len(mean))
        ax = Figure(figsize=size, layout="constrained", dpi=150).subplots()
    image = ax.imshow(shown.to_numpy(), aspect="auto", cmap="Reds", vmin=0, vmax=1)
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=6)
    ax.set_yticks(range(len(mean)), list(mean.index), fontsize=7)
    figure: Any = ax.figure
    figure.colorbar(image, ax=ax, label="scaled expression", pad=0.01)
    _write(ax, save)
    return ax


def _one(result: pd.DataFrame, comparison: str | None) -> pd.DataFrame:
    if "comparison" not in result or len(result) == 0:
        raise DataError("This is no result of differential_expression: it has no comparison.")
    names = list(dict.fromkeys(result["comparison"]))
    if comparison is None and len(names) > 1:
        raise OptionError(f"The result has {len(names)} comparisons; name one, {near('', names)}")
    if comparison is not None and comparison not in names:
        raise DataError(f"The result has no comparison {comparison!r}; {near(comparison, names)}")
    return result[result["comparison"] == (names[0] if comparison is None else comparison)]


def _called(table: pd.DataFrame) -> Bool:
    """Which genes are called."""
    names = [c for c in table.columns if str(c).startswith("is_de_fdr_")]
    if not names:
        raise OptionError(
            "The result is of mode 'vanilla', which calls no genes; use mode='change'."
        )
    found: Bool = table[names[0]].to_numpy(bool)
    return found


def _write(ax: Axes, save: str | Path | None) -> None:
    if save is not None:
        figure: Any = ax.figure
        figure.savefig(save)
