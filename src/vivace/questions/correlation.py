"""Which genes are correlated once the counting noise is removed?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vivace.cells import (
    Cells,
    child_generators,
    child_seeds,
    decoder_inputs,
    question,
    with_codes,
)
from vivace.core import Core
from vivace.data.schema import Codes
from vivace.errors import OptionError
from vivace.types import F32, F64, I64, Indices, Transform
from vivace.validate import COUNT, LARGEST_FLOAT, Choice, Number

Correlation = Literal["spearman", "pearson"]
_REFERENCE = 1 << 26  # numbers that ranks are taken among, 256 MB
_GENES_AT_ONCE = 16  # that are ranked: a few copies of their numbers fit into memory


@question(
    n_samples=COUNT,
    rna_size_factor=Number(above=0, at_most=LARGEST_FLOAT),
    correlation_type=Choice(Correlation),
)
def get_feature_correlation_matrix(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    n_samples: int = 10,
    batch_size: int | None = None,
    rna_size_factor: float = 1000,
    transform_batch: Transform = None,
    correlation_type: Correlation = "spearman",
    silent: bool = False,
    *,
    gene_list: Sequence[str] | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Correlation of genes over denoised samples: without counting noise and sequencing depth.

    Each sample is of z and of the gamma distributed rate of the counts (of the rate itself
    where the likelihood has no gamma).

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    n_samples
        Samples per cell.
    rna_size_factor
        Molecules of the cell whose rates are sampled.
    transform_batch
        As in :meth:`get_normalized_expression`; for several, the mean of their matrices.
    correlation_type
        "spearman" or "pearson". Ranks are exact for up to 2**26 numbers (cells x samples
        x genes); beyond that, they are taken among an evenly spaced subset of that size.
    gene_list
        Names of genes, in this order, or one name, or a mask of the model's genes; None for all.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    Frame, genes x genes. NaN for a gene that has the same value in every sample.
    """
    codes = self.schema.codes(transform_batch)
    genes = self.schema.genes_at(gene_list)
    cells = self._cells(adata, indices, batch_size, silent)
    if len(cells) < 2:
        raise OptionError(f"A correlation needs two cells, but indices selects {len(cells)}.")
    first_seed = self._seeds.take(seed)
    matrices = [
        _correlate_genes(cells, c, genes, n_samples, rna_size_factor, correlation_type, first_seed)
        for c in codes
    ]
    names = self.schema.gene_names(genes)
    return pd.DataFrame(np.mean(matrices, axis=0), index=names, columns=names)


