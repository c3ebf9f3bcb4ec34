"""The genes of a query as the reference has them."""

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
from vivace.errors import ArgumentTypeError, DataError, MissingColumnError, OptionError, near
from vivace.store.saving import read_genes
from vivace.types import I64
from vivace.validate import FLAG, checked, number

_VERSIONED = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+(_PAR_Y)?$")
_SHOWN = 5
_MANY = 0.5  # of the reference's genes found under other names: those are meant


@dataclass(frozen=True)
class GeneReport:
    """How the genes of a query were matched to those of the reference.

    Parameters
    ----------
    n_genes
        Genes of the reference.
    present
        Those that the query has.
    missing
        Names of those that it has not, which are padded with zeros.
    duplicated
        Names that several genes of the query have, whose counts are added up.
    ambiguous
        Identifiers that several genes of the reference share once their version is left out, and
        which are matched with their version only.
    share_of_counts
        Share of the query's counts that are those of genes of the reference.

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
        """As ``adata.uns`` can hold and write it."""
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
        shown = "".join(f"; {what}: {_named(names)}" for what, names in lists.items() if names)
        return (
            f"{self.present:,} of {self.n_genes:,} genes of the reference are in the query, with "
            f"{100 * self.share_of_counts:.1f} % of its counts{shown}"
        )


@checked(return_reference_var_names=FLAG, inplace=FLAG)
def prepare_query_anndata(
    adata: AnnData,
    reference_model: Core | str | Path,
    return_reference_var_names: bool = False,
    inplace: bool = True,
    *,
    gene_key: str | None = None,
    min_overlap: float = 0.8,
) -> GeneReport | AnnData | pd.Index[str]:
    """Bring the genes of a query into the form of a reference.

    Genes are matched by name, Ensembl identifiers with or without their version;
    counts of genes with one name are added up (in X and every layer), and genes that
    are missing are padded with zeros.  ``varm`` and ``varp`` are left behind.

    Parameters
    ----------
    adata
        The query, cells x genes, of raw counts.
    reference_model
        A model, its folder, or one that scvi-tools saved.
    return_reference_var_names
        Only give the names of the reference's genes.
    inplace
        Change ``adata``; False leaves it and returns a new AnnData.
    gene_key
        Column of var with identifiers as the reference has them; None for var_names.
    min_overlap
        Least share of the reference's genes that the query must have.

    Returns
    -------
    A :class:`~vivace.GeneReport`, or the new AnnData with ``inplace=False``;
    either way the report is in ``uns["query_genes"]`` too.

    Raises
    ------
    DataError
        If fewer genes are found; the message says which column of var has them, or
        which are missing.  ``adata`` is then as it was.

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
        genes, layer = read_genes(Path(reference_model))
    elif isinstance(reference_model, Core):
        schema = reference_model.schema
        genes, layer = schema.genes, schema.declarations.layer
    else:
        raise ArgumentTypeError(
            "reference_model must be a model or the path of its folder, not a "
            f"{type(reference_model).__name__}."
        )
    if return_reference_var_names:
        return pd.Index(genes)
    if not isinstance(adata, AnnData):
        raise ArgumentTypeError(
            f"prepare_query_anndata takes an AnnData, not {type(adata).__name__}."
        )
    new, report = aligned(adata, genes, gene_key, min_overlap, layer)
    new.uns["query_genes"] = report.as_dict()
    if not inplace:
        return new
    adata._init_as_actual(new)
    return report


