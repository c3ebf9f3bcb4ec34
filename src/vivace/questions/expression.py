"""How much of each gene does the model expect in each cell?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells, child_generators, decoder_inputs, question, with_codes
from vivace.core import Core
from vivace.data import CountBatch
from vivace.data.schema import Codes
from vivace.errors import OptionError, brief
from vivace.ops.runtime.workspace import thread_workspace
from vivace.questions.importance import Weighting, check_weighting, sample_group
from vivace.store.arrays import fill_dense
from vivace.types import I64, Indices, Transform
from vivace.validate import COUNT, LARGEST_FLOAT, OPTIONAL_COUNT, Choice, Number

Library = float | Literal["latent", "observed"]
Weights = Literal["uniform", "importance"]


def _check_library(name: str, value: Any) -> float | str | None:
    if not isinstance(value, str):
        return Number(above=0, at_most=LARGEST_FLOAT)(name, value)
    if value not in ("latent", "observed"):
        raise OptionError(
            f"{name} must be a number or one of 'latent', 'observed', not {brief(value)}."
        )
    return value


@question(
    library_size=_check_library,
    n_samples=COUNT,
    n_samples_overall=OPTIONAL_COUNT,
    weights=Choice(Weights, optional=True),
)
def get_normalized_expression(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    transform_batch: Transform = None,
    gene_list: Sequence[str] | None = None,
    library_size: Library = 1,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    weights: Weights | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    silent: bool = False,
    *,
    out: Any = None,
    seed: int | None = None,
    **importance_weighting_kwargs: Unpack[Weighting],
) -> Any:
    """Expected expression, free of counting noise and of sequencing depth: rho of the model.

    Parameters
    ----------
    adata, indices, batch_size, silent
        As in :meth:`get_latent_representation`.
    transform_batch
        Decode cells as if they belonged to this category of the batch; for several, the mean
        over them. For other categorical covariates, a mapping from columns to categories:
        ``{"donor": ["d1", "d2"], "condition": "control"}``, the mean over combinations.
        None keeps each cell's own.
    gene_list
        Names of genes, in this order, or one name, or a mask of the model's genes; None for all.
    library_size
        Sum of a cell's expression over all genes: a number, "observed" for the molecules of
        the cell, or "latent" for the factor that scales the mean of its counts (the observed
        or latent library, or the size factor). With a size factor rho is not a share: it is
        multiplied by this number and has no fixed sum, as in scvi-tools.
    n_samples
        Samples of z per cell. 1 decodes the mean of q(z|x) (one random sample with
        ``return_mean=False``).
    n_samples_overall
        Total number of rows, each one sample of z of a cell sampled with replacement;
        ``n_samples`` must then be 1.
    weights
        How those rows are sampled: "uniform", or "importance" for samples that represent all
        cells (:meth:`get_importance_weights`, whose arguments are accepted too).
    return_mean
        Return the mean over samples; False returns every sample, shape (samples, n, g).
    return_numpy
        An array instead of a frame; None for a frame where the result has two dimensions.
    out
        A path, where a zarr array is written block by block, or an array to fill, in memory or
        on disk. That array is returned, and memory does not grow with the cells.
    seed
        Random seed; None uses the model's next seed.
    importance_weighting_kwargs
        Arguments of :meth:`get_importance_weights`, with ``weights="importance"``.

    Returns
    -------
    Frame of cells x genes, or array, float32, shape (n, g), (samples, n, g) or
    (n_samples_overall, g).

    Raises
    ------
    DataError
        If there is no such category or gene; the message suggests similar ones.
    OptionError, ArgumentTypeError, ShapeError
        If arguments are out of range or contradict each other.

    Notes
    -----
    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

    Examples
    --------
    >>> import vivace
    >>> adata = vivace.datasets.pbmc3k()[:200].copy()
    >>> vivace.SCVI.setup_anndata(adata)
    >>> model = vivace.SCVI(adata, n_latent=5)
    >>> model.train(max_epochs=2, progress=False)
    >>> model.get_normalized_expression(gene_list=["MS4A1", "LYZ"], library_size=1e4).shape
    (200, 2)
    """
    weighting = check_weighting("get_normalized_expression", importance_weighting_kwargs)
    _check_group(weights, n_samples, n_samples_overall)
    if importance_weighting_kwargs and weights != "importance":
        raise OptionError(
            f"{next(iter(importance_weighting_kwargs))} applies to importance weights; give "
            "weights='importance' too, or leave it out."
        )
    codes = self.schema.codes(transform_batch)
    genes = self.schema.genes_at(gene_list)
    cells = self._cells(adata, indices, batch_size, silent, counts=weights == "importance")
    uses_mean = n_samples == 1 and return_mean and n_samples_overall is None
    first_seed = self._seed(seed, random=not uses_mean)
    each_sample = n_samples > 1 and not return_mean
    if each_sample and return_numpy is not None and not return_numpy:
        raise OptionError(
            "A frame has two dimensions, so return_numpy=False cannot be combined with several "
            "samples (n_samples) that are kept (return_mean=False); leave one of them out."
        )
    n_genes = len(self.schema.genes) if genes is None else len(genes)
    if n_samples_overall is None:
        shape = (n_samples, len(cells), n_genes) if each_sample else (len(cells), n_genes)

        def write(array: Any) -> None:
            n = 0 if uses_mean else n_samples
            write_expression(
                cells, codes, genes, library_size, n, first_seed, array, keep_samples=each_sample
            )

    else:
        shape = (n_samples_overall, n_genes)

        def write(array: Any) -> None:
            nonlocal cells
            positions, z_mk, log_library_m = sample_group(
                cells, n_samples_overall, first_seed, weighting if weights == "importance" else None
            )
            cells = cells.take(positions)
            write_expression_at(cells, codes, genes, library_size, z_mk, log_library_m, array)

    values = fill_dense(out, shape, cells.batch_size, write)
    if out is not None or each_sample or return_numpy:
        return values
    names = self._resolve_adata(adata).obs_names[cells.rows]
    return pd.DataFrame(values, index=names, columns=self.schema.gene_names(genes), copy=False)


def write_expression(
    cells: Cells,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    n_samples: int,
    seed: int,
    out: Any,
    keep_samples: bool = False,
) -> None:
    """Write the expected expression of n cells x g genes to ``out``, a minibatch at a time.

    Parameters
    ----------
    cells
        The cells.
    codes
        Categories to decode them as; the mean over several.
    genes
        Positions of genes, in this order; None for all.
    library
        A number, "observed", or "latent" for the factor that scales the mean of the counts.
    n_samples
        Samples of z per cell; 0 for the mean of q(z|x).
    seed
        Random seed.
    out
        Array to fill, in memory or on disk, shape (n, g); (samples, n, g) with
        ``keep_samples``.
    keep_samples
        Write each sample instead of their mean.
    """
    generators = child_generators(seed, n_samples)
    for part, batch, inference in cells.encoded("Expression"):
        inputs = list(decoder_inputs(cells.network, batch, inference, generators))
        if keep_samples:
            for i, pair in enumerate(inputs):
                _write_mean(cells, [pair], batch, codes, genes, library, out, (i, part))
        else:
            _write_mean(cells, inputs, batch, codes, genes, library, out, part)


def write_expression_at(
    cells: Cells,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    z_nk: Tensor,
    log_library_n: Tensor,
    out: Any,
) -> None:
    """Like :func:`write_expression`, at a given z (before a softmax) and log library per cell."""
    device = cells.network.device
    for part, batch in cells.batches("Expression", counts=False):
        pair = cells.network.place(z_nk[part].to(device)), log_library_n[part].to(device)
        _write_mean(cells, [pair], batch, codes, genes, library, out, part)


def _write_mean(
    cells: Cells,
    inputs: Sequence[tuple[Tensor, Tensor]],
    batch: CountBatch,
    codes: Sequence[Codes],
    genes: I64 | None,
    library: Library,
    out: Any,
    position: Any,
) -> None:
    """Write the mean, over decoder inputs and codes, of a minibatch's expression."""
    network = cells.network
    several = len(inputs) * len(codes) > 1
    # on the CPU the softmax writes into existing memory: the result itself if no further step
    # follows, otherwise scratch memory
    target: Tensor | None = None
    in_place = False
    if network.device.type == "cpu":
        in_place = not several and genes is None and _is_plain_float32(out)
        target = (
            torch.from_numpy(out[position])
            if in_place
            else thread_workspace().take("scale", batch.n_cells, network.dims.n_genes)
        )
    total: Tensor | None = None
    for point_nk, log_library_n in inputs:
        factor_n = _library_factor(library, batch, log_library_n)
        for code in codes:
            scale_ng = network.scale(point_nk, with_codes(batch, code), target)
            if genes is not None:
                scale_ng = scale_ng[:, torch.from_numpy(genes).to(scale_ng.device)]
            if factor_n is not None:
                scale_ng *= factor_n[:, None]
            if several and total is None:
                scale_ng = scale_ng.clone()  # the next one is written to the same memory
            total = scale_ng if total is None else total.add_(scale_ng)
    assert total is not None
    if several:
        total /= len(inputs) * len(codes)
    if not in_place:
        out[position] = total.cpu().numpy()


def _is_plain_float32(out: object) -> bool:
    """Whether torch can write to rows of the array directly."""
    if type(out) is not np.ndarray:
        return False
    return out.dtype == np.float32 and out.flags.writeable and out.flags.c_contiguous


def _library_factor(library: Library, batch: CountBatch, log_library_n: Tensor) -> Tensor | None:
    """The factor by which the expression of each cell is multiplied; None for 1."""
    if library == "latent":
        return log_library_n.exp()
    if library == "observed":
        return batch.library
    return None if library == 1 else torch.full_like(batch.library, library)


def _check_group(weights: object, n_samples: int, n_samples_overall: int | None) -> None:
    """``weights`` and ``n_samples`` must go with ``n_samples_overall``."""
    if n_samples_overall is None:
        if weights == "importance":
            raise OptionError(
                "weights='importance' says how a whole group is sampled; give the number of samples "
                "as n_samples_overall, or leave weights out."
            )
    elif n_samples != 1:
        raise OptionError(
            f"n_samples_overall ({n_samples_overall}) is the total number of rows, one sample "
            f"each; leave n_samples at 1, not {n_samples}."
        )