def _correlate_genes(
    cells: Cells,
    codes: Codes,
    genes: I64 | None,
    n_samples: int,
    rna_size_factor: float,
    kind: Correlation,
    seed: int,
) -> F64:
    """Correlation of genes over denoised samples of all cells, shape (g, g).

    Spearman's ranks are taken among the samples of evenly spaced cells, which are all cells
    if the samples are at most 2**26 numbers. Memory does not grow with the number of cells.
    """

    def denoised() -> Iterator[tuple[slice, F32]]:
        for part, x_ng in _sample_rates(cells, codes, n_samples, rna_size_factor, seed):
            yield part, x_ng if genes is None else x_ng[:, genes]

    if kind == "pearson":
        return _pearson(x_ng for _, x_ng in denoised())
    n_genes = cells.network.dims.n_genes if genes is None else len(genes)
    most = max(2, _REFERENCE // (n_genes * n_samples))
    chosen = np.zeros(len(cells), bool)
    chosen[np.linspace(0, len(cells) - 1, min(most, len(cells))).astype(np.int64)] = True
    reference_mg = np.concatenate([x_ng[chosen[part]] for part, x_ng in denoised()])
    if chosen.all():
        ranks_gm = _rank_all(reference_mg)
        n_blocks = max(1, len(reference_mg) // cells.batch_size)
        return _pearson(np.array_split(ranks_gm.T, n_blocks))
    ordered_gm = np.sort(reference_mg.T, axis=1)
    return _pearson(_ranks(x_ng, ordered_gm) for _, x_ng in denoised())


def _sample_rates(
    cells: Cells, codes: Codes, n_samples: int, rna_size_factor: float, seed: int
) -> Iterator[tuple[slice, F32]]:
    """Each minibatch's positions and its rates at each sample, (n, g)."""
    network = cells.network
    z_generators, gamma_generators = (child_generators(s, n_samples) for s in child_seeds(seed, 2))
    for part, batch, inference in cells.encoded("Correlation"):
        recoded = with_codes(batch, codes)
        log_size_n = torch.full_like(batch.library, rna_size_factor).log()
        inputs = decoder_inputs(network, batch, inference, z_generators)
        for (point_nk, _), generator in zip(inputs, gamma_generators, strict=True):
            rates = network.rates(point_nk, recoded, log_size_n)
            x_ng = rates.mu.cpu().numpy()
            if network.likelihood.dispersed and network.likelihood.counts:
                assert rates.theta is not None
                theta_ng = rates.theta.expand(rates.mu.shape).cpu().numpy()
                # NumPy's stream is consumed cell by cell, whatever the minibatches
                x_ng = (generator.standard_gamma(theta_ng) * (x_ng / theta_ng)).astype(np.float32)
            yield part, x_ng


def _rank_all(x_ng: F32) -> F32:
    """Rank of each value among its gene's, as :func:`_ranks` has it, for all values: shape (g, n).

    One sort per gene takes a fraction of the time of a search per value.
    """
    n, n_genes = x_ng.shape
    ranks_gn = np.empty((n_genes, n), np.float32)
    for start in range(0, n_genes, _GENES_AT_ONCE):
        x_bn = np.ascontiguousarray(x_ng[:, start : start + _GENES_AT_ONCE].T)
        order_bn = np.argsort(x_bn, axis=1)
        x_bn = np.take_along_axis(x_bn, order_bn, axis=1)
        place_bn = np.tile(np.arange(n, dtype=np.float64), (len(x_bn), 1))
        _share_places(x_bn, place_bn)
        ranks_bn = ranks_gn[start : start + _GENES_AT_ONCE]
        np.put_along_axis(ranks_bn, order_bn, ((place_bn + 0.5) / n).astype(np.float32), axis=1)
    return ranks_gn


def _share_places(ordered_bn: F32, place_bn: F64) -> None:
    """Give equal values, which are neighbours in their ordered row, the middle of their places."""
    repeats = np.zeros(ordered_bn.shape, bool)
    np.equal(ordered_bn[:, 1:], ordered_bn[:, :-1], out=repeats[:, 1:])
    tied = np.flatnonzero(repeats)  # never the first of a row, so no run crosses rows
    is_first = np.diff(tied, prepend=-2) != 1
    first = tied[is_first] - 1
    length = np.diff(np.flatnonzero(is_first), append=len(tied)) + 1
    flat = place_bn.reshape(-1)
    run = np.repeat(np.arange(len(first)), length)
    within = np.arange(len(run)) - np.repeat(np.cumsum(length) - length, length)
    flat[first[run] + within] = (flat[first] + (length - 1) / 2)[run]


def _ranks(x_ng: F32, ordered_gm: F32) -> F32:
    """Rank of each value among its gene's, from 0 to 1; the middle rank where there are ties."""
    ranks_ng = np.empty(x_ng.shape, np.float32)
    for g, ordered in enumerate(ordered_gm):
        column = np.ascontiguousarray(x_ng[:, g])
        left, right = (np.searchsorted(ordered, column, side) for side in ("left", "right"))
        ranks_ng[:, g] = (left + right) / (2 * len(ordered))
    return ranks_ng


def _pearson(blocks: Iterable[F32]) -> F64:
    """Correlation of columns, accumulated over blocks of rows around the first block's mean."""
    n, centre, total, products = 0, None, None, None
    for block in blocks:
        if centre is None:
            centre = block.mean(0, dtype=np.float64)
            total, products = np.zeros_like(centre), np.zeros((len(centre), len(centre)))
        x = block - centre
        n += len(x)
        total += x.sum(0)
        products += x.T @ x
    assert total is not None
    assert products is not None
    covariance = products / n - np.outer(total, total) / n**2
    deviation = np.sqrt(np.diag(covariance).clip(min=0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: F64 = (covariance / np.outer(deviation, deviation)).clip(-1.0, 1.0)
    return correlation
