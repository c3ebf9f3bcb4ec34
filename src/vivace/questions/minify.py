"""Dropping a model's counts: the posterior from the encoders is kept instead."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData

from vivace.cells import question
from vivace.core import Core
from vivace.data import Minified, StoredPosterior, count_matrix, minify
from vivace.errors import DataError, ShapeError, brief
from vivace.questions.latent import encode_with_library
from vivace.types import F32
from vivace.validate import Choice, float_tensor


@question(minified_data_type=Choice(Minified))
def minify_adata(
    self: Core,
    minified_data_type: Minified = "latent_posterior_parameters",
    use_latent_qzm_key: str | None = None,
    use_latent_qzv_key: str | None = None,
) -> None:
    """Drop the counts and keep the posterior from the encoders.

    The model continues with a small copy of its data: the posterior of z in ``obsm``
    ("X_latent_qzm", "X_latent_qzv"), the library in ``obs``. The original AnnData is
    unchanged. All questions that need no counts are answered as before; :meth:`save`
    keeps the copy with the model.

    Parameters
    ----------
    minified_data_type
        "latent_posterior_parameters", or "latent_posterior_parameters_with_counts" to
        keep the counts as well.
    use_latent_qzm_key, use_latent_qzv_key
        Keys of obsm with mean and variance of q(z|x); None computes them.

    Raises
    ------
    DataError
        If obsm has no such key, or the data are minified already.
    """
    if (kind := self.minified_data_type) is not None:
        fix = (
            "to drop their counts too, save the model and load it with its former data as adata="
            if kind.endswith("with_counts")
            else "there is nothing to drop"
        )
        raise DataError(f"The model's data are minified already; {fix}.")
    cells = self._cells(None, None, None)
    adata, source = self._resolve_adata(None), cells.source  # _cells has checked both
    k = self.config.n_latent
    moments = encode_with_library(cells)
    mean, variance = (np.ascontiguousarray(m[:, :k].numpy()) for m in moments)
    if use_latent_qzm_key is not None:
        mean = _stored(adata, "use_latent_qzm_key", use_latent_qzm_key, mean.shape)
    if use_latent_qzv_key is not None:
        variance = _stored(adata, "use_latent_qzv_key", use_latent_qzv_key, variance.shape)
        if not (variance > 0).all():
            raise DataError(
                f"obsm[{brief(use_latent_qzv_key)}] (use_latent_qzv_key) must hold variances above 0."
            )
    latent_library = self.module.library_encoder is not None
    library_moments = [m[:, k:].clone() if latent_library else None for m in moments]
    posterior = StoredPosterior(
        torch.from_numpy(mean), torch.from_numpy(variance), *library_moments
    )
    layer = self.schema.declarations.layer
    with_counts = minified_data_type.endswith("with_counts")
    small = minify(
        adata,
        count_matrix(adata, layer) if with_counts else None,
        layer,
        posterior,
        source.library,
        self._fingerprint(),
        minified_data_type,
    )
    self._attach(small)


def _stored(adata: AnnData, argument: str, key: str, shape: tuple[int, ...]) -> F32:
    """An array of obsm that takes the place of a computed one."""
    if not isinstance(key, str) or key not in adata.obsm:
        raise DataError(f"obsm has no {brief(key)} ({argument}); leave it out to compute it.")
    values = float_tensor(f"obsm[{brief(key)}] ({argument})", adata.obsm[key]).numpy()
    if values.shape != shape:
        raise ShapeError(f"obsm[{brief(key)}] ({argument}) has shape {values.shape}, not {shape}.")
    return values
