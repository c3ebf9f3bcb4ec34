"""Random samples of the expression of groups of cells."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vivace.cells import Cells, child_seeds, with_codes
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.de.histograms import write_by_gene
from vivace.de.options import Sampling
from vivace.errors import TrainingError, list_names, require_extra, warn
from vivace.progress import PassingBar
from vivace.questions.expression import write_expression_at
from vivace.questions.importance import Weighting, sample_group
from vivace.questions.latent import encode, encode_with_library
from vivace.types import F32, F64, Bool, Rows

MAX_VALUES = 1 << 26  # samples x genes held in memory at a time: 256 MB
_HUNDRED = 100

# ---- the latent space -------------------------------------------------------------------


@dataclass(frozen=True)
class GroupSamples:
    """Random samples of z of a group of cells, and the categories that each is decoded as.

    Consecutive samples that are decoded alike are a segment: the first segment is decoded as
    the first of the codes, and so on.

    Parameters
    ----------
    cells
        The cell of each sample.
    z
        Tensor, shape (m, k), before a softmax.
    log_library
        Tensor, shape (m,).
    codes
        Categories that the segments are decoded as.
    """

    cells: Cells
    z: Tensor
    log_library: Tensor
    codes: tuple[Codes, ...]

    def __len__(self) -> int:
        return len(self.z)

    def segments(self) -> Iterator[tuple[slice, Codes]]:
        """Positions of each segment, all equally long, and what it is decoded as."""
        size = len(self) // len(self.codes)
        for i, code in enumerate(self.codes):
            yield slice(i * size, (i + 1) * size), code


def sample_latents(
    cells: Cells,
    n_samples: int,
    codes: Sequence[Codes],
    seed: int,
    weighting: Weighting | None,
) -> GroupSamples:
    """Sample z of a group ``n_samples`` times, rounded up to a multiple of the number of codes.

    Every cell is sampled equally often, or once more than another. Every second sample of a
    cell is the previous one mirrored at the cell's mean, which reduces the variation between
    seeds. With ``weighting``, samples are chosen by importance weights instead.
    """
    n = -(-n_samples // len(codes)) * len(codes)
    order_seed, noise_seed = child_seeds(seed, 2)
    if weighting is not None:
        rows, z, log_library = sample_group(cells, n, seed, weighting)
        return GroupSamples(cells.take(rows), z, log_library, tuple(codes))
    # Each round goes through all cells in a random order; the last one may be cut short.
    rng = np.random.default_rng(order_seed)
    n_rounds = -(-n // len(cells))
    rows = np.concatenate([rng.permutation(len(cells)) for _ in range(n_rounds)])[:n]
    # Cells are encoded once, in the order in which they first occur.
    first = rows[: len(cells)]
    mean, variance = encode_with_library(cells.take(first))
    position = np.empty(len(cells), np.int64)
    position[first] = np.arange(len(first))
    encoded = position[rows]
    # Rounds 2i and 2i + 1 share their noise, with opposite signs.
    shape = (-(-n_rounds // 2), *mean.shape)
    noise = np.random.default_rng(noise_seed).standard_normal(shape, dtype=np.float32)
    rounds = np.arange(n) // len(cells)
    sign = 1.0 - 2.0 * (rounds % 2).astype(np.float32)[:, None]
    deviation = torch.from_numpy(sign * noise[rounds // 2, encoded])
    sampled = mean[encoded] + variance[encoded].sqrt() * deviation
    return GroupSamples(cells.take(rows), sampled[:, :-1], sampled[:, -1], tuple(codes))


def drop_outliers(
    cells: Cells, parts: Sequence[Rows], sampling: Sampling, seeds: Sequence[int]
) -> list[Rows]:
    """The rows of each part without outliers in the latent space, if ``sampling`` filters them.

    Warns once of all parts in which no outliers could be detected.
    """
    if not sampling.filter_outliers:
        return list(parts)
    require_extra("sklearn", "de", "filter_outlier_cells needs")
    kept = [
        rows[_find_inside(cells.take(rows), seed)] for rows, seed in zip(parts, seeds, strict=True)
    ]
    sizes = [
        len(rows) for rows, inside in zip(parts, kept, strict=True) if len(inside) == len(rows)
    ]
    if len(sizes) == 1:
        warn(f"Could not detect outliers among {sizes[0]} cells; all were kept.")
    elif sizes:
        warn(
            f"Could not detect outliers in {len(sizes)} of {len(parts)} groups (of "
            f"{list_names(sizes)} cells); all their cells were kept."
        )
    return kept


def _find_inside(cells: Cells, seed: int) -> Bool:
    """Which cells are no outliers; all of them if that cannot be told."""
    from sklearn.covariance import EllipticEnvelope

    z_nk, _ = encode(cells.quiet())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a covariance that is nearly singular
        try:
            inside: Bool = EllipticEnvelope(random_state=seed % 2**32).fit_predict(z_nk) == 1
        except ValueError:
            inside = np.ones(len(cells), bool)
    return inside


# ---- expression -------------------------------------------------------------------------


class ExpressionSamples:
    """Samples of the expression of groups, decoded in blocks of genes to bound the memory.

    Parameters
    ----------
    groups
        Samples of z of each group.
    n_genes
        Number of genes of the model.
    all_genes
        Decode all genes together, for functions that need to see them all.
    silent
        False shows a progress bar if decoding takes long.

    Attributes
    ----------
    positions
        Positions of the samples of each group among the samples of all groups.
    """

    def __init__(
        self,
        groups: Sequence[GroupSamples],
        n_genes: int,
        all_genes: bool = False,
        silent: bool = True,
    ) -> None:
        self.groups = groups
        self.n_genes = n_genes
        self.silent = silent
        starts = np.cumsum([0, *(len(g) for g in groups)])
        self.positions = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
        self._blocks = [slice(0, n_genes)] if all_genes else gene_blocks(groups, n_genes)
        self._kept: F32 | None = None
        self._log_normaliser: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """Blocks of genes, and their expression in all samples, shape (g, m).

        A single block is decoded once and kept. If there are several, each pass decodes all
        samples again, block by block, at the cost of the genes of the block.
        """
        if len(self._blocks) == 1:
            if self._kept is None:
                self._kept = _decode_all_genes(self.groups, self.silent)
            yield self._blocks[0], self._kept
            return
        if self._log_normaliser is None:
            self._log_normaliser = _log_normalisers(self.groups)
        for genes in self._blocks:
            yield genes, _decode_genes(self.groups, genes, self._log_normaliser, self.silent)

    def summarise(self) -> tuple[F64, F64]:
        """Mean and typical largest expression of each group, shape (groups, g) each.

        The second is the largest of a hundred samples, averaged over the hundreds of samples.
        Unlike the largest of all, it does not depend on the number of samples.
        """
        mean, largest = np.empty((2, len(self.groups), self.n_genes))
        for genes, x_gm in self.blocks():
            for i, positions in enumerate(self.positions):
                group_gm = x_gm[:, positions[0] : positions[-1] + 1]
                mean[i, genes] = group_gm.mean(1, dtype=np.float64)
                starts = np.arange(0, max(len(positions) // _HUNDRED, 1)) * _HUNDRED
                largest[i, genes] = np.maximum.reduceat(group_gm, starts, axis=1).mean(1)
        if not np.isfinite(mean).all():
            raise TrainingError(
                "The model's expected expression is not finite, because its weights are damaged; "
                "train it again."
            )
        return mean, largest


def gene_blocks(groups: Sequence[GroupSamples], n_genes: int) -> list[slice]:
    """Genes to decode at a time, so that at most ``MAX_VALUES`` numbers are held."""
    size = max(1, MAX_VALUES // sum(len(group) for group in groups))
    return [slice(start, min(n_genes, start + size)) for start in range(0, n_genes, size)]


class _TransposedArray:
    """An array, shape (g, m), that is assigned to as if its shape were (m, g)."""

    def __init__(self, x_gm: F32) -> None:
        self.x_gm = x_gm

    def __setitem__(self, samples: slice, values_mg: F32) -> None:
        write_by_gene(self.x_gm[:, samples], np.ascontiguousarray(values_mg))


def _decode_all_genes(groups: Sequence[GroupSamples], silent: bool) -> F32:
    """Expression in the samples of all groups, one group after another, shape (g, m)."""
    shape = (groups[0].cells.network.dims.n_genes, sum(len(group) for group in groups))
    x_gm = np.empty(shape, np.float32)
    with PassingBar("Decoding", shape[1], "samples", not silent) as bar:
        for positions, segment, code in _segments(groups):
            out = _TransposedArray(x_gm[:, positions])
            write_expression_at(segment.cells, [code], None, 1, segment.z, segment.log_library, out)
            bar.done(len(segment))
    return x_gm


def _decode_genes(
    groups: Sequence[GroupSamples], genes: slice, log_normaliser_m: Tensor, silent: bool
) -> F32:
    """Like :func:`_decode_all_genes` for a block of genes, at the cost of those genes alone."""
    network = groups[0].cells.network
    x_gm = np.empty((genes.stop - genes.start, len(log_normaliser_m)), np.float32)
    out = _TransposedArray(x_gm)
    with PassingBar("Decoding", x_gm.shape[1], "samples", not silent) as bar:
        for positions, point_mk, batch in _decoder_batches(groups):
            scale = network.partial_scale(point_mk, batch, genes, log_normaliser_m[positions])
            out[positions] = scale.cpu().numpy()
            bar.done(positions.stop - positions.start)
    return x_gm


def _log_normalisers(groups: Sequence[GroupSamples]) -> Tensor:
    """Log of the denominator of each sample's softmax over genes, shape (m,)."""
    network = groups[0].cells.network
    n_samples = sum(len(group) for group in groups)
    log_normaliser_m = torch.empty(n_samples, dtype=torch.float32, device=network.device)
    for positions, point_mk, batch in _decoder_batches(groups):
        log_normaliser_m[positions] = network.log_normaliser(point_mk, batch)
    return log_normaliser_m


def _segments(groups: Sequence[GroupSamples]) -> Iterator[tuple[slice, GroupSamples, Codes]]:
    """Each segment: its positions among all samples, the samples, and their codes."""
    offset = 0
    for group in groups:
        for segment, code in group.segments():
            rows = np.arange(segment.start, segment.stop)
            cells = group.cells.take(rows).quiet()
            samples = GroupSamples(cells, group.z[segment], group.log_library[segment], (code,))
            yield slice(offset + segment.start, offset + segment.stop), samples, code
        offset += len(group)


def _decoder_batches(
    groups: Sequence[GroupSamples],
) -> Iterator[tuple[slice, Tensor, CountBatch]]:
    """Minibatches of samples: their positions, the decoder's input, and their covariates."""
    for positions, segment, code in _segments(groups):
        network = segment.cells.network
        for part, batch in segment.cells.batches(counts=False):
            point_mk = network.place(segment.z[part].to(network.device))
            minibatch = slice(positions.start + part.start, positions.start + part.stop)
            yield minibatch, point_mk, with_codes(batch, code)
