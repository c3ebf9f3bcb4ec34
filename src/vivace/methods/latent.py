"""Where cells are in the latent space, and how likely the model finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from vivace import posterior
from vivace.data import Minified, StoredPosterior, count_matrix, minify
from vivace.errors import DataError, OptionError, ShapeError
from vivace.methods.training import Trainable
from vivace.types import F32, F64, Indices
from vivace.validate import column_of, number, numbers, positive, refuse_unknown, whole

_WEIGHTING = {
    "max_cells": 1024,
    "truncation": False,
    "n_mc_samples": 500,
    "n_mc_samples_per_pass": 250,
}


class Embedding(Trainable):
    """A trained model that is asked about z and about likelihoods."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int | None = None,
        return_dist: bool = False,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> F32 | tuple[F32, F32]:
        """Latent representation of cells.

        Parameters
        ----------
        adata
            Cells to encode, aligned by gene name; None for the model's own.
        indices
            Rows, in any order and with repeats, or a boolean mask; None for all.
        give_mean
            The mean of z; False gives one draw.
        mc_samples
            Draws behind the mean of a logistic-normal latent, which has no closed form.
        batch_size
            Cells at a time; None for ``vivace.settings.batch_size``.  It changes memory
            and speed, not what is drawn.
        return_dist
            Give (mean, variance) of q(z|x) instead, before a logistic-normal's softmax.
        seed
            Of the draw; None takes the model's next.
        silent
            False shows a progress bar where the work takes more than two seconds.

        Returns
        -------
        Array, float32, shape (n, k), or a pair of them.
        """
        whole("mc_samples", mc_samples)
        cells = self._cells(adata, indices, batch_size, silent)
        if self.config.latent_distribution == "ln" and give_mean and not return_dist:
            return posterior.latent_mean(cells, mc_samples, self._seeds.take(seed))
        draw = None if give_mean or return_dist else self._seeds.take(seed)
        place, variance = posterior.latent(cells, draw)
        return (place, variance) if return_dist else place

    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> F32:
        """Library size of cells, molecules.

        Where the library is latent, the mean of q(l|x), or one draw with
        ``give_mean=False``; else the observed one.  The other arguments are those of
        :meth:`get_latent_representation`.

        Returns
        -------
        Array, float32, shape (n, 1).
        """
        cells = self._cells(adata, indices, batch_size, silent)
        drawn = not give_mean and self.module.library_encoder is not None
        return posterior.library(cells, give_mean, self._seed(seed, drawn))

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        batch_size: int | None = None,
        *,
        return_mean: bool = True,
        n_samples: int = 1,
        seed: int | None = None,
        silent: bool = False,
    ) -> float | F64:
        """Evidence lower bound, nats; higher is better.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        return_mean
            The mean over cells; False gives one value a cell, shape (n,).
        n_samples
            Draws of z a cell.
        seed
            Of the draws; None takes the model's next.
        """
        whole("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size, silent, counts=True)
        values = posterior.elbo(cells, n_samples, self._seeds.take(seed))
        return _mean(values) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        batch_size: int | None = None,
        *,
        return_mean: bool = True,
        n_samples: int = 1,
        seed: int | None = None,
        silent: bool = False,
    ) -> dict[str, Any]:
        """Reconstruction error, -E[log p(x|z)], nats; lower is better.

        Takes what :meth:`get_elbo` takes.

        Returns
        -------
        Dict with one entry, ``"reconstruction_loss"``: the mean over cells, or
        one value a cell with ``return_mean=False``.
        """
        whole("n_samples", n_samples)
        cells = self._cells(adata, indices, batch_size, silent, counts=True)
        values = posterior.reconstruction(cells, n_samples, self._seeds.take(seed))
        return {"reconstruction_loss": _mean(values) if return_mean else values}

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        n_mc_samples_per_pass: int = 1,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> float | F64:
        """Marginal log-likelihood, log p(x), nats, by importance sampling; higher is better.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        n_mc_samples
            Draws a cell; the estimate rises with their number to the exact value.
        return_mean
            The mean over cells; False gives one value a cell, shape (n,).
        n_mc_samples_per_pass
            As in scvi-tools; draws are made one after the other, so it changes nothing.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        A number, or an array, float64, shape (n,).

        Raises
        ------
        OptionError, ArgumentTypeError
            If a number of draws is not an integer of at least 1.

        Notes
        -----
        Source: Burda et al. 2016, arXiv:1509.00519.
        """
        whole("n_mc_samples", n_mc_samples)
        whole("n_mc_samples_per_pass", n_mc_samples_per_pass)
        cells = self._cells(adata, indices, batch_size, silent, counts=True)
        values = posterior.marginal_ll(cells, n_mc_samples, self._seeds.take(seed))
        return _mean(values) if return_mean else values

    def get_importance_weights(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        zs: NDArray[Any] | torch.Tensor | None = None,
        *,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        batch_size: int | None = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> F64:
        """How well points of the latent space stand for a group of cells.

        A point has a large weight where cells of the group find it more likely than it was
        to be drawn from their q(z|x).

        Parameters
        ----------
        adata, indices, batch_size, silent
            The group, as in :meth:`get_latent_representation`.
        zs
            Points, shape (m, k), before a logistic-normal's softmax; None for one draw of
            each cell.
        max_cells
            Cells that speak for the group, drawn from it.
        truncation
            Cut weights above their mean times the root of m.
        n_mc_samples
            Draws behind the marginal likelihood of each of those cells.
        n_mc_samples_per_pass
            As in scvi-tools; it changes nothing.
        seed
            Of the draws; None takes the model's next.

        Returns
        -------
        Array, float64, shape (m,), that adds up to 1.

        Raises
        ------
        ShapeError
            If ``zs`` is not of shape (m, k).

        Notes
        -----
        Source: Boyeau et al. 2023, doi:10.1073/pnas.2209124120.
        """
        weighting = weighting_of(
            "get_importance_weights",
            {
                "max_cells": max_cells,
                "truncation": truncation,
                "n_mc_samples": n_mc_samples,
                "n_mc_samples_per_pass": n_mc_samples_per_pass,
            },
        )
        cells = self._cells(adata, indices, batch_size, silent, counts=True)
        start = self._seeds.take(seed)
        if zs is None:
            z_mk, _ = posterior.draws(cells, 1, start)
        else:
            z_mk = numbers("zs", zs)
            if z_mk.ndim != 2 or z_mk.shape[1] != self.config.n_latent:
                raise ShapeError(
                    f"zs has shape {tuple(z_mk.shape)}, but points of {self.config.n_latent} latent "
                    f"dimensions have (m, {self.config.n_latent})."
                )
        return posterior.importance_weights(cells, z_mk, seed=start, **weighting)

    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Indices | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
        *,
        silent: bool = False,
    ) -> torch.distributions.MixtureSameFamily:
        """The mixture of q(z|x) over cells: where a group of them lies.

        Parameters
        ----------
        adata, indices, batch_size, silent
            As in :meth:`get_latent_representation`.
        dof
            Degrees of freedom of Student's t, whose tails are heavier; None for normal
            components.

        Returns
        -------
        A torch distribution over points z, shape (k,), before a logistic-normal's softmax.
        """
        _check_dof(dof)
        cells = self._cells(adata, indices, batch_size, silent)
        if len(cells) == 0:
            raise OptionError("indices names no cells; an aggregated posterior needs one.")
        return posterior.aggregated_posterior(cells, dof)

    def differential_abundance(
        self,
        adata: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int | None = None,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
        *,
        indices: Indices | None = None,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        """How typical the place of each cell is of each sample.

        The log density, at the mean of a cell's q(z|x), of the aggregated posterior of
        the cells of each sample.  Differences between columns say in which samples such
        cells are common.  Of all cells (``indices`` None) it is also written to
        ``adata.obsm["da_log_probs"]``.

        Parameters
        ----------
        adata
            Cells, aligned by gene name; None for the model's own.
        sample_key
            Column of obs with the sample of each cell.
        batch_size, indices, silent
            As in :meth:`get_latent_representation`; samples are made of these cells too.
        num_cells_posterior
            Cells of a sample that are used at most, drawn from it.
        dof
            As in :meth:`get_aggregated_posterior`.
        seed
            Of that draw; None takes the model's next.

        Returns
        -------
        Frame, cells x samples, nats.

        Raises
        ------
        MissingColumnError
            If obs has no such column.

        Notes
        -----
        Source: Boyeau et al. 2024 (MrVI), doi:10.1101/2022.10.04.510898.
        """
        _check_dof(dof)
        positive("num_cells_posterior", num_cells_posterior)
        cells = self._cells(adata, indices, batch_size, silent)
        data = self._data_of(adata)
        sample = column_of(data, "sample_key", sample_key).iloc[cells.rows]
        rng = np.random.default_rng(self._seed(seed, drawn=num_cells_posterior is not None))
        mean, variance = posterior.latent(cells, None)
        found = {}
        for name in sample.unique():
            rows = np.flatnonzero(sample == name)
            if num_cells_posterior is not None and len(rows) > num_cells_posterior:
                rows = np.sort(rng.choice(rows, num_cells_posterior, replace=False))
            mixture = posterior.mixture_of(mean[rows], variance[rows], dof)
            found[str(name)] = posterior.log_density(mixture, torch.from_numpy(mean))
        frame = pd.DataFrame(found, index=data.obs_names[cells.rows])
        if indices is None:
            data.obsm["da_log_probs"] = frame
        return frame

    def minify_adata(
        self,
        minified_data_type: Minified = "latent_posterior_parameters",
        use_latent_qzm_key: str | None = None,
        use_latent_qzv_key: str | None = None,
    ) -> None:
        """Drop the counts, and keep what the encoders say about them.

        The model goes on with a small copy of its data: the posterior of z in ``obsm``
        ("X_latent_qzm", "X_latent_qzv"), the library in ``obs``; the AnnData that it was
        made of stays as it is.  All questions that need no counts are answered as before;
        :meth:`save` keeps the copy with the model.

        Parameters
        ----------
        minified_data_type
            "latent_posterior_parameters", or "latent_posterior_parameters_with_counts" to
            keep the counts beside them.
        use_latent_qzm_key, use_latent_qzv_key
            Keys of obsm with mean and variance of q(z|x); None computes them.

        Raises
        ------
        DataError
            If obsm has no such key, or the data are minified already.
        """
        if minified_data_type not in get_args(Minified):
            listed = " and ".join(map(repr, get_args(Minified)))
            raise OptionError(f"minified_data_type takes {listed}, not {minified_data_type!r}.")
        if self.minified_data_type is not None:
            raise DataError("The model's data are minified already; there is nothing to drop.")
        cells = self._cells(None, None, None)
        adata, source = self._own_adata(), self._own_source()
        k = self.config.n_latent
        both = posterior.moments(cells)
        mean, variance = (np.ascontiguousarray(m[:, :k].numpy()) for m in both)
        if use_latent_qzm_key is not None:
            mean = _stored(adata, "use_latent_qzm_key", use_latent_qzm_key, mean.shape)
        if use_latent_qzv_key is not None:
            variance = _stored(adata, "use_latent_qzv_key", use_latent_qzv_key, variance.shape)
            if not (variance > 0).all():
                raise DataError(
                    f"obsm[{use_latent_qzv_key!r}] (use_latent_qzv_key) must hold variances above 0."
                )
        latent = self.module.library_encoder is not None
        of_library = [m[:, k:].clone() if latent else None for m in both]
        kept = StoredPosterior(torch.from_numpy(mean), torch.from_numpy(variance), *of_library)
        layer = self.schema.declarations.layer
        small = minify(
            adata,
            count_matrix(adata, layer),
            layer,
            kept,
            source.library,
            self._fingerprint(),
            minified_data_type,
        )
        self._attach(small)


def weighting_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of importance weights that ``method`` was given, and the others' defaults."""
    refuse_unknown(method, {k: v for k, v in given.items() if k not in _WEIGHTING}, _WEIGHTING)
    weighting = _WEIGHTING | dict(given)
    for name in ("max_cells", "n_mc_samples", "n_mc_samples_per_pass"):
        whole(name, weighting[name])
    if not isinstance(weighting["truncation"], bool | np.bool_):
        raise OptionError(f"truncation must be True or False, not {weighting['truncation']!r}.")
    del weighting["n_mc_samples_per_pass"]  # memory does not depend on the draws
    return weighting


def _check_dof(dof: float | None) -> None:
    number("dof", dof)
    if dof is not None and not 0 < dof < np.inf:
        raise OptionError(
            f"dof must be above 0 and finite, not {dof}; None is for normal components."
        )


def _mean(values: F64) -> float:
    if len(values) == 0:
        raise OptionError("There are no cells to average over; indices must name at least one.")
    return float(values.mean())


def _stored(adata: AnnData, argument: str, key: str, shape: tuple[int, ...]) -> F32:
    if not isinstance(key, str) or key not in adata.obsm:
        raise DataError(f"obsm has no {key!r} ({argument}); leave it out to have it computed.")
    found = numbers(f"obsm[{key!r}] ({argument})", adata.obsm[key]).numpy()
    if found.shape != shape:
        raise ShapeError(f"obsm[{key!r}] ({argument}) has shape {found.shape}, not {shape}.")
    return found
