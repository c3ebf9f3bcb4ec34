"""A minibatch of cells, the same for every source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vivace.ops.csr import SparseCounts


@dataclass(frozen=True)
class StoredPosterior:
    """The posterior of n cells from the encoders, kept in place of their counts.

    Parameters
    ----------
    mean, variance
        Tensor, float32, shape (n, k), of q(z|x), before a logistic-normal's softmax.
    library_mean, library_variance
        Tensor, float32, shape (n, 1), of q(log l|x); None if the library is observed.
    """

    mean: Tensor
    variance: Tensor
    library_mean: Tensor | None = None
    library_variance: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> StoredPosterior:
        """A copy with ``function`` applied to every tensor."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: function(t) for n, t in tensors.items() if t is not None})


@dataclass(frozen=True)
class CountBatch:
    """Everything the network reads about n cells.

    Parameters
    ----------
    counts
        SparseCounts, n cells x g genes.
    library
        Tensor, float32, shape (n,), molecules of the cell over these genes.
    batch
        Tensor, int64, shape (n,), batch codes.
    labels
        Tensor, int64, shape (n,), label codes.
    categorical
        Tensor, int64, shape (n, c), codes of further categorical covariates.
    continuous
        Tensor, float32, shape (n, d), continuous covariates.
    size_factor
        Tensor, float32, shape (n,), or None if none is declared.
    posterior
        StoredPosterior of n cells, used in place of encoding them, or None.
    """

    counts: SparseCounts
    library: Tensor
    batch: Tensor
    labels: Tensor
    categorical: Tensor
    continuous: Tensor
    size_factor: Tensor | None = None
    posterior: StoredPosterior | None = None

    @property
    def n_cells(self) -> int:
        return self.counts.n_cells

    def to(self, device: torch.device) -> CountBatch:
        """The same cells on ``device``; the batch itself if it is already there."""
        if self.library.device == device:
            return self
        return CountBatch(
            counts=self.counts.to(device),
            library=self.library.to(device),
            batch=self.batch.to(device),
            labels=self.labels.to(device),
            categorical=self.categorical.to(device),
            continuous=self.continuous.to(device),
            size_factor=None if self.size_factor is None else self.size_factor.to(device),
            posterior=None
            if self.posterior is None
            else self.posterior.map(lambda t: t.to(device)),
        )
