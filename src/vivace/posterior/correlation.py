"""Which genes go together, once the noise of counting is gone?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch

from vivace.cells import Cells, children, generators_of, points, with_codes
from vivace.data.schema import Codes
from vivace.ops.runtime.threads import question
from vivace.types import F32, F64, I64

Correlation = Literal["spearman", "pearson"]
_REFERENCE = 1 << 26  # numbers that ranks are taken against, 256 MB


def feature_correlation(
    cells: Cells,
    codes: Codes,
    genes: I64 | None,
    n_draws: int,
    rna_size_factor: float,
    kind: Correlation,
    seed: int,
) -> F64:
    """Correlation of genes over denoised draws of all cells, shape (g, g).

    The draws are of the gamma distributed rate of the counts at ``rna_size_factor``
    molecules a cell; of the rate itself where the likelihood has no gamma.  Spearman's
    ranks are taken among the draws of an even choice of cells, which are all cells where
    the draws are at most 2**26 numbers; memory does not grow with the cells.  A gene
    that is the same in every draw has no correlation: NaN.
    """

    def denoised() -> Iterator[tuple[slice, F32]]:
        for part, x in _denoised(cells, codes, n_draws, rna_size_factor, seed):
            yield part, x if genes is None else x[:, genes]

    if kind == "pearson":
        return _correlation(x for _, x in denoised())
    n_genes = cells.network.dims.n_genes if genes is None else len(genes)
    most = max(2, _REFERENCE // (n_genes * n_draws))
    chosen = np.zeros(len(cells), bool)
    chosen[np.linspace(0, len(cells) - 1, min(most, len(cells))).astype(np.int64)] = True
    reference = np.concatenate([x[chosen[part]] for part, x in denoised()])
    ordered = np.sort(reference.T, axis=1)  # a gene's values beside each other
    if chosen.all():
        blocks = np.array_split(reference, max(1, len(reference) // cells.batch_size))
        return _correlation(_ranks(x, ordered) for x in blocks)
    return _correlation(_ranks(x, ordered) for _, x in denoised())


@question
def _denoised(
    cells: Cells, codes: Codes, n_draws: int, rna_size_factor: float, seed: int
) -> Iterator[tuple[slice, F32]]:
    """Each minibatch's place and its rates at each draw, (n, g)."""
    network = cells.network
    of_z, of_gamma = (generators_of(s, n_draws) for s in children(seed, 2))
    for part, batch, inference in cells.encoded("Correlation"):
        other = with_codes(batch, codes)
        size = torch.full_like(batch.library, rna_size_factor).log()
        drawn = points(network, batch, inference, of_z)
        for (point, _), generator in zip(drawn, of_gamma, strict=True):
            rates = network.rates(point, other, size)
            x = rates.mu.cpu().numpy()
            if network.likelihood.dispersed and network.likelihood.counts:
                assert rates.theta is not None
                theta = rates.theta.expand(rates.mu.shape).cpu().numpy()
                # NumPy's stream is consumed cell by cell, whatever the minibatches
                x = (generator.standard_gamma(theta) * (x / theta)).astype(np.float32)
            yield part, x


def _ranks(x_ng: F32, ordered_gm: F32) -> F32:
    """Rank of each value among its gene's, half way where there are ties, from 0 to 1."""
    ranks = np.empty(x_ng.shape, np.float32)
    for g, ordered in enumerate(ordered_gm):
        column = np.ascontiguousarray(x_ng[:, g])
        below, upto = (np.searchsorted(ordered, column, side) for side in ("left", "right"))
        ranks[:, g] = (below + upto) / (2 * len(ordered))
    return ranks


def _correlation(blocks: Iterable[F32]) -> F64:
    """Pearson's correlation of columns, block after block, about the first block's mean."""
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
        found: F64 = (covariance / np.outer(deviation, deviation)).clip(-1.0, 1.0)
    return found
