"""Aligns the genes of a query to those of a reference."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from vivace.core import Core
from vivace.data.schema import QUERY_REPORT_KEY
from vivace.data.structure import check_structure
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, brief, list_names, near
from vivace.store.saving import read_genes
from vivace.types import I64, NameIndex
from vivace.validate import Number, check_anndata, checked, folder_path, refuse_repeated_name

_VERSIONED = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+(_PAR_Y)?$")
_MANY = 0.5  # share of the reference's genes that makes a column of var worth suggesting


@dataclass(frozen=True)
class GeneReport:
    """How the genes of a query were matched to those of the reference.

    Parameters
    ----------
    n_genes
        Number of genes of the reference.
    present
        Number of those that the query has.
    missing
        Names of the others, which are padded with zeros.
    duplicated
        Names that several genes of the query have; their counts are added up.
    ambiguous
        Identifiers that several genes of the reference share apart from their version; they are
        only matched with their version.
    share_of_counts
        Share of the query's counts that belong to genes of the reference.

    Examples
    --------
    >>> GeneReport(4, 3, ("CD4",), (), (), 0.9)
    3 of 4 genes of the reference are in the query, with 90.0 % of its counts; missing: 'CD4'
    """

    n_genes: int
    present: int
    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    ambiguous: tuple[str, ...]
    share_of_counts: float

    @property
    def share(self) -> float:
        """Share of the reference's genes that the query has."""
        return self.present / self.n_genes

    def as_dict(self) -> dict[str, Any]:
        """The report in a form that ``adata.uns`` can hold and write."""
        return {
            k: np.array(v, dtype=str) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
        }

    def __repr__(self) -> str:
        lists = {
            "missing": self.missing,
            "counts added up": self.duplicated,
            "ambiguous": self.ambiguous,
        }
        shown = "".join(
            f"; {title}: {list_names(names)}" for title, names in lists.items() if names
        )
        return (
            f"{self.present:,} of {self.n_genes:,} genes of the reference are in the query, with "
            f"{100 * self.share_of_counts:.1f} % of its counts{shown}"
        )


@checked(min_overlap=Number(at_least=0, at_most=1))
def prepare_query_anndata(
    adata: AnnData,
    reference_model: Core | str | Path,
    return_reference_var_names: bool = False,
    inplace: bool = True,
    *,
    gene_key: str | None = None,
    min_overlap: float = 0.8,
    allow_non_integer: bool = False,
) -> GeneReport | AnnData | NameIndex:
    """Align the genes of a query to those of a reference.

    Genes are matched by name, Ensembl identifiers with or without their version. Counts of genes
    with the same name are added up, in X and every layer, and missing genes are padded with
    zeros. ``varm`` and ``varp`` are dropped.

    Parameters
    ----------
    adata
        The query, cells x genes, raw counts.
    reference_model
        A model, or its folder, which scvi-tools may have written.
    return_reference_var_names
        Only return the names of the reference's genes.
    inplace
        Change ``adata``; False leaves it unchanged and returns a new AnnData.
    gene_key
        Column of var with identifiers like the reference's; None for var_names.
    min_overlap
        Smallest share of the reference's genes that the query must have.
    allow_non_integer
        Declare that counts which are not integers are intended, as in :meth:`setup_anndata`;
        :meth:`load_query_data` then accepts them.

    Returns
    -------
    A :class:`~vivace.transfer.GeneReport`, or the new AnnData with ``inplace=False``. In both cases
    the report is also in ``uns["query_genes"]``.

    Raises
    ------
    DataError
        If the query has fewer genes; the message says which column of var has them, or which
        are missing. ``adata`` is then unchanged.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()[:200].copy()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata)
    >>> query = adata[:, :1800].copy()
    >>> report = vivace.SCVI.prepare_query_anndata(query, model)
    >>> report.present, query.shape
    (1800, (200, 2005))
    """
    if isinstance(reference_model, str | Path):
        genes, layer = read_genes(folder_path(reference_model, "reference_model"))
    elif isinstance(reference_model, Core):
        schema = reference_model.schema
        genes, layer = schema.genes, schema.declarations.layer
    else:
        raise ArgumentTypeError(
            "reference_model must be a model or the path of its folder, not "
            f"{type(reference_model).__name__}."
        )
    if return_reference_var_names:
        return pd.Index(genes)
    check_anndata("prepare_query_anndata takes", adata)
    new, report = align_genes(adata, genes, gene_key, min_overlap, layer)
    new.uns[QUERY_REPORT_KEY] = report.as_dict()
    if allow_non_integer:
        new.uns[QUERY_REPORT_KEY]["allow_non_integer"] = True
    if not inplace:
        return new
    adata._init_as_actual(new)
    return report