def aligned(
    adata: AnnData,
    genes: tuple[str, ...],
    gene_key: str | None = None,
    min_overlap: float = 0.8,
    layer: str | None = None,
) -> tuple[AnnData, GeneReport]:
    """A new AnnData of the query with the reference's genes, in their order, and how that went.

    Parameters
    ----------
    adata
        The query; it stays as it is.
    genes
        Of the reference.
    gene_key
        Column of var with identifiers as the reference has them; None for var_names.
    min_overlap
        Least share of the reference's genes that the query must have.
    layer
        Where the counts are, of which the report tells; None for X.

    Raises
    ------
    DataError
        If too few genes are found; the message says which column of var would do.
    """
    number("min_overlap", min_overlap)
    if min_overlap is None:
        raise ArgumentTypeError("min_overlap must be a share from 0 to 1, not None.")
    if not 0 <= min_overlap <= 1:
        raise OptionError(f"min_overlap must be a share from 0 to 1, not {min_overlap}.")
    _check_in_memory(adata, layer)
    names = _names(adata, gene_key)
    at, ambiguous = _places(names, genes)
    found = np.unique(at[at >= 0])
    missing = np.setdiff1d(np.arange(len(genes)), found)
    if len(found) == 0 or len(found) < min_overlap * len(genes):
        raise DataError(_too_few(adata, genes, gene_key, len(found), missing, min_overlap))
    rows = np.flatnonzero(at >= 0)
    ones = np.ones(len(rows), np.float32)
    move = sp.csr_matrix((ones, (rows, at[rows])), shape=(adata.n_vars, len(genes)))
    several = np.flatnonzero(np.bincount(at[rows], minlength=len(genes)) > 1)
    counts = adata.X if layer is None else adata.layers[layer]
    new = AnnData(
        X=None if adata.X is None else _moved(adata.X, move),
        obs=adata.obs.copy(),
        var=_var(adata.var, at, genes),
        uns=deepcopy(dict(adata.uns)),
        obsm={key: value.copy() for key, value in adata.obsm.items()},
        obsp={key: value.copy() for key, value in adata.obsp.items()},
        layers={key: _moved(value, move) for key, value in adata.layers.items()},
    )
    if adata.raw is not None:
        new.raw = adata.raw.to_adata()
    total = 0.0 if counts is None else float(counts.sum(dtype=np.float64))
    kept = 0.0 if counts is None else float(counts[:, rows].sum(dtype=np.float64))
    report = GeneReport(
        n_genes=len(genes),
        present=len(found),
        missing=tuple(genes[i] for i in missing.tolist()),
        duplicated=tuple(genes[i] for i in several.tolist()),
        ambiguous=ambiguous,
        share_of_counts=kept / total if total else 0.0,
    )
    return new, report


def _check_in_memory(adata: AnnData, layer: str | None) -> None:
    """Refuse what is on disk, and a layer that is not there."""
    if layer is not None and layer not in adata.layers:
        raise MissingColumnError(
            f"adata.layers of the query has no {layer!r}, where the reference has its counts; "
            f"{near(layer, adata.layers.keys())}"
        )
    matrices = {"X": adata.X} | {f"layers[{key!r}]": value for key, value in adata.layers.items()}
    for where, matrix in matrices.items():
        if adata.isbacked or not (
            matrix is None or sp.issparse(matrix) or isinstance(matrix, np.ndarray)
        ):
            raise DataError(
                f"{where} is on disk (backed); read it into memory with adata = adata.to_memory() "
                "first."
            )


def _moved(matrix: Any, move: sp.csr_matrix) -> Any:
    """Columns added up to those of the reference, dense or sparse as before.

    Of the same type, unless it is too small for the sums.
    """
    sparse = sp.issparse(matrix)
    dtype = matrix.dtype
    out = sp.csr_matrix(matrix) @ move
    too_small = dtype.kind in "iu" and out.data.max(initial=0) > np.iinfo(dtype).max
    out = out.astype(np.int64 if too_small else dtype)
    return sp.csr_matrix(out) if sparse else out.toarray()


