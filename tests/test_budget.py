import pytest
import torch

from budget import ULP, Budget

EXACT = torch.tensor([8.0, -1.0, 0.5], dtype=torch.float64)


def errors(ulps):
    """The exact array in float32, with its second entry off by so many ulps of the largest."""
    array = EXACT.float()
    array[1] += 8 * ulps * ULP
    return array


@pytest.mark.parametrize(
    ("kernel", "single", "kept"),
    [(0, 0, True), (6, 0, True), (7, 0, False), (20, 10, True), (21, 10, False)],
)
def test_twice_the_reference_or_six_ulps(kernel, single, kept):
    budget = Budget()
    for _ in range(3):
        budget.add("value", errors(kernel), errors(single), EXACT)
    for _ in range(100):  # keeps the root mean square below its floor
        budget.add("value", EXACT.float(), EXACT.float(), EXACT)
    assert (budget.broken() == []) == kept


@pytest.mark.parametrize(("kernel", "kept"), [(1, True), (2, False), (5, False)])
def test_root_mean_square_counts_too(kernel, kept):
    budget = Budget()
    exact = torch.ones(1000, dtype=torch.float64)
    single = exact.float()
    single[0] += 5 * ULP
    budget.add("value", (exact + kernel * ULP).float(), single, exact)
    measures = [line.split(":")[1].split()[0] for line in budget.broken()]
    assert measures == ([] if kept else ["rms"])


def test_every_array_is_named():
    budget = Budget()
    budget.add("one", errors(9), errors(0), EXACT)
    budget.add("two", errors(0), errors(0), EXACT)
    budget.add("three", errors(9), errors(0), EXACT)
    with pytest.raises(AssertionError, match=r"one: max.*three: max"):
        budget.check()


def test_a_number_that_cancels_is_measured_by_the_others():
    budget = Budget()
    for exact in ([1.0], [1.0], [1e-9]):
        exact = torch.tensor(exact, dtype=torch.float64)
        budget.add("value", (exact + ULP / 2).float(), exact.float(), exact)
    budget.check()


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


def test_the_typical_problem_is_not_the_largest():
    budget = Budget()
    for size in (1, 1, 1, 1000):
        budget.add("value", errors(size), errors(1), EXACT)
    budget.check_typical()
    with pytest.raises(AssertionError, match="value: max"):
        budget.check()


def test_the_typical_problem_keeps_the_budget():
    budget = Budget()
    for _ in range(3):
        budget.add("value", errors(9), errors(3), EXACT)
    with pytest.raises(AssertionError, match=r"value: 5\.20 ulp, allowed 3\.46"):
        budget.check_typical()
    with pytest.raises(AssertionError, match="nothing"):
        Budget().check_typical()
