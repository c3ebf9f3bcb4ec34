"""Minified data: an AnnData with the posterior of each cell, with or without its counts.

``uns["vivace_minified"]`` records the type and the model. The posterior of z is in ``obsm``,
the library in ``obs``. Layers and raw are dropped with the counts; everything else is kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from vivace.data.batch import StoredPosterior
from vivace.errors import DataError
from vivace.types import F32

Minified = Literal[
    "latent_posterior_parameters",
    "latent_posterior_parameters_with_counts",
]
KEY = "vivace_minified"
MEAN, VARIANCE = "X_latent_qzm", "X_latent_qzv"
LIBRARY = "observed_lib_size"
LIBRARY_MEAN, LIBRARY_VARIANCE = "latent_lib_mean", "latent_lib_variance"


def minify(
    adata: AnnData,
    counts: sp.csr_matrix | None,
    layer: str | None,
    posterior: StoredPosterior,
    library_n: F32,
    model: str,
    kind: Minified,
) -> AnnData:
    """A copy of ``adata`` with the posterior and library of each cell.

    Parameters
    ----------
    adata
        The data, n cells.
    counts
        Counts of ``adata``, if they are kept; None otherwise.
    layer
        Layer of the counts; None for X.
    posterior
        StoredPosterior of the n cells.
    library_n
        Array, float32, shape (n,), molecules of each cell.
    model
        Fingerprint of the weights that the posterior came from.
    kind
        Whether the counts are kept.
    """
    keeps_counts = counts is not None
    kept = counts if counts is not None else sp.csr_matrix(adata.shape, dtype=np.float32)
    small = AnnData(
        X=adata.X if keeps_counts and layer is not None else kept,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        layers=(dict(adata.layers) if keeps_counts else {})
        | ({} if layer is None else {layer: kept}),
    )
    if keeps_counts and adata.raw is not None:
        small.raw = adata.raw.to_adata()
    small.uns[KEY] = json.dumps(
        {
            "type": kind,
            "model": model,
            "n_latent": posterior.mean.shape[1],
            "latent_library": posterior.library_mean is not None,
        }
    )
    small.obsm[MEAN] = posterior.mean.cpu().numpy()
    small.obsm[VARIANCE] = posterior.variance.cpu().numpy()
    small.obs[LIBRARY] = library_n
    if posterior.library_mean is not None and posterior.library_variance is not None:
        small.obs[LIBRARY_MEAN] = posterior.library_mean[:, 0].cpu().numpy()
        small.obs[LIBRARY_VARIANCE] = posterior.library_variance[:, 0].cpu().numpy()
    return small


def minified_type(adata: AnnData) -> Minified | None:
    """How ``adata`` was minified; None if it was not."""
    return None if KEY not in adata.uns else _read_stamp(adata)["type"]


def read_minified(
    adata: AnnData, models: Collection[str]
) -> tuple[StoredPosterior | None, F32 | None]:
    """The posterior of all cells, and their library if the counts were dropped.

    Both are None if ``adata`` was not minified, or if it has its counts and none of ``models``
    (fingerprints) minified it.

    Raises
    ------
    DataError
        If the counts were dropped and none of ``models`` minified the data, or if an array
        that was stored is missing.
    """
    if KEY not in adata.uns:
        return None, None
    stamp = _read_stamp(adata)
    keeps_counts = stamp["type"].endswith("with_counts")
    if stamp["model"] not in models:
        if keeps_counts:
            return None, None
        raise DataError(
            "The counts were dropped by minify_adata of another model, or of this model before "
            "further training; load the model that was saved with these data, or pass data with "
            "counts."
        )
    try:
        mean, variance = (
            torch.from_numpy(np.array(adata.obsm[key], np.float32)) for key in (MEAN, VARIANCE)
        )
        keys = [LIBRARY_MEAN, LIBRARY_VARIANCE] if stamp["latent_library"] else []
        columns = [_read_tensor(adata, key) for key in keys]
        library = np.array(adata.obs[LIBRARY], np.float32)
        if not mean.shape == variance.shape == (adata.n_obs, stamp["n_latent"]):
            raise KeyError(f"a posterior of {stamp['n_latent']} dimensions")
    except KeyError as error:
        raise DataError(
            f"The data were minified, but {error} is missing; load them again from the model's "
            "folder."
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(
            "The data were minified, but the posterior that was kept does not hold numbers; load "
            "them again from the model's folder."
        ) from error
    positive = {VARIANCE: variance, LIBRARY: torch.from_numpy(library)}
    positive |= dict(zip(keys[1:], columns[1:], strict=True))
    finite = positive | {MEAN: mean} | dict(zip(keys, columns, strict=True))
    for key, values in finite.items():
        if not values.isfinite().all() or (key in positive and not (values > 0).all()):
            raise DataError(
                f"The data were minified, but {key} was changed: it must be finite"
                f"{' and above 0' if key in positive else ''}; load them again from the model's "
                "folder."
            )
    return StoredPosterior(mean, variance, *columns), None if keeps_counts else library


def _read_tensor(adata: AnnData, key: str) -> torch.Tensor:
    """A column of obs, shape (n, 1)."""
    column: pd.Series[Any] = adata.obs[key]
    return torch.from_numpy(np.array(column, np.float32))[:, None]


def _read_stamp(adata: AnnData) -> dict[str, Any]:
    """The record of the type and the model in ``uns``."""
    try:
        stamp: dict[str, Any] = json.loads(adata.uns[KEY])
        complete = {"type", "model", "latent_library", "n_latent"} <= set(stamp)
        complete = complete and stamp["type"] in get_args(Minified)
    except (TypeError, ValueError, RecursionError):
        complete = False
    if not complete:
        raise DataError(
            f"adata.uns[{KEY!r}] cannot be read; load the data again from the model's folder."
        )
    return stamp