def align_genes(
    adata: AnnData,
    genes: tuple[str, ...],
    gene_key: str | None = None,
    min_overlap: float = 0.8,
    layer: str | None = None,
) -> tuple[AnnData, GeneReport]:
    """A new AnnData of the query with the reference's genes, in their order, and the report.

    Parameters
    ----------
    adata
        The query, which stays unchanged.
    genes
        Names of the reference's genes.
    gene_key
        Column of var with identifiers like the reference's; None for var_names.
    min_overlap
        Smallest share of the reference's genes that the query must have.
    layer
        Layer of the counts that the report describes; None for X.

    Raises
    ------
    DataError
        If the query has too few genes; the message says which column of var would work.
    """
    _check_in_memory(adata, layer)
    names = _read_names(adata, gene_key)
    position, ambiguous = _match_genes(names, genes)
    present = np.unique(position[position >= 0])
    missing = np.setdiff1d(np.arange(len(genes)), present)
    if len(present) == 0 or len(present) < min_overlap * len(genes):
        raise DataError(
            _explain_too_few(adata, genes, gene_key, len(present), missing, min_overlap)
        )
    # A product with this matrix moves columns to their positions and adds up those of one gene.
    matched = np.flatnonzero(position >= 0)
    ones = np.ones(len(matched), np.float32)
    shape = (adata.n_vars, len(genes))
    move = sp.csr_matrix((ones, (matched, position[matched])), shape=shape)
    several = np.flatnonzero(np.bincount(position[matched], minlength=len(genes)) > 1)
    counts = adata.X if layer is None else adata.layers[layer]
    new = AnnData(
        X=None if adata.X is None else _sum_columns(adata.X, move),
        obs=adata.obs.copy(),
        var=_align_var(adata.var, position, genes),
        uns=deepcopy(dict(adata.uns)),
        obsm={key: value.copy() for key, value in adata.obsm.items()},
        obsp={key: value.copy() for key, value in adata.obsp.items()},
        layers={key: _sum_columns(value, move) for key, value in adata.layers.items()},
    )
    if adata.raw is not None:
        new.raw = adata.raw.to_adata()
    total = 0.0 if counts is None else float(counts.sum(dtype=np.float64))
    kept = 0.0 if counts is None else float(counts[:, matched].sum(dtype=np.float64))
    report = GeneReport(
        n_genes=len(genes),
        present=len(present),
        missing=tuple(genes[i] for i in missing.tolist()),
        duplicated=tuple(genes[i] for i in several.tolist()),
        ambiguous=ambiguous,
        share_of_counts=kept / total if total else 0.0,
    )
    return new, report


def _check_in_memory(adata: AnnData, layer: str | None) -> None:
    """Refuse matrices on disk, and a layer that does not exist."""
    if layer is not None and layer not in adata.layers:
        raise MissingColumnError(
            f"adata.layers of the query has no {brief(layer)}, where the reference has its counts; "
            f"{near(layer, adata.layers.keys())}"
        )
    matrices = {"X": adata.X} | {
        f"layers[{brief(key)}]": value for key, value in adata.layers.items()
    }
    for location, matrix in matrices.items():
        check_structure(matrix, location)
        if adata.isbacked or not (
            matrix is None or sp.issparse(matrix) or isinstance(matrix, np.ndarray)
        ):
            raise DataError(
                f"{location} is on disk (backed); read it into memory with adata = adata.to_memory() "
                "first."
            )


def _sum_columns(matrix: Any, move: sp.csr_matrix) -> Any:
    """Sum columns to those of the reference, dense or sparse as before.

    The dtype stays the same, unless it is too small for the sums.
    """
    sparse = sp.issparse(matrix)
    dtype = matrix.dtype
    out = sp.csr_matrix(matrix) @ move
    too_small = dtype.kind in "iu" and out.data.max(initial=0) > np.iinfo(dtype).max
    out = out.astype(np.int64 if too_small else dtype)
    return sp.csr_matrix(out) if sparse else out.toarray()


