"""Where is each cell in the latent space?"""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from vivace.cells import Cells, child_generators, question, sample_latent, standard_noise
from vivace.core import Core
from vivace.seeds import numpy_generator
from vivace.types import F32, Indices
from vivace.validate import COUNT


@question(mc_samples=COUNT)
def get_latent_representation(
    self: Core,
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
        Row numbers, in any order and with repeats, or a mask with one boolean per cell; None for
        all. A mask that is a Series indexed by the names of the cells may have any order.
    give_mean
        The mean of z; False gives one random sample.
    mc_samples
        Samples for the mean of a logistic-normal latent space, which has no closed form.
    batch_size
        Cells per minibatch; None for ``vivace.settings.batch_size``. It affects memory and
        speed, not the result.
    return_dist
        Return mean and variance of q(z|x) instead, before a logistic-normal's softmax.
    seed
        Random seed; None uses the model's next seed.
    silent
        False shows a progress bar once the work takes more than two seconds.

    Returns
    -------
    Array, float32, shape (n, k), or a pair of them.
    """
    cells = self._cells(adata, indices, batch_size, silent)
    if self.config.latent_distribution == "ln" and give_mean and not return_dist:
        return simplex_mean(cells, mc_samples, self._seeds.take(seed))
    random = not (give_mean or return_dist)
    sample_seed = self._seed(seed, random)
    point_nk, variance_nk = encode(cells, sample_seed if random else None)
    return (point_nk, variance_nk) if return_dist else point_nk


@question()
def get_latent_library_size(
    self: Core,
    adata: AnnData | None = None,
    indices: Indices | None = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
    silent: bool = False,
) -> F32:
    """Library size of each cell, in molecules.

    Where the library is latent, the mean of q(l|x), or one random sample with
    ``give_mean=False``; otherwise the observed one. The other arguments are those of
    :meth:`get_latent_representation`.

    Returns
    -------
    Array, float32, shape (n, 1).
    """
    cells = self._cells(adata, indices, batch_size, silent)
    random = not give_mean and self.module.library_encoder is not None
    generator = numpy_generator(self._seed(seed, random))
    library_n1 = np.empty((len(cells), 1), np.float32)
    for part, batch, inference in cells.encoded("Encoding"):
        if inference.library is None:
            size_n = batch.library
        elif give_mean:  # of a log-normal distribution
            size_n = (inference.library.mean + 0.5 * inference.library.variance)[:, 0].exp()
        else:
            log_library_n = sample_latent(cells.network, inference, generator)[1]
            assert log_library_n is not None
            size_n = log_library_n.exp()
        library_n1[part, 0] = size_n.cpu().numpy()
    return library_n1


def encode(cells: Cells, seed: int | None = None) -> tuple[F32, F32]:
    """Mean and variance of q(z|x), shape (n, k) each, before a logistic-normal's softmax.

    With a ``seed`` the first is a random sample of z instead of the mean, on the simplex where
    the latent space is logistic-normal.
    """
    network = cells.network
    generator = None if seed is None else numpy_generator(seed)
    point_nk = np.empty((len(cells), network.config.n_latent), np.float32)
    variance_nk = np.empty_like(point_nk)
    for part, _, inference in cells.encoded("Encoding"):
        point = inference.z.mean
        if generator is not None:
            point = sample_latent(network, inference, generator)[0]
        point_nk[part] = point.cpu().numpy()
        variance_nk[part] = inference.z.variance.cpu().numpy()
    return point_nk, variance_nk


def simplex_mean(cells: Cells, mc_samples: int, seed: int) -> F32:
    """Mean of a logistic-normal z over random samples, on the simplex, shape (n, k)."""
    network = cells.network
    generator = numpy_generator(seed)
    mean_nk = np.empty((len(cells), network.config.n_latent), np.float32)
    for part, _, inference in cells.encoded("Encoding"):
        z = inference.z
        for i in range(len(z.mean)):  # cell by cell, in the order of the random stream
            noise = generator.standard_normal((mc_samples, mean_nk.shape[1]), dtype=np.float32)
            z_sk = z.mean[i] + z.variance[i].sqrt() * torch.from_numpy(noise).to(z.mean.device)
            mean_nk[part.start + i] = network.place(z_sk).mean(0).cpu().numpy()
    return mean_nk


def sample_cells(cells: Cells, n_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random samples of all cells: z before a softmax, and log libraries.

    Shapes (samples * n, k) and (samples * n,), on the CPU, one sample of all cells after another.
    """
    network, k = cells.network, cells.network.config.n_latent
    generators = child_generators(seed, n_samples)
    z_snk = torch.empty(n_samples, len(cells), k, dtype=torch.float32)
    log_library_sn = torch.empty(n_samples, len(cells), dtype=torch.float32)
    for part, batch, inference in cells.encoded("Encoding"):
        log_library_n = network.log_library(batch, inference)
        for i, generator in enumerate(generators):
            noise = standard_noise(inference, generator)
            z_snk[i, part] = inference.z.at(noise[:, :k]).cpu()
            if inference.library is not None:
                log_library_n = inference.library.at(noise[:, k:])[:, 0]
            log_library_sn[i, part] = log_library_n.cpu()
    return z_snk.view(-1, k), log_library_sn.view(-1)


def encode_with_library(cells: Cells) -> tuple[Tensor, Tensor]:
    """Mean and variance of z before a softmax and, in the last column, of the log library.

    Shape (n, k + 1) each, on the CPU; an observed library has variance 0.
    """
    network, k = cells.network, cells.network.config.n_latent
    mean, variance = torch.zeros(2, len(cells), k + 1, dtype=torch.float32)
    for part, batch, inference in cells.encoded("Encoding"):
        mean[part, :k], variance[part, :k] = inference.z.mean.cpu(), inference.z.variance.cpu()
        mean[part, k] = network.log_library(batch, inference).cpu()
        if inference.library is not None:
            variance[part, k] = inference.library.variance[:, 0].cpu()
    return mean, variance
