from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivace.data import minibatches, split_rows
from vivace.errors import OptionError


@given(n=st.integers(0, 200), batch_size=st.integers(1, 70), shuffled=st.booleans())
def test_every_row_comes_once_and_no_batch_is_a_single_cell(n, batch_size, shuffled):
    rows = np.arange(n) * 3
    parts = list(minibatches(rows, batch_size, np.random.default_rng(0) if shuffled else None))
    seen = np.concatenate([*parts, np.zeros(0, np.int64)])
    assert sorted(seen.tolist()) == rows.tolist()
    assert all(len(part) <= batch_size + 1 for part in parts)
    if n > 1 and batch_size > 1:
        assert min(map(len, parts)) > 1


def test_without_a_generator_rows_keep_their_order():
    parts = [part.tolist() for part in minibatches(np.array([5, 3, 9, 1, 7, 0]), 4)]
    assert parts == [[5, 3, 9, 1], [7, 0]]


def test_a_tail_of_one_joins_the_batch_before():
    assert [len(part) for part in minibatches(np.arange(257), 128)] == [128, 129]
    assert [len(part) for part in minibatches(np.arange(1), 128)] == [1]


def test_the_order_follows_from_the_generator_alone():
    def order(seed):
        return np.concatenate(list(minibatches(np.arange(50), 7, np.random.default_rng(seed))))

    state = np.random.get_state()[1].tolist()  # noqa: NPY002  # the global one must not move
    assert order(3).tolist() == order(3).tolist()
    assert order(3).tolist() != order(4).tolist()
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_one_generator_gives_each_epoch_another_order():
    generator = np.random.default_rng(0)
    first, second = (np.concatenate(list(minibatches(np.arange(50), 7, generator))) for _ in "12")
    assert first.tolist() != second.tolist()


@given(n=st.integers(1, 300), train_size=st.floats(1e-13, 1.0))
def test_a_split_uses_every_cell_once_and_always_trains(n, train_size):
    train, validation = split_rows(n, train_size, None, np.random.default_rng(0))
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(n))
    assert len(train) >= 1
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


@pytest.mark.parametrize(
    ("n", "train_size", "validation_size", "n_train", "n_validation"),
    [
        (10, 0.9, None, 9, 1),
        (100, 0.55, None, 55, 45),  # 100 * 0.55 is 55.00000000000001
        (7, 0.5, None, math.ceil(3.5), 3),
        (7, 0.5, 0.3, 4, 2),
        (7, 1.0, None, 7, 0),
        (100, 0.6, 0.0, 60, 0),
        (100, 0.7, 0.3, 70, 30),
        (1, 0.5, None, 1, 0),
    ],
)
def test_training_cells_are_rounded_up_and_validation_cells_down(
    n, train_size, validation_size, n_train, n_validation
):
    train, validation = split_rows(n, train_size, validation_size, np.random.default_rng(0))
    assert (len(train), len(validation)) == (n_train, n_validation)
    assert not set(train.tolist()) & set(validation.tolist())


def test_the_split_follows_from_the_generator():
    first, again, other = (
        split_rows(60, 0.8, None, np.random.default_rng(seed))[0].tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("train_size", "validation_size", "parts"),
    [
        (0.0, None, ("train_size", "above 0")),
        (1.1, None, ("train_size", "1.1")),
        (float("nan"), None, ("train_size", "nan")),
        (0.5, 1.0, ("validation_size", "below 1")),
        (0.5, -0.1, ("validation_size", "-0.1")),
        (0.9, 0.2, ("train_size (0.9)", "validation_size (0.2)", "lower one")),
    ],
)
def test_shares_out_of_range_are_refused(refused, train_size, validation_size, parts):
    with refused(OptionError, *parts):
        split_rows(10, train_size, validation_size, np.random.default_rng(0))
