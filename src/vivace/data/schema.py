"""A user's declarations about an AnnData, and the schema that a model derives from them.

``setup_anndata`` writes :class:`Declarations` (names of columns) as one JSON string into
``adata.uns["vivace"]``. A model makes a :class:`Schema` (genes and categories) of them, saves
it, and checks new data against it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from vivace.data.columns import (
    NO_SCALE,
    CategoryLookup,
    Columns,
    Scale,
    read_categories,
    read_codes,
    read_gene_names,
    read_numbers,
)
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    brief,
    list_names,
    near,
    one_line,
)
from vivace.selection import gene_mask
from vivace.types import F32, I64, Category, Transform
from vivace.validate import FLAG

UNS_KEY = "vivace"
QUERY_REPORT_KEY = "query_genes"  # of uns, where prepare_query_anndata writes
_DISTANT = 10.0  # standard deviations


@dataclass(frozen=True)
class Declarations:
    """The meaning of columns of an AnnData; the arguments of ``setup_anndata``."""

    layer: str | None = None
    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    allow_non_integer: bool = False

    def __post_init__(self) -> None:
        for name in ("layer", "batch_key", "labels_key", "size_factor_key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ArgumentTypeError(
                    f"{name} must be the name of a {'layer' if name == 'layer' else 'column of obs'}"
                    f" or None, not {brief(value)}."
                )
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ArgumentTypeError(
                    f"{name} must be a list of column names, not {brief(value)}."
                )
            for key in value:
                if not isinstance(key, str):
                    raise ArgumentTypeError(f"{name} must hold names of columns, not {brief(key)}.")
            object.__setattr__(self, name, tuple(value))
        FLAG("allow_non_integer", self.allow_non_integer)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all declared columns of obs."""
        single = (self.batch_key, self.labels_key, self.size_factor_key)
        covariates = (*self.categorical_covariate_keys, *self.continuous_covariate_keys)
        return (*(key for key in single if key is not None), *covariates)

    def to_json(self) -> str:
        """The declarations as one JSON string, for ``adata.uns["vivace"]``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read declarations that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


def write_declarations(adata: AnnData, declarations: Declarations) -> None:
    """Write declarations, already checked, into ``adata.uns``."""
    adata.uns[UNS_KEY] = declarations.to_json()


def read_declarations(adata: AnnData) -> Declarations:
    """The declarations that ``setup_anndata`` wrote into ``adata.uns``."""
    text = adata.uns.get(UNS_KEY)
    if not isinstance(text, str):
        raise DataError(
            "This AnnData has not been set up; call SCVI.setup_anndata(adata, ...) first."
        )
    try:
        return Declarations.from_json(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"adata.uns['{UNS_KEY}'] cannot be read ({one_line(error)}); call SCVI.setup_anndata again."
        ) from error


def allows_fractions(adata: AnnData) -> bool:
    """Whether ``prepare_query_anndata`` was told that counts need not be integers."""
    report = adata.uns.get(QUERY_REPORT_KEY)
    return isinstance(report, Mapping) and bool(report.get("allow_non_integer", False))


@dataclass(frozen=True)
class Codes:
    """Categories that replace those of the cells.

    Parameters
    ----------
    batch
        Code of the batch; None keeps that of each cell.
    categorical
        Pairs of a categorical covariate, by its number, and a code.
    """

    batch: int | None = None
    categorical: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Schema:
    """Genes, columns and categories of a model, in the order of its weights.

    Parameters
    ----------
    declarations
        The declared columns.
    genes
        Names of the genes.
    batches, labels
        Categories in the order of their codes; a single one if there is no column.
    categories
        Categories of each further categorical covariate.
    scales
        Scale of each continuous covariate.
    """

    declarations: Declarations
    genes: tuple[str, ...]
    batches: tuple[Category, ...]
    labels: tuple[Category, ...]
    categories: tuple[tuple[Category, ...], ...]
    scales: tuple[Scale, ...]

    @property
    def n_continuous(self) -> int:
        return len(self.declarations.continuous_covariate_keys)

    @classmethod
    def from_anndata(cls, adata: AnnData, declarations: Declarations) -> Self:
        """Read genes, categories and scales; :meth:`columns` reads and checks the rest."""
        d = declarations
        return cls(
            declarations=d,
            genes=read_gene_names(adata),
            batches=read_categories(adata, d.batch_key, "batch_key"),
            labels=read_categories(adata, d.labels_key, "labels_key"),
            categories=tuple(
                read_categories(adata, key, "categorical_covariate_keys")
                for key in d.categorical_covariate_keys
            ),
            scales=tuple(
                Scale.from_values(read_numbers(adata, key, "continuous_covariate_keys"))
                for key in d.continuous_covariate_keys
            ),
        )

    def without_labels(self) -> Self:
        """The same schema for a model that does not read labels."""
        return replace(self, declarations=replace(self.declarations, labels_key=None))

    def with_fractions(self) -> Self:
        """The same schema for counts that need not be integers."""
        return replace(self, declarations=replace(self.declarations, allow_non_integer=True))

    def columns(self, adata: AnnData) -> Columns:
        """The covariates of ``adata``, in the codes of this schema."""
        d = self.declarations
        n = adata.n_obs
        categorical = [
            read_codes(adata, key, known, "categorical_covariate_keys")
            for key, known in zip(d.categorical_covariate_keys, self.categories, strict=True)
        ]
        continuous = [
            scale.apply(read_numbers(adata, key, "continuous_covariate_keys"))
            for key, scale in zip(d.continuous_covariate_keys, self.scales, strict=True)
        ]
        size_factor: F32 | None = None
        if d.size_factor_key is not None:
            numbers = read_numbers(adata, d.size_factor_key, "size_factor_key")
            size_factor = numbers.astype(np.float32)
            if (size_factor <= 0).any():
                place = int(np.argmax(size_factor <= 0))
                raise DataError(
                    f"obs[{d.size_factor_key!r}] (size_factor_key) must be above 0, but is "
                    f"{size_factor[place]:g} for cell {adata.obs_names[place]!r}; recompute it or "
                    "drop such cells."
                )
        return Columns(
            batch=read_codes(adata, d.batch_key, self.batches, "batch_key"),
            labels=read_codes(adata, d.labels_key, self.labels, "labels_key"),
            categorical=(
                np.stack(categorical, axis=1) if categorical else np.zeros((n, 0), np.int64)
            ),
            continuous=np.stack(continuous, axis=1) if continuous else np.zeros((n, 0), np.float32),
            size_factor=size_factor,
        )

    def codes(self, transform: Transform) -> tuple[Codes, ...]:
        """The categories of ``transform_batch``, one :class:`Codes` per combination.

        Parameters
        ----------
        transform
            None for the cells' own; a category of the batch or a list of them; or a mapping
            from columns (the batch or a categorical covariate) to categories.

        Raises
        ------
        DataError
            If there is no such column or category; the message suggests similar ones.
        """
        if transform is None:
            return (Codes(),)
        d = self.declarations
        if not isinstance(transform, Mapping):
            if d.batch_key is None:
                raise DataError(
                    f"The model has no batch, so {brief(transform)} cannot be one; declare a "
                    "batch_key with setup_anndata, or name the column: "
                    "transform_batch={'column': 'category'}."
                )
            transform = {d.batch_key: transform}
        columns = {key: i for i, key in enumerate(d.categorical_covariate_keys)}
        choices: list[list[tuple[int | None, int]]] = []
        for key, wanted in transform.items():
            if key not in columns and key != d.batch_key:
                declared = [*columns, *([] if d.batch_key is None else [d.batch_key])]
                raise DataError(
                    f"{brief(key)} is not declared as the batch or a categorical covariate of the "
                    f"model; {near(key, declared)}"
                )
            column = None if key == d.batch_key else columns[key]
            lookup = CategoryLookup(self.batches if column is None else self.categories[column])
            argument = "batch_key" if column is None else "categorical_covariate_keys"
            if isinstance(wanted, Set):
                raise ArgumentTypeError(
                    f"transform_batch must be a category or a list of them, in order, not "
                    f"{brief(wanted)}."
                )
            is_list = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes)
            is_list &= getattr(wanted, "ndim", 1) > 0  # NumPy scalars have ndim 0
            listed = list(wanted) if is_list else [wanted]  # type: ignore[arg-type]
            if not listed:
                raise DataError(
                    f"transform_batch names no category of {key!r}; use None for the cells' own."
                )
            choices.append([(column, _find_code(key, c, lookup, argument)) for c in listed])
        return tuple(_make_codes(chosen) for chosen in itertools.product(*choices))

    def genes_at(self, gene_list: Sequence[str] | None) -> I64 | None:
        """Positions of the genes of ``gene_list``, in its order; None for all genes.

        A mask, one boolean per gene of the model, selects genes in the model's order.

        Raises
        ------
        MissingColumnError
            If a name is not a gene of the model; the message suggests similar ones.
        """
        if gene_list is None:
            return None
        if isinstance(gene_list, str):
            gene_list = [gene_list]
        if isinstance(gene_list, bytes | Set | Mapping) or not isinstance(gene_list, Iterable):
            raise ArgumentTypeError(
                f"gene_list must be a list of gene names, in order, not {brief(gene_list)}."
            )
        if not hasattr(gene_list, "__len__"):
            gene_list = list(gene_list)
        mask = gene_mask(gene_list, pd.Index(self.genes))
        if mask is not None:
            if not mask.any():
                raise DataError("gene_list selects no gene; select one, or use None for all.")
            return np.flatnonzero(mask)
        names = [str(g) for g in gene_list]
        if not names:
            raise DataError("gene_list is empty; name at least one gene, or use None for all.")
        positions = pd.Index(self.genes).get_indexer(pd.Index(names))
        unknown = [g for g, p in zip(names, positions, strict=True) if p < 0]
        if unknown:
            raise MissingColumnError(
                f"{len(unknown)} of {len(names)} names in gene_list are not genes of the model "
                f"(first: {brief(unknown[0])}); {near(unknown[0], self.genes)}"
            )
        return np.asarray(positions, np.int64)

    def gene_names(self, positions: I64 | None) -> pd.Index[str]:
        """Names of the genes at these positions; None for all."""
        names = pd.Index(self.genes)
        return names if positions is None else names[positions]

    def idle_columns(self) -> list[str]:
        """A sentence for each declared covariate that has a single value and so no effect."""
        d = self.declarations
        named = [("batch_key", d.batch_key, self.batches)]
        named += [
            ("categorical_covariate_keys", key, known)
            for key, known in zip(d.categorical_covariate_keys, self.categories, strict=True)
        ]
        idle = [
            f"obs[{key!r}] ({argument}) has the single value {known[0]!r} and no effect; "
            "leave it out, or check that the data are complete."
            for argument, key, known in named
            if key is not None and len(known) == 1
        ]
        idle += [
            f"obs[{key!r}] (continuous_covariate_keys) is {scale.mean:.10g} for every cell and "
            "has no effect; leave it out, or check that the data are complete."
            for key, scale in zip(d.continuous_covariate_keys, self.scales, strict=True)
            if scale.sd == 0
        ]
        return idle

    def distant_columns(self, columns: Columns) -> list[str]:
        """A sentence for each continuous covariate that is far from that of the model's cells.

        The median cell is then outside of their range, and more than ten standard deviations
        from their mean.
        """
        keys, sentences = self.declarations.continuous_covariate_keys, []
        for key, scale, values in zip(keys, self.scales, columns.continuous.T, strict=True):
            distance = scale.distance(values)
            if distance > _DISTANT:
                sentences.append(
                    f"obs[{key!r}] (continuous_covariate_keys) is about {distance:.3g} standard "
                    f"deviations from the values that the model was made with ({scale}); check "
                    "its unit."
                )
        return sentences

    def gene_positions(self, adata: AnnData) -> I64 | None:
        """Positions of this schema's genes in ``adata``; None if its genes are the same."""
        names = read_gene_names(adata)
        if names == self.genes:
            return None
        positions = pd.Index(names).get_indexer(pd.Index(self.genes))
        missing = [g for g, p in zip(self.genes, positions, strict=True) if p < 0]
        if missing:
            raise MissingColumnError(
                f"The data lack {len(missing):,} of the model's {len(self.genes):,} genes "
                f"({list_names(missing)}); pass data with the same gene identifiers, "
                "before any selection of variable genes."
            )
        return np.asarray(positions, np.int64)

    def as_dict(self) -> dict[str, Any]:
        """The schema as types that JSON can hold."""
        return {
            "declarations": asdict(self.declarations),
            "genes": list(self.genes),
            "batches": list(self.batches),
            "labels": list(self.labels),
            "categories": [list(c) for c in self.categories],
            # left out where there are none, so that earlier versions read the schema too
            **({"scales": [asdict(scale) for scale in self.scales]} if self.scales else {}),
        }

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        """Read a schema from the result of :meth:`as_dict`."""
        unknown = set(parts) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown schema entries {sorted(unknown)}")
        declarations = Declarations(**parts["declarations"])
        unscaled: list[dict[str, float]] = [{}] * len(
            declarations.continuous_covariate_keys
        )  # as in earlier versions
        scales = tuple(Scale(**scale) for scale in parts.get("scales", unscaled))
        if len(scales) != len(unscaled):
            raise ValueError(f"{len(scales)} scales of {len(unscaled)} continuous covariates")
        return cls(
            declarations=declarations,
            genes=tuple(parts["genes"]),
            batches=tuple(parts["batches"]),
            labels=tuple(parts["labels"]),
            categories=tuple(tuple(c) for c in parts["categories"]),
            scales=scales,
        )

    def summary(self) -> list[tuple[str, str, str]]:
        """Rows of (meaning, place, content) for ``view_anndata_setup``."""
        d = self.declarations
        rows = [("counts", "X" if d.layer is None else f"layers[{d.layer!r}]", self._shape())]
        for name, key, known in (
            ("batch", d.batch_key, self.batches),
            ("labels", d.labels_key, self.labels),
            *(
                ("categorical covariate", key, known)
                for key, known in zip(d.categorical_covariate_keys, self.categories, strict=True)
            ),
        ):
            if key is not None:
                shown = list_names(known, most=6, form=str)
                rows.append((name, f"obs[{key!r}]", f"{len(known)} categories: {shown}"))
        rows += [
            ("continuous covariate", f"obs[{key!r}]", "" if scale == NO_SCALE else str(scale))
            for key, scale in zip(d.continuous_covariate_keys, self.scales, strict=True)
        ]
        if d.size_factor_key is not None:
            rows.append(("size factor", f"obs[{d.size_factor_key!r}]", ""))
        return rows

    def _shape(self) -> str:
        return f"{len(self.genes)} genes"


def _find_code(key: str, category: Any, lookup: CategoryLookup, argument: str) -> int:
    """The code of a category."""
    code = lookup.find(category)
    if code < 0:
        raise DataError(
            f"obs[{key!r}] ({argument}) has no category {brief(category)}; "
            f"{near(str(category), lookup.known)}"
        )
    return code


def _make_codes(chosen: Iterable[tuple[int | None, int]]) -> Codes:
    """Codes from pairs of a covariate (None for the batch) and a code."""
    chosen = list(chosen)
    batch = next((code for column, code in chosen if column is None), None)
    return Codes(batch, tuple((column, code) for column, code in chosen if column is not None))
