"""Figures of differential expression: a volcano plot, and a heat map of the most certain genes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vivace.data.checks import describe_location
from vivace.data.columns import CodedColumn, code_column, read_gene_names
from vivace.data.structure import check_structure
from vivace.errors import ArgumentTypeError, DataError, OptionError, brief, list_names, near
from vivace.pl.canvas import need_plotting, new_axes, save_axes
from vivace.types import F64, Bool
from vivace.validate import Int, check_anndata, checked

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_LEAST_PROBABILITY = 1e-4  # of no difference; a few thousand samples resolve no smaller one
_GENE_WIDTH = 0.18  # inches, in the heat map
_GROUP_HEIGHT = 0.22


def _check_result(name: str, value: Any) -> Any:
    """Refuse anything but a frame with a comparison."""
    if not isinstance(value, pd.DataFrame):
        raise ArgumentTypeError(
            f"{name} must be the frame that differential_expression returned, not {brief(value)}."
        )
    if "comparison" not in value or len(value) == 0:
        raise DataError("The frame has no comparison; give the result of differential_expression.")
    return value


def _check_cells(name: str, value: Any) -> Any:
    check_anndata(f"{name} must be", value)
    return value


@checked(result=_check_result, n_genes=Int(at_least=0))
def volcano(
    result: pd.DataFrame,
    comparison: str | None = None,
    *,
    n_genes: int = 10,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw each gene's log2 fold change against its probability of not differing.

    Called genes are in colour.

    Parameters
    ----------
    result
        ``model.differential_expression(...)`` of mode "change".
    comparison
        A comparison by its name in the column ``comparison``. None if there is only one.
    n_genes
        Number of called genes to label on each side, the largest changes first.
    ax
        Axes to draw on; None for a new figure.
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
        If the plotting libraries are not installed.
    """
    need_plotting()
    table = _select_comparison(result, comparison)
    called = _called_genes(table)
    if ax is None:
        ax = new_axes(5.2, 4.4)
    change = table["lfc_mean"].to_numpy(float)
    probability = np.maximum(table["proba_not_de"].to_numpy(float), _LEAST_PROBABILITY)
    for mask, colour, label in (
        (~called, "0.7", "not called"),
        (called & (change > 0), "tab:red", "up"),
        (called & (change <= 0), "tab:blue", "down"),
    ):
        label = f"{label} ({int(mask.sum()):,})"
        ax.scatter(change[mask], probability[mask], s=7, linewidths=0, color=colour, label=label)
    delta = float(table["delta"].iloc[0])
    for threshold in (-delta, delta):
        if np.isfinite(threshold):
            ax.axvline(threshold, color="0.5", linewidth=0.7, linestyle=":")
    ax.set_yscale("log")
    ax.invert_yaxis()
    _name_genes(ax, table, change, probability, called, n_genes)
    ax.set(xlabel="log2 fold change", ylabel="probability of not differing")
    ax.set_title(str(table["comparison"].iloc[0]), loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7, loc="lower right", markerscale=2)
    save_axes(ax, save)
    return ax


def _name_genes(
    ax: Axes,
    table: pd.DataFrame,
    change: F64,
    probability: F64,
    called: Bool,
    n_genes: int,
) -> None:
    """Write the names of the called genes with the largest changes upwards and downwards."""
    for side in (1, -1):
        genes = np.flatnonzero(called & (np.sign(change) == side))
        for gene in genes[np.argsort(-np.abs(change[genes]), kind="stable")][:n_genes]:
            ax.annotate(
                str(table.index[gene]),
                (change[gene], probability[gene]),
                xytext=(2 * side, 2),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                fontsize=6,
            )