def _var(var: pd.DataFrame, at: I64, genes: Sequence[str]) -> pd.DataFrame:
    """What the query says of each gene; the first of several, nothing of those that are missing."""
    rows = pd.DataFrame({"place": at, "row": np.arange(len(at))})
    first = rows[rows["place"] >= 0].drop_duplicates("place").set_index("place")["row"]
    taken = var.iloc[first.to_numpy()].set_axis(first.index, axis=0)
    if len(first) < len(genes):  # NumPy's booleans know no missing value
        yes_no = [i for i, dtype in enumerate(taken.dtypes) if dtype.kind == "b"]
        taken = pd.concat(
            [
                taken.iloc[:, i].astype("boolean" if i in yes_no else taken.dtypes.iloc[i])
                for i in range(taken.shape[1])
            ]
            or [taken],
            axis=1,
        )
    return taken.reindex(np.arange(len(genes))).set_axis(pd.Index(genes, dtype=object), axis=0)


def _names(adata: AnnData, gene_key: str | None) -> list[str]:
    if gene_key is None:
        return [str(name) for name in adata.var_names]
    if not isinstance(gene_key, str):
        raise ArgumentTypeError(f"gene_key must be the name of a column of var, not {gene_key!r}.")
    if gene_key not in adata.var:
        raise MissingColumnError(
            f"var has no column {gene_key!r} (gene_key); {near(gene_key, adata.var)}"
        )
    column = adata.var[gene_key]
    return ["" if pd.isna(name) else str(name) for name in column]


def _places(names: Sequence[str], genes: Sequence[str]) -> tuple[I64, tuple[str, ...]]:
    """Place in ``genes`` of each name, -1 where there is none; ambiguous identifiers.

    A name is matched as it is, or else, of an Ensembl identifier, without its version.
    """
    place = {gene: i for i, gene in enumerate(genes)}
    at = np.array([place.get(name, -1) for name in names], np.int64)
    shared: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        shared.setdefault(_unversioned(gene), []).append(i)
    ambiguous = tuple(bare for bare, places in shared.items() if len(places) > 1)
    for j, name in enumerate(names):
        if at[j] < 0 and len(places := shared.get(_unversioned(name), [])) == 1:
            at[j] = places[0]
    return at, ambiguous


def _unversioned(name: str) -> str:
    """An Ensembl identifier without its version; anything else as it is."""
    found = _VERSIONED.match(name)
    return name if found is None or found[2] else found[1]


def _too_few(
    adata: AnnData,
    genes: tuple[str, ...],
    gene_key: str | None,
    n_found: int,
    missing: I64,
    min_overlap: float,
) -> str:
    where = "var_names" if gene_key is None else f"var[{gene_key!r}]"
    some = f"{n_found:,} of" if n_found else "none of"
    text = f"The query has {some} the reference's {len(genes):,} genes in {where}"
    other = _other_column(adata, genes, gene_key)
    if other is not None:
        key, n_there = other
        fix = "leave gene_key out" if key is None else f"pass gene_key={key!r}"
        there = "var_names" if key is None else f"var[{key!r}]"
        return f"{text}, but {n_there:,} in {there}; {fix}."
    named = _named([genes[i] for i in missing.tolist()])
    if n_found == 0:
        mine = _named([str(n) for n in adata.var_names])
        return (
            f"{text} (there: {mine}; the reference has {named}); give the column of var that has the "
            "reference's identifiers as gene_key."
        )
    return (
        f"{text}, fewer than min_overlap={min_overlap:g} (missing: {named}); give data from before any "
        f"selection of genes, or pass min_overlap={math.floor(1000 * n_found / len(genes)) / 1000:g} or less to pad the others "
        "with zeros."
    )


def _other_column(
    adata: AnnData, genes: Sequence[str], gene_key: str | None
) -> tuple[str | None, int] | None:
    """Where else most of the reference's genes are named; None for nowhere."""
    named = adata.var.columns[~adata.var.columns.duplicated(keep=False)]
    columns: list[str | None] = [None, *(key for key in named if isinstance(key, str))]
    best: tuple[str | None, int] | None = None
    for key in columns:
        if key == gene_key or (key is not None and adata.var[key].dtype.kind in "biufc"):
            continue
        at, _ = _places(_names(adata, key), genes)
        n_there = len(np.unique(at[at >= 0]))
        if n_there >= _MANY * len(genes) and (best is None or n_there > best[1]):
            best = key, n_there
    return best


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
