"""How much of each gene does the model expect in each cell?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivace.data import CountBatch
from vivace.posterior.cells import Cells, generators_of, points, with_codes
from vivace.setup import Codes

Library = float | Literal["latent", "observed"]
Genes = NDArray[np.int64]


@torch.no_grad()
def expression(
    cells: Cells,
    codes: Sequence[Codes],
    genes: Genes | None,
    library: Library,
    n_draws: int,
    seed: int,
    out: Any,
    keep_draws: bool = False,
) -> None:
    """Expected expression of n cells x g genes, written to ``out`` a minibatch at a time.

    Parameters
    ----------
    cells : the cells
    codes : categories to decode them as; the mean over several
    genes : which genes, in which order; None for all
    library : a number, the library "observed", or "latent": what scales the mean of the counts
    n_draws : draws of z a cell; 0 for the mean of q(z|x)
    seed : of the draws
    out : array to fill, in memory or on disk, shape (n, g); (draws, n, g) with ``keep_draws``
    keep_draws : each draw, not their mean
    """
    generators = generators_of(seed, n_draws)
    share = 1.0 / len(codes) if keep_draws else 1.0 / (len(codes) * max(n_draws, 1))
    for part, batch, inference in cells.encoded("Expression"):
        pairs = points(cells.network, batch, inference, generators)
        block: Tensor | None = None
        for i, (point, log_library) in enumerate(pairs):
            factor = _factor(library, batch, log_library) * share
            block = _add(cells, point, batch, codes, genes, factor, None if keep_draws else block)
            if keep_draws:
                out[i, part] = block.cpu().numpy()
        if not keep_draws:
            assert block is not None
            out[part] = block.cpu().numpy()


@torch.no_grad()
def expression_at(
    cells: Cells,
    codes: Sequence[Codes],
    genes: Genes | None,
    library: Library,
    z_nk: Tensor,
    log_library_n: Tensor,
    out: Any,
) -> None:
    """The same at one given draw, z (before a softmax) and log library, of each cell."""
    share = 1.0 / len(codes)
    for part, batch in cells.batches("Expression"):
        point = cells.network.place(z_nk[part].to(cells.network.device))
        log_library = log_library_n[part].to(cells.network.device)
        factor = _factor(library, batch, log_library) * share
        out[part] = _add(cells, point, batch, codes, genes, factor, None).cpu().numpy()


def _add(
    cells: Cells,
    point: Tensor,
    batch: CountBatch,
    codes: Sequence[Codes],
    genes: Genes | None,
    factor: Tensor,
    total: Tensor | None,
) -> Tensor:
    """``total`` and the expression at ``point`` under each of ``codes``, times ``factor``."""
    for each in codes:
        scale = cells.network.scale(point, with_codes(batch, each))
        if genes is not None:
            scale = scale[:, torch.from_numpy(genes).to(scale.device)]
        scale *= factor[:, None]
        total = scale if total is None else total.add_(scale)
    assert total is not None
    return total


def _factor(library: Library, batch: CountBatch, log_library: Tensor) -> Tensor:
    if library == "latent":
        return log_library.exp()
    if library == "observed":
        return batch.library
    return torch.full_like(batch.library, library)
