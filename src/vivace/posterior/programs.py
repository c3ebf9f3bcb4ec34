"""Which genes change along a direction of the latent space?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import jvp

from vivace.cells import Cells, with_codes
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.nn import VAE
from vivace.ops.runtime.threads import question
from vivace.posterior.latent import latent
from vivace.types import F64
from vivace.validate import whole

Effects = tuple[F64, F64]


@dataclass(frozen=True)
class GenePrograms:
    """The genes that directions of the latent space stand for.

    Parameters
    ----------
    effect
        Frame, genes x directions, change of a gene's log expected expression (nats) for a move
        along the direction, mean over cells.
    spread
        Frame of the same shape, its standard deviation over cells.

    Examples
    --------
    >>> frame = pd.DataFrame({"Z_0": [0.5, -1.0, 0.1]}, index=["A", "B", "C"])
    >>> GenePrograms(frame, 0 * frame).top(1)
      direction sign gene  effect  spread
    0       Z_0    +    A     0.5     0.0
    1       Z_0    -    B    -1.0    -0.0
    """

    effect: pd.DataFrame
    spread: pd.DataFrame

    def top(self, n_genes: int = 10) -> pd.DataFrame:
        """The genes that rise and fall most along each direction, strongest first.

        One row for each direction, sign and gene.
        """
        whole("n_genes", n_genes)
        rows = []
        for direction in self.effect.columns:
            order = self.effect[direction].sort_values(ascending=False, kind="stable")
            for sign, genes in (("+", order.index[:n_genes]), ("-", order.index[::-1][:n_genes])):
                for gene in genes:
                    effect, spread = (f.at[gene, direction] for f in (self.effect, self.spread))
                    if effect > 0 if sign == "+" else effect < 0:
                        rows.append((direction, sign, gene, effect, spread))
        return pd.DataFrame(rows, columns=["direction", "sign", "gene", "effect", "spread"])


def standard_moves(cells: Cells) -> F64:
    """Along each latent dimension, one standard deviation of the cells' means, shape (k, k)."""
    mean, _ = latent(cells, None)
    return np.diag(mean.std(0, dtype=np.float64))


@question
def gene_effects(cells: Cells, codes: Sequence[Codes], moves_dk: F64) -> Effects:
    """Change of log expected expression along each move: mean and deviation over cells, (g, d).

    The derivative of log rho at the mean of each cell's q(z|x), in the direction of the
    move and times its length: exact Jacobian-vector products, one a move and minibatch.  A
    logistic-normal's moves are made before its softmax.  The mean over several ``codes``
    is taken cell by cell.
    """
    network = cells.network
    moves = torch.from_numpy(moves_dk.astype(np.float32)).to(network.device)
    total = torch.zeros(len(moves), network.dims.n_genes, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for _, batch, inference in cells.encoded("Gene programs"):
        others = [with_codes(batch, c) for c in codes]
        for d, move in enumerate(moves):
            tangent = move.expand_as(inference.z.mean)
            # float64, or a spread far below the effect would be lost in the rounding of squares
            change = _change(network, others, inference.z.mean, tangent).cpu().double()
            total[d] += change.sum(0)
            squares[d] += change.square().sum(0)
    mean = total / len(cells)
    spread = (squares / len(cells) - mean.square()).clamp(min=0.0).sqrt()
    return mean.T.numpy(), spread.T.numpy()


def _change(network: VAE, batches: Sequence[CountBatch], z_nk: Tensor, tangent: Tensor) -> Tensor:
    """Derivative of log rho along ``tangent``, mean over ``batches``, shape (n, g)."""
    changes = []
    for batch in batches:
        found = jvp(lambda z, b=batch: network.log_scale(network.place(z), b), (z_nk,), (tangent,))
        changes.append(found[1])
    return torch.stack(changes).mean(0)