def _align_var(var: pd.DataFrame, position: I64, genes: Sequence[str]) -> pd.DataFrame:
    """The rows of var for the reference's genes: the first of several, empty for missing genes."""
    rows = pd.DataFrame({"position": position, "row": np.arange(len(position))})
    first = rows[rows["position"] >= 0].drop_duplicates("position").set_index("position")["row"]
    taken = var.iloc[first.to_numpy()].set_axis(first.index, axis=0)
    if len(first) < len(genes):  # NumPy's booleans have no missing value
        is_bool = [i for i, dtype in enumerate(taken.dtypes) if dtype.kind == "b"]
        taken = pd.concat(
            [
                taken.iloc[:, i].astype("boolean" if i in is_bool else taken.dtypes.iloc[i])
                for i in range(taken.shape[1])
            ]
            or [taken],
            axis=1,
        )
    return taken.reindex(np.arange(len(genes))).set_axis(pd.Index(genes, dtype=object), axis=0)


def _read_names(adata: AnnData, gene_key: str | None) -> list[str]:
    if gene_key is None:
        return [str(name) for name in adata.var_names]
    if not isinstance(gene_key, str):
        raise ArgumentTypeError(
            f"gene_key must be the name of a column of var, not {brief(gene_key)}."
        )
    if gene_key not in adata.var:
        raise MissingColumnError(
            f"var has no column {brief(gene_key)} (gene_key); {near(gene_key, adata.var)}"
        )
    refuse_repeated_name(adata.var, "var", gene_key, "gene_key")
    column = adata.var[gene_key]
    return ["" if empty else str(name) for name, empty in zip(column, column.isna(), strict=True)]


def _match_genes(names: Sequence[str], genes: Sequence[str]) -> tuple[I64, tuple[str, ...]]:
    """Position in ``genes`` of each name, -1 if there is none; and ambiguous identifiers.

    A name is matched as it is; otherwise an Ensembl identifier is matched without its version.
    """
    index = {gene: i for i, gene in enumerate(genes)}
    position = np.array([index.get(name, -1) for name in names], np.int64)
    shared: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        shared.setdefault(_unversioned(gene), []).append(i)
    ambiguous = tuple(name for name, positions in shared.items() if len(positions) > 1)
    for j, name in enumerate(names):
        if position[j] < 0 and len(matches := shared.get(_unversioned(name), [])) == 1:
            position[j] = matches[0]
    return position, ambiguous


def _unversioned(name: str) -> str:
    """An Ensembl identifier without its version; anything else as it is."""
    match = _VERSIONED.match(name)
    return name if match is None or match[2] else match[1]


def _explain_too_few(
    adata: AnnData,
    genes: tuple[str, ...],
    gene_key: str | None,
    n_present: int,
    missing: I64,
    min_overlap: float,
) -> str:
    """Say which genes are missing, or which column of var has them."""
    location = "var_names" if gene_key is None else f"var[{brief(gene_key)}]"
    share = f"{n_present:,} of" if n_present else "none of"
    text = f"The query has {share} the reference's {len(genes):,} genes in {location}"
    better = _find_better_column(adata, genes, gene_key)
    if better is not None:
        key, n_matches = better
        fix = "leave gene_key out" if key is None else f"pass gene_key={brief(key)}"
        column = "var_names" if key is None else f"var[{brief(key)}]"
        return f"{text}, but {n_matches:,} in {column}; {fix}."
    missing_names = list_names([genes[i] for i in missing.tolist()])
    if n_present == 0:
        query_names = list_names([str(n) for n in adata.var_names])
        return (
            f"{text} (the query has {query_names}; the reference has {missing_names}); give the "
            "column of var that has the reference's identifiers as gene_key."
        )
    overlap = math.floor(1000 * n_present / len(genes)) / 1000
    return (
        f"{text}, fewer than min_overlap={min_overlap:g} (missing: {missing_names}); give data from "
        f"before any selection of genes, or pass min_overlap={overlap:g} or lower to pad the others "
        "with zeros."
    )


def _find_better_column(
    adata: AnnData, genes: Sequence[str], gene_key: str | None
) -> tuple[str | None, int] | None:
    """Another column of var (None for var_names) with at least half of the genes, and how many."""
    named = adata.var.columns[~adata.var.columns.duplicated(keep=False)]
    columns: list[str | None] = [None, *(key for key in named if isinstance(key, str))]
    best: tuple[str | None, int] | None = None
    for key in columns:
        if key == gene_key or (key is not None and adata.var[key].dtype.kind in "biufc"):
            continue
        position, _ = _match_genes(_read_names(adata, key), genes)
        n_matches = len(np.unique(position[position >= 0]))
        if n_matches >= _MANY * len(genes) and (best is None or n_matches > best[1]):
            best = key, n_matches
    return best
