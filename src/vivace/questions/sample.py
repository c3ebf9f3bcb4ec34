"""What would the model observe if the cells were sequenced again?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells, child_seeds, question, sample_latent, with_codes
from vivace.core import Core
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.errors import DataError, require_extra
from vivace.questions.decode import observation_distribution
from vivace.store.arrays import fill_dense, fill_sparse
from vivace.types import I64, Indices, Transform
from vivace.validate import COUNT


@question(n_samples=COUNT)
def posterior_predictive_sample(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    transform_batch: Transform = None,
    n_samples: int = 1,
    gene_list: Sequence[str] | None = None,
    batch_size: int | None = None,
    silent: bool = False,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
) -> Any:
    """Counts as the model would observe them if the cells were sequenced again.

    z (and a latent library) is sampled from q(.|x), then counts from the likelihood.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    transform_batch
        As in :meth:`get_normalized_expression`. With several categories, each cell takes one
        at random in each sample, because counts are integers.
    n_samples
        Samples per cell.
    gene_list
        Names of genes, in this order, or one name, or a mask of the model's genes; None for all.
        A gene's samples do not depend on the others.
    out
        A path, to which AnnData's form of a sparse matrix is written as zarr, block by
        block; with several samples, one matrix in each of the groups "0", "1" and so on.
    seed
        Random seed; None uses the model's next seed.

    Returns
    -------
    CSR matrix, int32, shape (n, g). With several samples a ``sparse.GCXS`` array of shape
    (n, g, samples), for which the package ``sparse`` is needed. With ``out``, AnnData's
    sparse dataset, or a list of them, open for reading. For the normal likelihood a
    dense array, float32, shape (n, g) or (n, g, samples).

    Raises
    ------
    DataError
        If there is no such category or gene; the message suggests similar ones.
    MissingExtraError
        If a package that the result needs is missing.
    """
    codes = self.schema.codes(transform_batch)
    genes = self.schema.genes_at(gene_list)
    cells = self._cells(adata, indices, batch_size, silent)
    samples = sample_counts(cells, codes, n_samples, self._seeds.take(seed))
    n_genes = len(self.schema.genes) if genes is None else len(genes)
    if self.config.gene_likelihood == "normal":
        shape = (len(cells), n_genes) if n_samples == 1 else (len(cells), n_genes, n_samples)

        def write(array: Any) -> None:
            for part, i, _, x_ng in samples:
                values = x_ng.numpy() if genes is None else x_ng[:, genes].numpy()
                array[part if n_samples == 1 else (part, slice(None), i)] = values

        return fill_dense(out, shape, cells.batch_size, write, cells_axis=0)
    blocks = ((i, sparse_counts(x_ng, genes)) for _, i, _, x_ng in samples)
    if out is not None:
        return fill_sparse(out, n_genes, n_samples, blocks)
    if n_samples > 1:
        require_extra(
            "sparse", "samples", "Several samples need the package", "or give out= a path"
        )
    rows: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    for i, block in blocks:
        rows[i].append(block)
    empty = sp.csr_matrix((0, n_genes), dtype=np.int32)
    matrices = [sp.vstack([empty, *r], format="csr") for r in rows]
    return matrices[0] if n_samples == 1 else _stack(matrices)


def sample_counts(
    cells: Cells, codes: Sequence[Codes], n_samples: int, seed: int, title: str = "Sampling"
) -> Iterator[tuple[slice, int, CountBatch, Tensor]]:
    """Samples of p(x'|x): for each minibatch and sample, counts, dense, (n, g), on the CPU.

    Of several ``codes`` each cell takes one at random in each sample. One uniform number per
    cell and gene is turned into a count by the inverse of the cumulative distribution. So a
    sample depends neither on the minibatches nor on the genes asked for, and changes little
    with the parameters: samples under two batches can be compared.
    """
    network = cells.network
    generators = [np.random.default_rng(s) for s in child_seeds(seed, 3 * n_samples)]
    z_rngs, code_rngs, count_rngs = (generators[i::3] for i in range(3))
    for part, batch, inference in cells.encoded(title):
        own_library_n = network.log_library(batch, inference)
        for i in range(n_samples):
            point_nk, log_library_n = sample_latent(network, inference, z_rngs[i])
            recoded = with_codes(batch, codes[0])
            if len(codes) > 1:
                recoded = _mix(batch, codes, code_rngs[i].integers(len(codes), size=batch.n_cells))
            if log_library_n is None:
                log_library_n = own_library_n
            rates = network.rates(point_nk, recoded, log_library_n)
            distribution = observation_distribution(network, rates)
            uniform_ng = torch.from_numpy(count_rngs[i].random(distribution.batch_shape))
            yield part, i, batch, distribution.icdf(uniform_ng).float().cpu()


def sparse_counts(x_ng: Tensor, genes: I64 | None) -> sp.csr_matrix:
    """Integer counts of some genes as an int32 CSR matrix; refuse those that are too large."""
    chosen = x_ng if genes is None else x_ng[:, torch.from_numpy(genes)]
    if chosen.numel() and (most := chosen.max().item()) >= 2**31:
        raise DataError(
            f"A sampled count is {most:.3g}, more than an int32 can hold; check the cells' library "
            "sizes or size factors, and that training converged."
        )
    return sp.csr_matrix(chosen.numpy()).astype(np.int32)


def _mix(batch: CountBatch, codes: Sequence[Codes], choice_n: I64) -> CountBatch:
    """The same cells, each under one of the codes."""
    alternatives = [with_codes(batch, c) for c in codes]
    choice = torch.from_numpy(choice_n).to(batch.batch.device)
    cell = torch.arange(batch.n_cells, device=choice.device)
    return replace(
        batch,
        batch=torch.stack([b.batch for b in alternatives])[choice, cell],
        categorical=torch.stack([b.categorical for b in alternatives])[choice, cell],
    )


def _stack(matrices: list[sp.csr_matrix]) -> Any:
    """One array of shape (n, g, samples) from a matrix for each sample."""
    import sparse

    parts = [m.tocoo() for m in matrices]
    sample = np.repeat(np.arange(len(parts)), [p.nnz for p in parts])
    row = np.concatenate([p.row for p in parts])
    column = np.concatenate([p.col for p in parts])
    values = np.concatenate([p.data for p in parts])
    shape = (*matrices[0].shape, len(parts))
    return sparse.GCXS.from_coo(sparse.COO(np.stack([row, column, sample]), values, shape))
