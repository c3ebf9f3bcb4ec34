"""Rows of weights and tables that belong to categories of a covariate.

A network for a query has more categories than its reference. A layer declares the
rows of its own tensors in ``category_rows``; :mod:`vivace.nn.freeze` then grows and
trains them without knowing the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from vivace.nn.surgery import Surgery


class CategoryRows(Protocol):
    """Which rows of a tensor belong to categories."""

    def find_new(self, n_rows: int, surgery: Surgery) -> list[slice]:
        """Rows of categories that the reference lacks, in a tensor of ``n_rows``."""
        ...

    def grow(self, reference: Tensor, initial: Tensor, surgery: Surgery) -> Tensor:
        """The tensor of the reference with rows for new categories, shaped as ``initial``."""
        ...


@runtime_checkable
class HasCategoryRows(Protocol):
    """A layer with rows for categories in tensors of its own, by the tensors' names."""

    @property
    def category_rows(self) -> Mapping[str, CategoryRows]: ...


@dataclass(frozen=True)
class OneHotRows:
    """The last rows of an input-major weight: one-hot columns, covariate after covariate.

    Parameters
    ----------
    sizes
        One-hot columns of each covariate, the batch first; 0 for a covariate without columns.

    Examples
    --------
    >>> surgery = Surgery(n_batches=2, n_categories=(1,), n_labels=1)
    >>> reference = torch.tensor([[9.0], [1.0], [3.0]])  # a gene, two batches
    >>> rows = OneHotRows((3, 2))  # the query has a new batch and a new category
    >>> rows.grow(reference, torch.empty(6, 1), surgery).T
    tensor([[9., 1., 3., 2., 0., 0.]])
    >>> rows.find_new(6, surgery)
    [slice(3, 4, None), slice(5, 6, None)]
    """

    sizes: tuple[int, ...]

    def find_new(self, n_rows: int, surgery: Surgery) -> list[slice]:
        new, start = [], n_rows - sum(self.sizes)
        for n_known, size in self._pairs(surgery):
            if n_known < size:
                new.append(slice(start + n_known, start + size))
            start += size
        return new

    def grow(self, reference: Tensor, initial: Tensor, surgery: Surgery) -> Tensor:
        """New categories start at the mean of the known ones.

        A covariate with one category has no row in the reference. When the query adds a
        second, both start at zero, where the one category has always been.
        """
        pairs = self._pairs(surgery)
        widths = one_hot_sizes(n_known for n_known, _ in pairs)
        start = len(reference) - sum(widths)
        blocks = [reference[:start]]
        for (n_known, size), width in zip(pairs, widths, strict=True):
            known = reference[start : start + width]
            if width == 0:
                known = reference.new_zeros(n_known, *reference.shape[1:])
            blocks += [known, _repeat_mean(known, size - n_known)]
            start += width
        return torch.cat(blocks)

    def _pairs(self, surgery: Surgery) -> list[tuple[int, int]]:
        """Known categories and columns of each covariate that has columns."""
        pairs = zip(surgery.n_known, self.sizes, strict=True) if self.sizes else ()
        return [(n_known, size) for n_known, size in pairs if size > 0]


@dataclass(frozen=True)
class TableRows:
    """A table with one row per batch, or per label.

    Parameters
    ----------
    column
        "batch" or "label".
    new_from
        Where new rows start: at the "mean" of the known ones, or at the network's "initial" values.
    """

    column: Literal["batch", "label"]
    new_from: Literal["mean", "initial"] = "mean"

    def find_new(self, n_rows: int, surgery: Surgery) -> list[slice]:
        n_known = surgery.n_batches if self.column == "batch" else surgery.n_labels
        return [slice(n_known, n_rows)] if n_known < n_rows else []

    def grow(self, reference: Tensor, initial: Tensor, surgery: Surgery) -> Tensor:
        n_new = len(initial) - len(reference)
        new = (
            _repeat_mean(reference, n_new) if self.new_from == "mean" else initial[len(reference) :]
        )
        return torch.cat([reference, new])


def one_hot_sizes(n_categories: Iterable[int]) -> tuple[int, ...]:
    """One-hot columns of each covariate; a single category needs none."""
    return tuple(n if n > 1 else 0 for n in n_categories)


def _repeat_mean(known: Tensor, n: int) -> Tensor:
    return known.mean(0, keepdim=True).expand(n, *known.shape[1:])
