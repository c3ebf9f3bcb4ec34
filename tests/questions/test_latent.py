"""The latent representation: shapes, rows, distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vivace import SCVI
from vivace.errors import ArgumentTypeError, OptionError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums in another order


INDICES = {
    "mask": (np.arange(60) % 7 == 0, list(range(0, 60, 7))),
    "mask as a list": ([True] + [False] * 58 + [True], [0, 59]),
    "mask as a column": (pd.Series(np.arange(60) > 56), [57, 58, 59]),
    "unsorted": ([50, 3, 17], [50, 3, 17]),
    "repeated": (np.array([4, 4, 2, 4]), [4, 4, 2, 4]),
    "negative": ([-1, 0, -60], [59, 0, 0]),
    "small integers": (np.array([7, 5], np.uint8), [7, 5]),
    "range": (range(10, 13), [10, 11, 12]),
    "none": ([], []),
}


def test_latent_has_one_row_a_cell_and_is_the_mean(trained):
    latent = trained.get_latent_representation()
    mean, variance = trained.get_latent_representation(return_dist=True)
    assert latent.shape == variance.shape == (60, 3)
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()
    assert (variance > 0).all()
    np.testing.assert_array_equal(latent, mean)


def test_the_distribution_is_not_sampled(saved, tiny):
    plain, model = (SCVI.load(saved, tiny()) for _ in "ab")
    mean, _ = model.get_latent_representation(give_mean=False, return_dist=True)
    np.testing.assert_array_equal(mean, plain.get_latent_representation())
    assert model.get_elbo() == plain.get_elbo()  # no seed was taken


def test_latent_tells_cells_apart(trained):
    assert len(np.unique(trained.get_latent_representation(), axis=0)) == 60


@pytest.mark.parametrize(("indices", "rows"), INDICES.values(), ids=INDICES.keys())
def test_indices_pick_rows_of_the_latent_in_their_order(trained, indices, rows):
    everything = trained.get_latent_representation()
    picked = trained.get_latent_representation(indices=indices)
    assert picked.shape == (len(rows), 3)
    np.testing.assert_allclose(picked, everything[np.array(rows, int)], **CLOSE)


@pytest.mark.parametrize(
    ("indices", "error", "parts"),
    [
        ([60], OptionError, ("60", "60 cells")),
        ([0, -61], OptionError, ("-61", "60 cells")),
        ([True, False], OptionError, ("mask of 2", "60 cells", "one value per cell")),
        ([0.5], ArgumentTypeError, ("integers or a mask", "0.5")),
        (["cell3"], ArgumentTypeError, ("integers or a mask",)),
        ([[1, 2]], ArgumentTypeError, ("one-dimensional", "(1, 2)")),
        ([[1], [2, 3]], ArgumentTypeError, ("one-dimensional",)),
        (3, ArgumentTypeError, ("one-dimensional",)),
        (slice(3), ArgumentTypeError, ("one-dimensional",)),
    ],
)
def test_indices_that_name_no_cells_are_refused(trained, refused, indices, error, parts):
    with refused(error, "indices", *parts):
        trained.get_latent_representation(indices=indices)


def test_a_sample_has_the_moments_of_its_distribution(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    samples = [trained.get_latent_representation(give_mean=False, seed=s) for s in range(20)]
    standard = (np.stack(samples) - mean) / np.sqrt(variance)
    n = standard.size  # bounds are four standard errors
    assert abs(standard.mean()) < 4 / np.sqrt(n)
    assert abs(standard.var() - 1) < 4 * np.sqrt(2 / n)
