"""The cells that a question is about, and passing over them, a minibatch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from vivace.data import CountBatch, Rows, Source
from vivace.data.schema import Codes
from vivace.nn import VAE, Inference
from vivace.ops.runtime.threads import Pace


@dataclass(frozen=True)
class Cells:
    """Cells of a source, as a question to a network passes over them.

    Parameters
    ----------
    network
        Whom to ask.
    source
        Where the cells are.
    rows
        Int64, shape (n,), which ones, in any order and with repeats.
    batch_size
        Cells at a time.
    silent
        False shows a bar where it takes long.
    """

    network: VAE
    source: Source
    rows: Rows
    batch_size: int
    silent: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: Rows) -> Cells:
        """Some of these cells, by their place among them."""
        return replace(self, rows=self.rows[places])

    def quiet(self) -> Cells:
        """The same without a bar, for a question that shows its own."""
        return replace(self, silent=True)

    def batches(
        self, what: str = "Cells", *, counts: bool = True
    ) -> Iterator[tuple[slice, CountBatch]]:
        """Each minibatch and its place among the cells; the network is set to evaluation.

        Without ``counts`` for a question that only decodes.
        """
        from vivace.progress import PassingBar  # the compiler: only those who ask wait

        self.network.eval()
        pace = Pace(what, counts, self.batch_size, self.network.dims.n_genes)
        with PassingBar(what, len(self), "cells", not self.silent) as bar:
            for start in range(0, len(self), self.batch_size):
                part = slice(start, min(start + self.batch_size, len(self)))
                pace.begin()
                batch = self.source.gather(self.rows[part], counts=counts)
                yield part, batch.to(self.network.device)
                pace.end(judge=part.stop - part.start == self.batch_size)
                bar.done(part.stop - part.start)

    def encoded(self, what: str = "Cells") -> Iterator[tuple[slice, CountBatch, Inference]]:
        """The same with q(z, l|x)."""
        for part, batch in self.batches(what):
            yield part, batch, self.network.encode(batch)


def with_codes(batch: CountBatch, codes: Codes) -> CountBatch:
    """The same cells, as if they were of other categories."""
    of_batch, categorical = batch.batch, batch.categorical
    if codes.batch is not None:
        of_batch = torch.full_like(of_batch, codes.batch)
    if codes.categorical:
        categorical = categorical.clone()
        for column, code in codes.categorical:
            categorical[:, column] = code
    return replace(batch, batch=of_batch, categorical=categorical)


def noise_of(inference: Inference, generator: np.random.Generator) -> torch.Tensor:
    """Standard normal noise for one draw a cell: (n, k), and a column more for a latent library.

    NumPy's stream is consumed cell by cell, so that a cell's draw does not
    depend on how the cells were cut into minibatches, nor on the device.
    """
    mean = inference.z.mean
    n, k = mean.shape
    extra = 0 if inference.library is None else 1
    noise = torch.from_numpy(generator.standard_normal((n, k + extra), dtype=np.float32))
    return noise.to(mean.device, mean.dtype)


def draw(
    network: VAE, inference: Inference, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One draw a cell: the point that the decoder sees, (n, k), and a latent log library, (n,)."""
    noise = noise_of(inference, generator)
    k = inference.z.mean.shape[1]
    point = network.place(inference.z.at(noise[:, :k]))
    return point, None if inference.library is None else inference.library.at(noise[:, k:])[:, 0]


def points(
    network: VAE,
    batch: CountBatch,
    inference: Inference,
    generators: list[np.random.Generator],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Points that the decoder sees, (n, k), and log libraries, (n,): one pair a generator.

    Without any, the one pair of the means of q(z|x) (its softmax, where the latent is
    logistic-normal) and of q(log l|x).
    """
    log_library = network.log_library(batch, inference)
    if not generators:
        yield network.place(inference.z.mean), log_library
    for generator in generators:
        point, drawn = draw(network, inference, generator)
        yield point, log_library if drawn is None else drawn


def children(seed: int, n: int) -> list[int]:
    """One seed for each draw, so that draws do not depend on the minibatches."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n, np.uint64) >> 1]


def generators_of(seed: int, n: int) -> list[np.random.Generator]:
    """One generator for each draw."""
    return [np.random.default_rng(s) for s in children(seed, n)]
