"""Where is each cell in the latent space?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vivace.cells import Cells, draw, generators_of, noise_of
from vivace.ops.runtime.threads import question
from vivace.seeds import numpy_generator
from vivace.types import F32


@question
def latent(cells: Cells, seed: int | None) -> tuple[F32, F32]:
    """Mean and variance of q(z|x), shape (n, k) each, before a logistic-normal's softmax.

    With a ``seed`` the first is one draw of z instead of the mean, on the
    simplex where the latent is logistic-normal.
    """
    network = cells.network
    generator = None if seed is None else numpy_generator(seed)
    place = np.empty((len(cells), network.config.n_latent), np.float32)
    variance = np.empty_like(place)
    for part, _, inference in cells.encoded("Encoding"):
        point = inference.z.mean if generator is None else draw(network, inference, generator)[0]
        place[part] = point.cpu().numpy()
        variance[part] = inference.z.variance.cpu().numpy()
    return place, variance


@question
def latent_mean(cells: Cells, mc_samples: int, seed: int) -> F32:
    """Mean of a logistic-normal z over ``mc_samples`` draws, on the simplex, shape (n, k)."""
    network = cells.network
    generator = numpy_generator(seed)
    mean = np.empty((len(cells), network.config.n_latent), np.float32)
    for part, _, inference in cells.encoded("Encoding"):
        z = inference.z
        for i in range(len(z.mean)):  # cell by cell, as the stream is consumed
            noise = generator.standard_normal((mc_samples, mean.shape[1]), dtype=np.float32)
            draws = z.mean[i] + z.variance[i].sqrt() * torch.from_numpy(noise).to(z.mean.device)
            mean[part.start + i] = network.place(draws).mean(0).cpu().numpy()
    return mean


@question
def draws(cells: Cells, n_draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws of all cells: z before a softmax, (draws * n, k), and log libraries, (draws * n,).

    Both on the CPU, draw after draw.
    """
    network, k = cells.network, cells.network.config.n_latent
    generators = generators_of(seed, n_draws)
    z = torch.empty(n_draws, len(cells), k)
    log_library = torch.empty(n_draws, len(cells))
    for part, batch, inference in cells.encoded("Encoding"):
        own_library = network.log_library(batch, inference)
        for i, generator in enumerate(generators):
            noise = noise_of(inference, generator)
            z[i, part] = inference.z.at(noise[:, :k]).cpu()
            size = own_library
            if inference.library is not None:
                size = inference.library.at(noise[:, k:])[:, 0]
            log_library[i, part] = size.cpu()
    return z.view(-1, k), log_library.view(-1)


@question
def moments(cells: Cells) -> tuple[Tensor, Tensor]:
    """Mean and variance of z before a softmax, and in the last column of the log library.

    Shape (n, k + 1) each, on the CPU; an observed library has variance 0.
    """
    network, k = cells.network, cells.network.config.n_latent
    mean, variance = torch.zeros(2, len(cells), k + 1)
    for part, batch, inference in cells.encoded("Encoding"):
        mean[part, :k], variance[part, :k] = inference.z.mean.cpu(), inference.z.variance.cpu()
        mean[part, k] = network.log_library(batch, inference).cpu()
        if inference.library is not None:
            variance[part, k] = inference.library.variance[:, 0].cpu()
    return mean, variance


@question
def library(cells: Cells, give_mean: bool, seed: int) -> F32:
    """Library of each cell, molecules, shape (n, 1).

    Where it is latent, the mean of the log-normal q(l|x), or a draw; else the observed one.
    """
    generator = numpy_generator(seed)
    found = np.empty((len(cells), 1), np.float32)
    for part, batch, inference in cells.encoded("Encoding"):
        if inference.library is None:
            size = batch.library
        elif give_mean:
            size = (inference.library.mean + 0.5 * inference.library.variance)[:, 0].exp()
        else:
            drawn = draw(cells.network, inference, generator)[1]
            assert drawn is not None
            size = drawn.exp()
        found[part, 0] = size.cpu().numpy()
    return found
