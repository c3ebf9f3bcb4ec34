"""Sparse counts made by hand: operations look at their numbers before a kernel follows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vivace.errors import ShapeError
from vivace.ops import CountHeads, SparseCounts, count_nll, sparse_linear

GOOD = SparseCounts(
    torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1], dtype=torch.int32), torch.ones(3), 3
)
WRONG = {
    "a gene too large": {"genes": torch.tensor([2, 0, 3], dtype=torch.int32)},
    "a gene below zero": {"genes": torch.tensor([2, -1, 1], dtype=torch.int32)},
    "a pointer too large": {"indptr": torch.tensor([0, 1, 4])},
    "a pointer that falls": {"indptr": torch.tensor([0, 2, 1])},
    "a pointer below zero": {"indptr": torch.tensor([-1, 1, 3])},
    "no pointer": {"indptr": torch.tensor([], dtype=torch.int64)},
    "fewer genes than values": {"genes": torch.tensor([2, 0], dtype=torch.int32)},
}
HEADS = CountHeads(torch.zeros(4, 3), torch.zeros(3), torch.zeros(3))


def multiply(counts, backend):
    return sparse_linear(counts, torch.ones(3, 2), backend=backend)


def loss(counts, backend):
    return count_nll(
        counts, torch.zeros(2, 4), HEADS, torch.zeros(2), likelihood="nb", backend=backend
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("operation", [multiply, loss])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_numbers_out_of_range_are_refused(operation, wrong, backend):
    assert operation(GOOD, backend).isfinite().all()
    with pytest.raises(ShapeError):
        operation(replace(GOOD, **wrong), backend)


def test_what_is_known_to_be_in_range_is_not_looked_at_again():
    dense = SparseCounts.from_dense(torch.eye(3))
    assert dense.checked
    assert dense.to(torch.device("cpu")).checked
    assert not GOOD.checked
    replace(GOOD, genes=GOOD.genes + 9, checked=True).check()  # believed
