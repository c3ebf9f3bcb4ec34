"""Which rows belong to new categories, and where they start."""

from __future__ import annotations

import pytest
import torch

from vivace.nn.category_rows import OneHotRows, TableRows, one_hot_sizes
from vivace.nn.surgery import Surgery

SURGERY = Surgery(n_batches=2, n_categories=(3, 1), n_labels=2)
ROWS = OneHotRows((4, 3, 2))  # two new batches, no new category of the first, one of the second


def test_a_single_category_needs_no_column():
    assert one_hot_sizes([0, 1, 2, 5]) == (0, 0, 2, 5)


def test_new_one_hot_rows_are_found_after_the_known_ones():
    assert ROWS.find_new(14, SURGERY) == [slice(7, 9), slice(13, 14)]  # five inputs come first
    assert OneHotRows(()).find_new(14, SURGERY) == []
    embedded = OneHotRows((0, 3, 2))  # the batch has no columns
    assert embedded.find_new(5, SURGERY) == [slice(4, 5)]


def test_new_one_hot_rows_start_at_the_mean_or_at_zero():
    known = torch.arange(1.0, 21.0).view(10, 2)  # five inputs, two batches, three categories
    grown = ROWS.grow(known, torch.full((14, 2), torch.nan), SURGERY)
    mean = (known[5] + known[6]) / 2
    zero = torch.zeros(2)
    expected = [*known[:7], mean, mean, *known[7:], zero, zero]
    assert torch.equal(grown, torch.stack(expected))


def test_embedded_batches_have_no_rows_in_the_reference_either():
    known = torch.arange(1.0, 5.0)[:, None]  # an input and three categories
    grown = OneHotRows((0, 3, 2)).grow(known, torch.empty(6, 1), SURGERY)
    assert grown[:, 0].tolist() == [1, 2, 3, 4, 0, 0]


def test_a_weight_without_one_hot_rows_is_copied():
    known = torch.arange(6.0).view(3, 2)
    grown = OneHotRows(()).grow(known, torch.empty(3, 2), SURGERY)
    assert torch.equal(grown, known)
    assert grown.data_ptr() != known.data_ptr()


@pytest.mark.parametrize("shape", [(), (3,)], ids=["vector", "matrix"])
@pytest.mark.parametrize("column", ["batch", "label"])
def test_a_table_grows_by_the_mean_or_keeps_initial_rows(column, shape):
    known, initial = torch.rand(2, *shape), torch.rand(4, *shape)
    from_mean, from_initial = TableRows(column), TableRows(column, new_from="initial")
    grown = from_mean.grow(known, initial, SURGERY)
    assert torch.equal(grown[:2], known)
    for row in grown[2:]:
        torch.testing.assert_close(row, known.mean(0))
    kept = from_initial.grow(known, initial, SURGERY)
    assert torch.equal(kept, torch.cat([known, initial[2:]]))
    assert from_mean.find_new(4, SURGERY) == [slice(2, 4)]
    assert from_mean.find_new(2, SURGERY) == []
