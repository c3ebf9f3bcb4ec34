"""Random numbers: repeatable, independent of the batch size, without global state."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import vivace
from model_answers import assert_same_bits, get_answers
from vivace import SCVI
from vivace.errors import ArgumentTypeError, OptionError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums in another order


@pytest.mark.parametrize("batch_size", [1, 7, 59, 1000])
def test_samples_do_not_depend_on_the_minibatch_size(trained, batch_size):
    for size in (batch_size, np.int64(batch_size)):
        np.testing.assert_allclose(
            trained.get_latent_representation(give_mean=False, seed=3, batch_size=size),
            trained.get_latent_representation(give_mean=False, seed=3),
            **CLOSE,
        )
    options = {"return_mean": False, "n_samples": 2, "seed": 3}
    np.testing.assert_allclose(
        trained.get_elbo(batch_size=batch_size, **options), trained.get_elbo(**options), rtol=1e-5
    )


def test_an_integer_seed_repeats_and_another_differs(trained):
    first, again, other = (
        trained.get_latent_representation(give_mean=False, seed=s) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any(axis=1).all()
    elbos = [trained.get_elbo(seed=s) for s in (3, 3, 4)]
    assert elbos[0] == elbos[1] != elbos[2]


def test_without_a_seed_each_call_goes_on_in_the_models_stream(saved, tiny):
    models = [SCVI.load(saved, tiny()) for _ in "ab"]
    first, second = ([model.get_elbo() for _ in range(3)] for model in models)
    assert first == second
    assert len(set(first)) == 3


def test_a_given_seed_leaves_the_stream_where_it_is(saved, tiny):
    plain, seeded = (SCVI.load(saved, tiny()) for _ in "ab")
    seeded.get_elbo(seed=5)
    assert plain.get_elbo() == seeded.get_elbo()


def test_a_refused_call_leaves_the_stream_where_it_is(ready, refused):
    plain, troubled = ready(), ready()
    with refused(OptionError, "max_epochs"):
        troubled.train(0)
    for model in (plain, troubled):
        model.train(1, progress=False)
    assert_same_bits(get_answers(plain), get_answers(troubled))


def test_the_same_script_gives_the_same_bits(ready):
    first, second = ready(), ready()
    for model in (first, second):
        model.train(2, batch_size=20, progress=False)
    assert_same_bits(get_answers(first), get_answers(second))
    pd.testing.assert_frame_equal(
        first.history.drop(columns=["seconds", "compile_seconds"]),
        second.history.drop(columns=["seconds", "compile_seconds"]),
        check_exact=True,
    )


def test_another_package_seed_starts_another_model(ready):
    first = ready()
    vivace.settings.seed = 1
    weights = [model.module.encoder.latent.weight for model in (first, ready())]
    assert not torch.equal(*weights)


def test_another_training_seed_gives_another_split_and_model(ready):
    first, second = ready(), ready()
    first.train(1, seed=1, progress=False)
    second.train(1, seed=2, progress=False)
    assert first.train_indices.tolist() != second.train_indices.tolist()
    assert not np.allclose(first.get_latent_representation(), second.get_latent_representation())


def test_global_random_states_are_neither_read_nor_moved(ready):
    def answers(seed):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        model = ready()
        model.train(1, progress=False)
        numbers = get_answers(model)
        assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[1])
        return numbers

    assert_same_bits(answers(0), answers(1))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1"])
def test_invalid_seeds_are_refused(trained, refused, seed):
    error = OptionError if type(seed) is int else ArgumentTypeError
    for call in (trained.train, trained.get_elbo, trained.get_reconstruction_error):
        with refused(error, "seed", str(seed)):
            call(seed=seed)
    for give_mean in (False, True):
        with refused(error, "seed", str(seed)):
            trained.get_latent_representation(give_mean=give_mean, seed=seed)


def test_whole_floats_are_seeds_and_sizes(ready):
    vivace.settings.seed = 1
    weights = [ready().module.encoder.latent.weight]
    vivace.settings.seed = 1.0
    weights.append(ready().module.encoder.latent.weight)
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    model = ready()
    model.train(1, seed=0.0, progress=False)
    other = ready()
    other.train(1, seed=0, progress=False)
    vivace.settings.batch_size = 7
    latent = model.get_latent_representation(give_mean=False, seed=np.float64(3))
    vivace.settings.batch_size = 7.0
    np.testing.assert_array_equal(other.get_latent_representation(give_mean=False, seed=3), latent)
    vivace.settings.num_threads = 1.0
    assert vivace.settings.num_threads == 1
    vivace.settings.num_threads = None


def test_an_invalid_package_seed_is_refused(ready, refused):
    vivace.settings.seed = -1
    with refused(OptionError, "settings.seed must lie between 0 and", "-1"):
        ready()
    vivace.settings.seed = None
    with refused(ArgumentTypeError, "settings.seed must be an integer, not None."):
        ready()


def test_more_threads_than_a_system_can_start_are_refused(refused):
    with refused(OptionError, "settings.num_threads must be at most", "not 100000"):
        vivace.settings.num_threads = 100_000
    assert vivace.settings.fixed_threads is None
