"""The cells that a question is about, passes over them, and random samples of their latent variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vivace.data import CountBatch, Source
from vivace.data.schema import Codes
from vivace.nn import VAE, Inference
from vivace.ops.runtime.threads import Pace, adapted_threads
from vivace.session import usual_session
from vivace.types import Rows
from vivace.validate import Check, argument_checker

F = TypeVar("F", bound=Callable[..., Any])


def question(**checks: Check) -> Callable[[F], F]:
    """Decorate a public function that queries a trained model.

    Its arguments are checked and read (:mod:`vivace.validate`). It runs without gradients, on as many
    threads as the load of the machine allows.

    Parameters
    ----------
    checks
        The check of each argument.
    """

    def decorate(function: F) -> F:
        check = argument_checker(function, checks)

        @functools.wraps(function)
        def answer(*args: Any, **named: Any) -> Any:
            args, named = check(args, named)
            with usual_session(), torch.no_grad(), adapted_threads():
                return function(*args, **named)

        return cast("F", answer)

    return decorate


@dataclass(frozen=True)
class Cells:
    """Some cells of a source, and the network that they are passed through.

    Parameters
    ----------
    network
        The network.
    source
        Where the cells are read from.
    rows
        Row numbers, int64, shape (n,), in any order and with repeats.
    batch_size
        Cells per minibatch.
    silent
        False shows a progress bar once a pass takes more than two seconds.
    """

    network: VAE
    source: Source
    rows: Rows
    batch_size: int
    silent: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Rows) -> Cells:
        """Some of these cells, by their position among them."""
        return replace(self, rows=self.rows[positions])

    def quiet(self) -> Cells:
        """The same cells without a progress bar, for a question that shows its own."""
        return replace(self, silent=True)

    def batches(
        self, title: str = "Cells", *, counts: bool = True
    ) -> Iterator[tuple[slice, CountBatch]]:
        """Each minibatch with its positions among the cells; sets the network to evaluation.

        Parameters
        ----------
        title
            First word of the progress bar.
        counts
            False for a question that only decodes: the minibatches then hold no counts.
        """
        from vivace.progress import PassingBar  # lazy: importing Numba takes a second

        self.network.eval()
        pace = Pace(title, counts, self.batch_size, self.network.dims.n_genes)
        with PassingBar(title, len(self), "cells", not self.silent) as bar:
            for start in range(0, len(self), self.batch_size):
                part = slice(start, min(start + self.batch_size, len(self)))
                pace.begin()
                batch = self.source.gather(self.rows[part], counts=counts)
                yield part, batch.to(self.network.device)
                pace.end(judge=part.stop - part.start == self.batch_size)
                bar.done(part.stop - part.start)

    def encoded(self, title: str = "Cells") -> Iterator[tuple[slice, CountBatch, Inference]]:
        """Like :meth:`batches`, with q(z, l|x) of each minibatch."""
        for part, batch in self.batches(title):
            yield part, batch, self.network.encode(batch)


def with_codes(batch: CountBatch, codes: Codes) -> CountBatch:
    """The same cells, as if they belonged to other categories."""
    batch_n, categorical_nc = batch.batch, batch.categorical
    if codes.batch is not None:
        batch_n = torch.full_like(batch_n, codes.batch)
    if codes.categorical:
        categorical_nc = categorical_nc.clone()
        for column, code in codes.categorical:
            categorical_nc[:, column] = code
    return replace(batch, batch=batch_n, categorical=categorical_nc)


def standard_noise(inference: Inference, generator: np.random.Generator) -> Tensor:
    """Standard normal noise for one sample per cell, shape (n, k) or (n, k + 1).

    The last column is that of a latent library. NumPy's stream is consumed cell by cell:
    the sample of a cell depends neither on the minibatches nor on the device.
    """
    mean_nk = inference.z.mean
    n, k = mean_nk.shape
    columns = k + (inference.library is not None)
    noise = torch.from_numpy(generator.standard_normal((n, columns), dtype=np.float32))
    return noise.to(mean_nk.device, mean_nk.dtype)


def sample_latent(
    network: VAE, inference: Inference, generator: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """One sample per cell: the decoder's input, (n, k), and a latent log library, (n,) or None."""
    noise = standard_noise(inference, generator)
    k = inference.z.mean.shape[1]
    point_nk = network.place(inference.z.at(noise[:, :k]))
    if inference.library is None:
        return point_nk, None
    return point_nk, inference.library.at(noise[:, k:])[:, 0]


def decoder_inputs(
    network: VAE,
    batch: CountBatch,
    inference: Inference,
    generators: list[np.random.Generator],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the decoder, (n, k), and log libraries, (n,): one sample per generator.

    Without generators, a single pair: the means of q(z|x) (its softmax where the latent
    space is logistic-normal) and of q(log l|x).
    """
    log_library_n = network.log_library(batch, inference)
    if not generators:
        yield network.place(inference.z.mean), log_library_n
    for generator in generators:
        point_nk, sampled_n = sample_latent(network, inference, generator)
        yield point_nk, log_library_n if sampled_n is None else sampled_n


def child_seeds(seed: int, n: int) -> list[int]:
    """Independent seeds, one per sample: samples do not depend on the minibatches."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n, np.uint64) >> 1]


def child_generators(seed: int, n: int) -> list[np.random.Generator]:
    """Independent generators, one per sample."""
    return [np.random.default_rng(s) for s in child_seeds(seed, n)]
