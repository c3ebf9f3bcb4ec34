"""Draws of the expression of whole groups of cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vivace.cells import Cells, child_seeds, with_codes
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.errors import TrainingError
from vivace.questions.expression import write_expression_at
from vivace.questions.importance import Weighting, sample_group
from vivace.questions.latent import encode_with_library
from vivace.types import F32, F64

_HUNDRED = 100
AT_ONCE = 1 << 26  # numbers of draws x genes held at a time: 256 MB


@dataclass(frozen=True)
class GroupDraws:
    """Draws of z of a group of cells, and the categories that each is decoded as.

    Parameters
    ----------
    cells
        The cell of each draw.
    z
        Tensor, shape (m, k), before a softmax.
    log_library
        Tensor, shape (m,).
    codes
        What the draws are decoded as: the first stretch of them as the first, and so on.
    """

    cells: Cells
    z: Tensor
    log_library: Tensor
    codes: tuple[Codes, ...]

    def __len__(self) -> int:
        return len(self.z)

    def stretches(self) -> Iterator[tuple[slice, Codes]]:
        """Each of the codes and the draws that are decoded as it: equally many."""
        each = len(self) // len(self.codes)
        for i, code in enumerate(self.codes):
            yield slice(i * each, (i + 1) * each), code


def draw_group(
    cells: Cells,
    n_draws: int,
    codes: Sequence[Codes],
    seed: int,
    weighting: Weighting | None,
) -> GroupDraws:
    """``n_draws`` draws of z, or a few more so that each of the codes has equally many.

    Every cell is drawn equally often, or once more than another, and every second draw of a
    cell mirrors the one before at its mean, so that two seeds differ less; with ``weighting``
    by importance weights, of which it holds the arguments.
    """
    each = -(-n_draws // len(codes))
    n = each * len(codes)
    choice, of_z = child_seeds(seed, 2)
    if weighting is not None:
        rows, z, log_library = sample_group(cells, n, seed, weighting)
        return GroupDraws(cells.take(rows), z, log_library, tuple(codes))
    rng = np.random.default_rng(choice)
    rounds = -(-n // len(cells))
    rows = np.concatenate([rng.permutation(len(cells)) for _ in range(rounds)])[:n]
    first = rows[: len(cells)]  # each cell once, or as many of them as are drawn
    mean, variance = encode_with_library(cells.take(first))
    place = np.empty(len(cells), np.int64)
    place[first] = np.arange(len(first))
    size = (-(-rounds // 2), *mean.shape)
    noise = np.random.default_rng(of_z).standard_normal(size, dtype=np.float32)
    turn = np.arange(n) // len(cells)
    sign = 1.0 - 2.0 * (turn % 2).astype(np.float32)[:, None]
    at = place[rows]
    drawn = mean[at] + variance[at].sqrt() * torch.from_numpy(sign * noise[turn // 2, at])
    return GroupDraws(cells.take(rows), drawn[:, :-1], drawn[:, -1], tuple(codes))


def gene_blocks(groups: Sequence[GroupDraws], n_genes: int) -> list[slice]:
    """Genes to decode at a time so that memory is bounded."""
    size = max(1, AT_ONCE // sum(len(group) for group in groups))
    return [slice(at, min(n_genes, at + size)) for at in range(0, n_genes, size)]


class _ByGene:
    """An array, shape (g, m), that is written as if it were (m, g)."""

    def __init__(self, x_gm: F32) -> None:
        self.x_gm = x_gm

    def __setitem__(self, draws: slice, values_mg: F32) -> None:
        from vivace.de.histograms import write_by_gene  # the compiler: only those who ask wait

        write_by_gene(self.x_gm[:, draws], np.ascontiguousarray(values_mg))


@torch.no_grad()
def decoded(groups: Sequence[GroupDraws], silent: bool = True) -> F32:
    """Expression in the draws of all groups, one after the other, shape (g, m)."""
    from vivace.progress import PassingBar  # the compiler: only those who ask wait

    shape = (groups[0].cells.network.dims.n_genes, sum(len(group) for group in groups))
    found = np.empty(shape, np.float32)
    with PassingBar("Decoding", shape[1], "draws", not silent) as bar:
        for place, group, code in _stretches(groups):
            out = _ByGene(found[:, place])
            write_expression_at(group.cells, [code], None, 1, group.z, group.log_library, out)
            bar.done(len(group))
    return found


def _stretches(groups: Sequence[GroupDraws]) -> Iterator[tuple[slice, GroupDraws, Codes]]:
    """The draws that are of one group and decoded alike: their place among all, and what they are."""
    at = 0
    for group in groups:
        for stretch, code in group.stretches():
            rows = np.arange(stretch.start, stretch.stop)
            cells = group.cells.take(rows).quiet()
            part = GroupDraws(cells, group.z[stretch], group.log_library[stretch], (code,))
            yield slice(at + stretch.start, at + stretch.stop), part, code
        at += len(group)


def _points(groups: Sequence[GroupDraws]) -> Iterator[tuple[slice, Tensor, CountBatch]]:
    """A minibatch of draws at a time: their place, what the decoder sees, and their covariates."""
    for place, group, code in _stretches(groups):
        network = group.cells.network
        for part, batch in group.cells.batches(counts=False):
            point = network.place(group.z[part].to(network.device))
            here = slice(place.start + part.start, place.start + part.stop)
            yield here, point, with_codes(batch, code)


@torch.no_grad()
def log_normalisers(groups: Sequence[GroupDraws]) -> Tensor:
    """Log of what the softmax over genes of each draw divides by, shape (m,)."""
    network = groups[0].cells.network
    found = torch.empty(sum(len(group) for group in groups), device=network.device)
    for place, point, batch in _points(groups):
        found[place] = network.log_normaliser(point, batch)
    return found


@torch.no_grad()
def decoded_genes(
    groups: Sequence[GroupDraws], genes: slice, log_normaliser_m: Tensor, silent: bool = True
) -> F32:
    """The same as :func:`decoded` of a stretch of genes, at the cost of those alone."""
    from vivace.progress import PassingBar  # the compiler: only those who ask wait

    network = groups[0].cells.network
    found = np.empty((genes.stop - genes.start, len(log_normaliser_m)), np.float32)
    out = _ByGene(found)
    with PassingBar("Decoding", found.shape[1], "draws", not silent) as bar:
        for place, point, batch in _points(groups):
            scale = network.scale_of(point, batch, genes, log_normaliser_m[place])
            out[place] = scale.cpu().numpy()
            bar.done(place.stop - place.start)
    return found


class DrawnExpression:
    """Draws of the expression of groups, decoded in blocks of genes so that memory is bounded.

    Parameters
    ----------
    groups
        Their draws of z.
    n_genes
        Of the model.
    at_once
        Decode all genes together, for functions that want to see all.
    silent
        False shows a bar where it takes long.
    """

    def __init__(
        self,
        groups: Sequence[GroupDraws],
        n_genes: int,
        at_once: bool = False,
        silent: bool = True,
    ) -> None:
        self.groups = groups
        self.n_genes = n_genes
        self.silent = silent
        self._blocks = [slice(0, n_genes)] if at_once else gene_blocks(groups, n_genes)
        self._kept: F32 | None = None
        self._log_normaliser: Tensor | None = None
        starts = np.cumsum([0, *(len(g) for g in groups)])
        self.places = [np.arange(a, b) for a, b in itertools.pairwise(starts)]

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """Genes and their expression in all draws, shape (g, m); one block is kept, several are not.

        Each pass over several blocks decodes every draw once, a stretch of genes at a time.
        """
        if len(self._blocks) == 1:
            if self._kept is None:
                self._kept = decoded(self.groups, self.silent)
            yield self._blocks[0], self._kept
            return
        if self._log_normaliser is None:
            self._log_normaliser = log_normalisers(self.groups)
        for genes in self._blocks:
            yield genes, decoded_genes(self.groups, genes, self._log_normaliser, self.silent)

    def summary(self) -> tuple[F64, F64]:
        """Mean expression of each group, and what it may reach, shape (groups, g) each.

        That is the largest of a hundred draws, in the mean over hundreds of draws, so that it
        does not depend on how many there are.
        """
        mean, reach = np.empty((2, len(self.groups), self.n_genes))
        for genes, x in self.blocks():
            for i, place in enumerate(self.places):
                part = x[:, place[0] : place[-1] + 1]
                mean[i, genes] = part.mean(1, dtype=np.float64)
                starts = np.arange(0, max(len(place) // _HUNDRED, 1)) * _HUNDRED
                reach[i, genes] = np.maximum.reduceat(part, starts, axis=1).mean(1)
        if not np.isfinite(mean).all():
            raise TrainingError(
                "The model expects values that are not finite; its weights are damaged, so train it "
                "again."
            )
        return mean, reach
