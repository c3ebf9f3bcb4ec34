"""Which genes change along a direction of the latent space?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp

from vivace.cells import Cells, question, with_codes
from vivace.core import Core
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.errors import OptionError, ShapeError
from vivace.nn import VAE, LinearDecoder
from vivace.questions.latent import encode
from vivace.session import quiet_torch
from vivace.types import F64, Indices, Transform
from vivace.validate import COUNT, float_tensor

Directions = Mapping[str, Any] | NDArray[Any] | Sequence[Any] | None
_LEAST_DEVIATION = 1e-6  # of z; a smaller standard deviation is rounding error


@dataclass(frozen=True)
class GenePrograms:
    """The genes that change along directions of the latent space.

    Parameters
    ----------
    effect
        Frame, genes x directions: change of a gene's log expected expression (nats) for a move
        along the direction, mean over cells.
    spread
        Frame of the same shape: its standard deviation over cells.

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
        COUNT("n_genes", n_genes)
        rows = []
        for direction in self.effect.columns:
            order = self.effect[direction].sort_values(ascending=False, kind="stable")
            for sign, genes in (("+", order.index[:n_genes]), ("-", order.index[::-1][:n_genes])):
                for gene in genes:
                    effect, spread = (f.at[gene, direction] for f in (self.effect, self.spread))
                    if effect > 0 if sign == "+" else effect < 0:
                        rows.append((direction, sign, gene, effect, spread))
        return pd.DataFrame(rows, columns=["direction", "sign", "gene", "effect", "spread"])


@question()
def get_gene_programs(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    directions: Directions = None,
    transform_batch: Transform = None,
    batch_size: int | None = None,
    *,
    silent: bool = False,
) -> GenePrograms:
    """Which genes change along a direction of the latent space, and by how much.

    The exact derivative of each gene's log expected expression along the direction, at each
    cell's mean of q(z|x), times the length of the move: mean and standard deviation over
    cells. Where the latent space is logistic-normal, moves are made before the softmax.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    directions
        None moves along each latent dimension by one standard deviation of the cells
        ("Z_0", "Z_1", ...). Otherwise your own moves, such as the difference of two
        groups' means: a mapping from names to vectors, shape (k,), or an array, shape
        (k,) or (d, k).
    transform_batch
        As in :meth:`get_normalized_expression`.

    Returns
    -------
    :class:`~vivace.questions.programs.GenePrograms`: frames ``effect`` and ``spread``, genes x
    directions, in nats, and ``top(n)``, the genes that rise and fall most.

    Notes
    -----
    For :class:`~vivace.LinearSCVI` the effect of a move of length one is the loading,
    minus a number that all genes share (the softmax over genes).

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()[:200].copy()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> programs = model.get_gene_programs()
    >>> programs.effect.shape, programs.top(10).shape
    ((2005, 5), (100, 5))
    """
    codes = self.schema.codes(transform_batch)
    cells = self._cells(adata, indices, batch_size, silent)
    if len(cells) == 0:
        raise OptionError("indices selects no cells; gene programs are means over cells.")
    if directions is None:
        names = [f"Z_{i}" for i in range(self.config.n_latent)]
        mean_nk, _ = encode(cells)
        moves_dk = np.diag(mean_nk.std(0, dtype=np.float64))
        if moves_dk.max() < _LEAST_DEVIATION:
            raise OptionError(
                "All cells lie at one point, so there is no standard deviation to move by; give "
                "more cells, or your own directions."
            )
    else:
        names, moves_dk = _named_moves(directions, self.config.n_latent)
    mean_gd, spread_gd = _gene_effects(cells, codes, moves_dk)
    genes = self.schema.gene_names(None)
    return GenePrograms(
        pd.DataFrame(mean_gd, index=genes, columns=names),
        pd.DataFrame(spread_gd, index=genes, columns=names),
    )


@torch.no_grad()
def get_loadings(self: Core) -> pd.DataFrame:
    """Weight of each latent dimension on each gene, shape (g, k).

    Genes in rows, ``Z_0`` and so on in columns; batch norm is included,
    batch and covariates are not.
    """
    decoder = self.module.decoder
    assert isinstance(decoder, LinearDecoder)
    n_latent = self.config.n_latent
    return pd.DataFrame(
        decoder.scale.loadings(n_latent).cpu().numpy(),
        index=list(self.schema.genes),
        columns=[f"Z_{i}" for i in range(n_latent)],
    )


@quiet_torch()
def _gene_effects(cells: Cells, codes: Sequence[Codes], moves_dk: F64) -> tuple[F64, F64]:
    """Change of log expected expression along each move: mean and deviation over cells, (g, d).

    Exact Jacobian-vector products, one per move and minibatch. The mean over several ``codes``
    is taken cell by cell.
    """
    network = cells.network
    moves = torch.from_numpy(moves_dk.astype(np.float32)).to(network.device)
    total = torch.zeros(len(moves), network.dims.n_genes, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for _, batch, inference in cells.encoded("Gene programs"):
        batches = [with_codes(batch, c) for c in codes]
        for d, move in enumerate(moves):
            tangent_nk = move.expand_as(inference.z.mean)
            # float64: a spread far below the effect would be lost in the rounding of squares
            change_ng = _derivative(network, batches, inference.z.mean, tangent_nk).cpu().double()
            total[d] += change_ng.sum(0)
            squares[d] += change_ng.square().sum(0)
    mean = total / len(cells)
    spread = (squares / len(cells) - mean.square()).clamp(min=0.0).sqrt()
    return mean.T.numpy(), spread.T.numpy()


def _derivative(
    network: VAE, batches: Sequence[CountBatch], z_nk: Tensor, tangent_nk: Tensor
) -> Tensor:
    """Derivative of log rho along ``tangent_nk``, mean over ``batches``, shape (n, g)."""
    changes = []
    for batch in batches:
        change_ng = jvp(
            lambda z, b=batch: network.log_scale(network.place(z), b), (z_nk,), (tangent_nk,)
        )[1]
        changes.append(change_ng)
    return torch.stack(changes).mean(0)


def _named_moves(directions: Any, n_latent: int) -> tuple[list[str], F64]:
    """Names and vectors, shape (d, k), of the moves that a user gave."""
    if isinstance(directions, Mapping):
        names, vectors = [str(n) for n in directions], list(directions.values())
        if len(set(names)) < len(names):
            raise OptionError("directions holds two names with the same text; rename one.")
        moves_dk = float_tensor("directions", vectors if vectors else np.empty((0, n_latent)))
    else:
        moves_dk = float_tensor("directions", directions)
        moves_dk = moves_dk[None] if moves_dk.ndim == 1 else moves_dk
        names = [f"direction_{i}" for i in range(len(moves_dk))]
    if moves_dk.ndim != 2 or moves_dk.shape[1] != n_latent or len(moves_dk) == 0:
        raise ShapeError(
            f"directions has shape {tuple(moves_dk.shape)}, but moves in {n_latent} latent "
            f"dimensions need (d, {n_latent})."
        )
    return names, moves_dk.double().numpy()
