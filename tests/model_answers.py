"""Answers of a model, to be compared bit by bit."""

from __future__ import annotations

import numpy as np

from vivace import SCVI


def get_answers(model: SCVI) -> dict[str, np.ndarray]:
    """What a model answers about its own cells."""
    mean, variance = model.get_latent_representation(return_dist=True)
    return {
        "mean": mean,
        "variance": variance,
        "sample": model.get_latent_representation(give_mean=False, seed=3),
        "elbo": model.get_elbo(return_mean=False, seed=3),
    }


def assert_same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
