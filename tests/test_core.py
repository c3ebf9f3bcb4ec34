"""What all models share: new data, splits, device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivace import SCVI
from vivace.errors import ArgumentTypeError, OptionError


def test_new_data_with_shuffled_and_further_genes(trained, saved, tiny):
    new = tiny(40, 30, seed=7)
    wide = tiny(40, 50, seed=7)
    x = np.zeros((40, 50), np.float32)
    x[:, :30] = new.X.toarray()
    x[:, 30:] = 5  # genes that the model does not know
    wide.X = x
    wide.obs = new.obs
    wide = wide[:, np.random.default_rng(0).permutation(50)].copy()
    answerer = SCVI.load(saved)
    assert answerer.adata is None
    for model in (trained, answerer):
        np.testing.assert_array_equal(
            model.get_latent_representation(wide), trained.get_latent_representation(new)
        )
        assert model.get_elbo(wide, seed=2) == trained.get_elbo(new, seed=2)


def test_new_data_need_not_be_set_up_and_stay_as_they_are(trained, tiny):
    new = tiny(40, 30, seed=7)
    trained.get_latent_representation(new)
    assert not new.uns
    assert list(new.obs) == list(tiny().obs)


def test_the_models_own_data_passed_explicitly(trained):
    np.testing.assert_array_equal(
        trained.get_latent_representation(trained.adata), trained.get_latent_representation()
    )


def test_a_model_moves_to_a_device(ready):
    model = ready()
    assert model.device == torch.device("cpu")
    model.to_device("meta")
    assert model.device == torch.device("meta")


@pytest.mark.parametrize(
    ("device", "error", "said"),
    [
        ("zzz", OptionError, "'zzz'"),
        (77, OptionError, "77"),
        ("cuda:77", OptionError, "'cuda:77'"),
        ([1], ArgumentTypeError, "[1]"),
        (None, ArgumentTypeError, "None"),
        (True, ArgumentTypeError, "True"),
    ],
)
def test_a_device_that_is_not_there(ready, refused, device, error, said):
    model = ready()
    with refused(error, "device", said, "use for example 'cpu'"):
        model.to_device(device)
    assert model.device == torch.device("cpu")


def test_splits_are_sorted_and_apart(trained):
    assert (np.diff(trained.train_indices) > 0).all()
    assert len(trained.train_indices) == 54
    everything = [*trained.train_indices, *trained.validation_indices, *trained.test_indices]
    assert sorted(everything) == list(range(60))
