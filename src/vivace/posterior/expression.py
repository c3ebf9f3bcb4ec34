"""How much of each gene does the model expect in each cell?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vivace.cells import Cells, generators_of, points, with_codes
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.ops.runtime.threads import question
from vivace.ops.runtime.workspace import Memory
from vivace.types import I64

Library = float | Literal["latent", "observed"]


@question
def expression(
    cells: Cells,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    n_draws: int,
    seed: int,
    out: Any,
    keep_draws: bool = False,
) -> None:
    """Expected expression of n cells x g genes, written to ``out`` a minibatch at a time.

    Parameters
    ----------
    cells
        The cells.
    codes
        Categories to decode them as; the mean over several.
    genes
        Which genes, in which order; None for all.
    library
        A number, the library "observed", or "latent": what scales the mean of the counts.
    n_draws
        Draws of z a cell; 0 for the mean of q(z|x).
    seed
        Of the draws.
    out
        Array to fill, in memory or on disk, shape (n, g); (draws, n, g) with ``keep_draws``.
    keep_draws
        Each draw, not their mean.
    """
    generators = generators_of(seed, n_draws)
    memory = Memory()
    for part, batch, inference in cells.encoded("Expression"):
        pairs = list(points(cells.network, batch, inference, generators))
        if keep_draws:
            for i, pair in enumerate(pairs):
                _write(cells, [pair], batch, codes, genes, library, out, (i, part), memory)
        else:
            _write(cells, pairs, batch, codes, genes, library, out, part, memory)


@question
def expression_at(
    cells: Cells,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    z_nk: Tensor,
    log_library_n: Tensor,
    out: Any,
    memory: Memory | None = None,
) -> None:
    """The same at one given draw, z (before a softmax) and log library, of each cell.

    With ``memory``, arrays on the way are used again by the next call that has it.
    """
    memory = memory or Memory()
    for part, batch in cells.batches("Expression", counts=False):
        point = cells.network.place(z_nk[part].to(cells.network.device))
        pairs = [(point, log_library_n[part].to(cells.network.device))]
        _write(cells, pairs, batch, codes, genes, library, out, part, memory)


def _write(
    cells: Cells,
    pairs: Sequence[tuple[Tensor, Tensor]],
    batch: CountBatch,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    out: Any,
    place: Any,
    memory: Memory,
) -> None:
    """Write the mean, over points and codes, of the expression of a minibatch to ``out[place]``."""
    network = cells.network
    shape = (batch.n_cells, network.dims.n_genes)
    on_cpu = network.device.type == "cpu"
    target = memory.take("scale", *shape) if on_cpu else None
    several = len(pairs) * len(codes) > 1
    straight = on_cpu and not several and genes is None and _torch_can(out)
    if straight:  # the softmax writes to its last place
        target = torch.from_numpy(out[place])
    total: Tensor | None = None
    for point, log_library in pairs:
        factor = _factor(library, batch, log_library)
        for each in codes:
            scale = network.scale(point, with_codes(batch, each), target)
            if genes is not None:
                scale = scale[:, torch.from_numpy(genes).to(scale.device)]
            if factor is not None:
                scale *= factor[:, None]
            if several and total is None:
                scale = scale.clone()  # the next one is written to the same place
            total = scale if total is None else total.add_(scale)
    assert total is not None
    if several:
        total /= len(pairs) * len(codes)
    if not straight:
        out[place] = total.cpu().numpy()


def _torch_can(out: object) -> bool:
    """Whether torch can write to rows of the array as they are."""
    if type(out) is not np.ndarray:
        return False
    return out.dtype == np.float32 and out.flags.writeable and out.flags.c_contiguous


def _factor(library: Library, batch: CountBatch, log_library: Tensor) -> Tensor | None:
    """What the expression of each cell is multiplied with; None for 1."""
    if library == "latent":
        return log_library.exp()
    if library == "observed":
        return batch.library
    return None if library == 1 else torch.full_like(batch.library, library)