@checked(result=_check_result, adata=_check_cells, n_genes=Int(at_least=0))
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
    """Draw the mean expression of each comparison's most certain genes in every group.

    Parameters
    ----------
    result
        ``model.differential_expression(groupby=...)`` of mode "change".
    adata
        The cells, with raw counts in X or ``layer``. For the figure they are normalised to 10,000
        counts per cell and log-transformed; each gene is scaled from its lowest group (0) to its
        highest (1).
    groupby
        Column of obs with the groups; None for that of the result.
    layer
        Layer with raw counts; None for X.
    n_genes
        Number of genes per comparison, among those called as upregulated, most certain first.
    ax
        Axes to draw on; None for a new figure.
    save
        File to write, such as ``heatmap.png``.

    Returns
    -------
    The axes.

    Raises
    ------
    DataError, OptionError
        If a column, layer or gene is missing, no gene is called as upregulated, or the result is
        of mode "vanilla".
    MissingExtraError
        If the plotting libraries are not installed.
    """
    need_plotting()
    groupby = result.attrs.get("groupby") if groupby is None else groupby
    if groupby is None:
        raise DataError("The result is of cells and not of groups of a column; give groupby=.")
    groups = code_column(adata, "groupby", groupby, allow_missing=True)
    genes = _called_up_genes(result, n_genes)
    if not genes:
        raise DataError(
            "No gene is called as upregulated in any comparison, so there is nothing to draw."
        )
    mean = _mean_expression(adata, genes, groups, layer)
    # a gene that is equal in all groups is 0, and not 0 / 0
    scaled = (mean - mean.min()) / (mean.max() - mean.min()).replace(0.0, 1.0)
    if ax is None:
        ax = new_axes(2.5 + _GENE_WIDTH * len(genes), 1.3 + _GROUP_HEIGHT * len(mean))
    image = ax.imshow(scaled.to_numpy(), aspect="auto", cmap="Reds", vmin=0, vmax=1)
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=6)
    ax.set_yticks(range(len(mean)), list(mean.index), fontsize=7)
    figure: Any = ax.figure
    figure.colorbar(image, ax=ax, label="scaled expression", pad=0.01)
    save_axes(ax, save)
    return ax


def _mean_expression(
    adata: AnnData, genes: list[str], groups: CodedColumn, layer: str | None
) -> pd.DataFrame:
    """Mean log-normalised expression, groups x genes."""
    positions = pd.Index(read_gene_names(adata)).get_indexer(pd.Index(genes))
    if (positions < 0).any():
        missing = genes[int(np.argmin(positions))]
        raise DataError(f"adata has no gene {brief(missing)}; {near(missing, adata.var_names)}")
    if layer is not None and layer not in adata.layers:
        raise DataError(
            f"adata.layers has no {brief(layer)} (layer); {near(layer, adata.layers.keys())}"
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    check_structure(matrix, describe_location(layer))
    counts = sp.csr_matrix(matrix)
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1.0)
    x = counts[:, positions].toarray()
    expression = pd.DataFrame(np.log1p(1e4 * x / total[:, None]), columns=genes)
    names = np.array([*groups.categories, None], object)  # the last of cells without a group
    return expression.groupby(names[groups.codes]).mean()


def _called_up_genes(result: pd.DataFrame, n_genes: int) -> list[str]:
    """The first genes of each comparison that are called as upregulated, without repeats."""
    genes: dict[str, None] = {}
    for _, table in result.groupby("comparison", sort=False):
        up = table.index[_called_genes(table) & (table["lfc_mean"].to_numpy(float) > 0)]
        genes |= dict.fromkeys(map(str, up[:n_genes]))
    return list(genes)


def _select_comparison(result: pd.DataFrame, comparison: str | None) -> pd.DataFrame:
    names = list(dict.fromkeys(result["comparison"]))
    if comparison is None and len(names) > 1:
        raise OptionError(
            f"The result has {len(names)} comparisons; name one: "
            f"{list_names(sorted(names), most=10)}."
        )
    if comparison is not None and (not isinstance(comparison, str) or comparison not in names):
        raise DataError(
            f"The result has no comparison {brief(comparison)}; {near(comparison, names)}"
        )
    return result[result["comparison"] == (names[0] if comparison is None else comparison)]


def _called_genes(table: pd.DataFrame) -> Bool:
    """Whether each gene is called."""
    names = [c for c in table.columns if str(c).startswith("is_de_fdr_")]
    if not names:
        raise OptionError(
            "The result is of mode 'vanilla', which calls no genes; use mode='change'."
        )
    called: Bool = table[names[0]].to_numpy(bool)
    return called
