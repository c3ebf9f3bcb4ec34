import pytest
import torch
from budget import ULP, Budget

EXACT = torch.tensor([8.0, -1.0, 0.5], dtype=torch.float64)


def errors(ulps):
    """The exact array in float32, its second entry off by so many ulps of the largest."""
    array = EXACT.float()
    array[1] += 8 * ulps * ULP
    return array


@pytest.mark.parametrize(
    ("kernel", "single", "kept"),
    [(0, 0, True), (2, 0, True), (3, 0, False), (20, 10, True), (21, 10, False)],
)
def test_twice_the_reference_or_two_ulps(kernel, single, kept):
    budget = Budget()
    budget.add("value", errors(kernel), errors(single), EXACT)
    assert (budget.broken() == []) == kept


def test_root_mean_square_counts_too():
    budget = Budget()
    exact = torch.ones(1000, dtype=torch.float64)
    single, kernel = exact.float(), exact.float()
    single[0] += 100 * ULP
    kernel += 90 * ULP
    budget.add("value", kernel, single, exact)
    assert [line.split(":")[1].split()[0] for line in budget.broken()] == ["rms"]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_kernel_must_be_finite(wrong):
    with pytest.raises(AssertionError, match="not finite"):
        Budget().add("value", torch.full((3,), wrong), EXACT.float(), EXACT)


def test_zero_must_be_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="exactly zero"):
        Budget().add("value", torch.full((3,), 1e-30), zero.float(), zero)


def test_an_empty_budget_is_no_pass():
    with pytest.raises(AssertionError, match="nothing"):
        Budget().check()
