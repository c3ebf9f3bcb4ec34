"""What would the model observe, were the cells sequenced again?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from vivace.cells import Cells, children, draw, with_codes
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.ops.runtime.threads import question
from vivace.posterior.decode import observed
from vivace.types import F32, I64

Sampled = sp.csr_matrix | F32


@question
def samples(
    cells: Cells, codes: Sequence[Codes], n_draws: int, seed: int, what: str = "Sampling"
) -> Iterator[tuple[slice, int, CountBatch, Tensor]]:
    """Draws of p(x'|x): for each minibatch and each draw of z, counts, dense, (n, g), on the CPU.

    Of several ``codes`` each cell takes one at random in each draw.  One uniform number a
    cell and gene is turned into a count by the inverse of the cumulative distribution, so
    that what is drawn depends neither on the minibatches nor on the genes asked for, and
    moves little with the parameters: draws under two batches can be compared.
    """
    network = cells.network
    streams = [np.random.default_rng(s) for s in children(seed, 3 * n_draws)]
    of_z, of_codes, of_counts = (streams[i::3] for i in range(3))
    for part, batch, inference in cells.encoded(what):
        own_library = network.log_library(batch, inference)
        for i in range(n_draws):
            point, log_library = draw(network, inference, of_z[i])
            other = with_codes(batch, codes[0])
            if len(codes) > 1:
                other = _mixed(batch, codes, of_codes[i].integers(len(codes), size=batch.n_cells))
            rates = network.rates(point, other, own_library if log_library is None else log_library)
            distribution = observed(network, rates)
            uniform = torch.from_numpy(of_counts[i].random(distribution.batch_shape))
            yield part, i, batch, distribution.icdf(uniform).float().cpu()


def sparse_counts(counts: Tensor, genes: I64 | None) -> sp.csr_matrix:
    """Whole counts of some genes as an int32 CSR matrix."""
    picked = counts if genes is None else counts[:, torch.from_numpy(genes)]
    return sp.csr_matrix(picked.numpy()).astype(np.int32)


def _mixed(batch: CountBatch, codes: Sequence[Codes], choice: I64) -> CountBatch:
    """The same cells, each under the codes that it drew."""
    as_each = [with_codes(batch, c) for c in codes]
    at = torch.from_numpy(choice).to(batch.batch.device)
    cell = torch.arange(batch.n_cells, device=at.device)
    return replace(
        batch,
        batch=torch.stack([b.batch for b in as_each])[at, cell],
        categorical=torch.stack([b.categorical for b in as_each])[at, cell],
    )
