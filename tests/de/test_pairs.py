"""Pairs of samples, their intervals and user-defined effects, compared with NumPy."""

from __future__ import annotations

from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
from comparison_cases import GivenSamples, log2_in_float64, options
from scipy import stats

from vivace.data.schema import Codes
from vivace.de.pairs import (
    Sides,
    choose_pairs,
    find_intervals,
    shortest_interval,
    summarise_user_effects,
)
from vivace.errors import ArgumentTypeError


@pytest.fixture
def x():
    return np.random.default_rng(0).gamma(1.0, 1e-3, (20, 90)).astype(np.float32)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(0, 90, (2, 201))) for _ in range(3)]


# ---- intervals and users' functions -------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_intervals_are_of_the_pairs(x, pairs, blocks):
    levels = (0.5, 0.95)
    result = find_intervals(GivenSamples(x, blocks), 1e-5, pairs, levels)
    for (first, second), each in zip(pairs, result, strict=True):
        effect = log2_in_float64(x)[:, first] - log2_in_float64(x)[:, second]
        assert list(each) == list(levels)
        for level, (low, high) in each.items():
            inside = (effect >= low[:, None] - 2e-5) & (effect <= high[:, None] + 2e-5)
            assert (inside.mean(1) >= level).all()
            wanted = [brute_force(np.sort(e), level) for e in effect]
            np.testing.assert_allclose(high - low, wanted, atol=4e-5)


def test_a_function_that_is_the_default_gives_the_default(x, pairs):
    def log_fold(one, other, pseudocounts):
        return np.log2(one + pseudocounts) - np.log2(other + pseudocounts)

    def region(effects):
        return effects >= 0.25, effects < -0.25

    for functions in ({"change_fn": log_fold}, {"m1_domain_fn": region}):
        chosen = options(**functions, cred_interval_lvls=(0.9,))
        result, deltas = summarise_user_effects(GivenSamples(x), 1e-5, pairs, chosen, 0)
        assert deltas == [0.25 if "change_fn" in functions else None] * 3
        shortest = find_intervals(GivenSamples(x), 1e-5, pairs, (0.9,))
        for each, (first, second), ends in zip(result, pairs, shortest, strict=True):
            effect = log2_in_float64(x)[:, first] - log2_in_float64(x)[:, second]
            np.testing.assert_allclose(each.plus, (effect >= 0.25).mean(1), atol=1.5 / 201)
            np.testing.assert_allclose(each.minus, (effect < -0.25).mean(1), atol=1.5 / 201)
            np.testing.assert_allclose(each.above, (effect > 0).mean(1), atol=1.5 / 201)
            for name in ("mean", "std", "min", "max"):
                wanted = getattr(effect, name)(axis=1)
                np.testing.assert_allclose(getattr(each, name), wanted, atol=2e-5)
            np.testing.assert_allclose(each.median, np.median(effect, 1), atol=2e-5)
            np.testing.assert_allclose(each.intervals[0.9], ends[0.9], atol=2e-5)


def test_a_function_sees_pairs_by_genes_and_the_pseudocount(x, pairs):
    seen = []

    def ratio(one, other, pseudocounts):
        seen.append((one.copy(), other.copy(), pseudocounts))
        return one / (other + pseudocounts)

    (result,), (delta,) = summarise_user_effects(
        GivenSamples(x), 1e-5, pairs[:1], options(change_fn=ratio, delta=2.0), 0
    )
    ((one, other, pseudocounts),) = seen
    first, second = pairs[0]
    np.testing.assert_array_equal(one, x[:, first].T)
    np.testing.assert_array_equal(other, x[:, second].T)
    assert pseudocounts == 1e-5
    effect = (x[:, first] / (x[:, second] + 1e-5)).astype(np.float64)
    np.testing.assert_allclose(result.plus, (effect >= 2.0).mean(1), atol=1e-9)
    np.testing.assert_allclose(result.minus, 0)
    np.testing.assert_allclose(result.above, (x[:, first] > x[:, second]).mean(1))
    np.testing.assert_allclose(result.mean, effect.mean(1), rtol=1e-5)
    assert delta == 2.0


def test_an_effect_of_delta_is_enough_upwards_and_not_downwards(x, pairs):
    whole = np.random.default_rng(2).integers(-2, 3, (201, 20)).astype(float)
    chosen = options(change_fn=lambda one, other, p: whole, delta=1.0)
    ((result,), _) = summarise_user_effects(GivenSamples(x), 1e-5, pairs[:1], chosen, 0)
    np.testing.assert_allclose(result.plus, np.isin(whole, [1, 2]).mean(0))
    np.testing.assert_allclose(result.minus, (whole == -2).mean(0))


def test_a_region_of_one_array_counts_either_direction(x, pairs):
    region = options(m1_domain_fn=lambda e: np.abs(e) > 1.5)
    (result,), (delta,) = summarise_user_effects(GivenSamples(x), 1e-5, pairs[:1], region, 0)
    first, second = pairs[0]
    effect = log2_in_float64(x)[:, first] - log2_in_float64(x)[:, second]
    np.testing.assert_allclose(
        result.plus + result.minus, (np.abs(effect) > 1.5).mean(1), atol=0.006
    )
    assert delta is None


@pytest.mark.parametrize(
    ("functions", "parts"),
    [
        ({"change_fn": lambda one, other, p: one[:, :3]}, ("change_fn", "(201, 3)", "(201, 20)")),
        ({"change_fn": lambda one, other, p: (one - other).mean(0)}, ("change_fn", "(20,)")),
        ({"change_fn": lambda one: one}, ("change_fn", "scale1, scale2, pseudocounts")),
        ({"m1_domain_fn": lambda e: e[0] > 0}, ("m1_domain_fn", "(20,)", "(201, 20)")),
        ({"m1_domain_fn": lambda e: (e[:2] > 0, e[:2] < 0)}, ("m1_domain_fn", "(2, 20)")),
        ({"m1_domain_fn": lambda: None}, ("m1_domain_fn", "effects")),
        ({"m1_domain_fn": lambda e: (e > 0, e < 0, e == 0)}, ("m1_domain_fn",)),
        ({"m1_domain_fn": lambda e: (e > 0, e[:2] < 0)}, ("m1_domain_fn", "(2, 20)")),
        ({"change_fn": lambda one, other, p: None}, ("change_fn", "(201, 20)")),
    ],
)
def test_functions_that_give_something_else_are_refused(x, pairs, refused, functions, parts):
    with refused(ArgumentTypeError, *parts):
        summarise_user_effects(GivenSamples(x), 1e-5, pairs, options(**functions), 0)


def brute_force(ordered, level):
    """Length of the shortest interval that holds more than a share ``level``, or all."""
    n = len(ordered)
    fits = [
        ordered[j] - ordered[i]
        for i, j in product(range(n), repeat=2)
        if j >= i and (j - i + 1 > level * n or j - i + 1 == n)
    ]
    return min(fits)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 41])
def test_an_interval_is_the_shortest_that_holds_its_share(n, level):
    rng = np.random.default_rng(n)
    for repeat in range(20):
        ordered = np.sort(
            rng.standard_normal(n) ** 3 if repeat % 2 else rng.integers(0, 4, n) * 1.0
        )
        low, high = shortest_interval(ordered, level)
        assert {low, high} <= set(ordered)
        assert ((ordered >= low) & (ordered <= high)).mean() >= level
        assert high - low == pytest.approx(brute_force(ordered, level), abs=1e-12)


# ---- the choice of pairs ------------------------------------------------------


def groups(*sizes_and_codes):
    """The parts of the samples that pairs depend on: positions and codes."""
    starts = np.cumsum([0, *(n for n, _ in sizes_and_codes)])
    return SimpleNamespace(
        groups=[SimpleNamespace(codes=codes) for _, codes in sizes_and_codes],
        positions=[np.arange(a, b) for a, b in pairwise(starts)],
    )


def codes(n, shift=0):
    return tuple(Codes(i + shift) for i in range(n))


def sides(one, others, n_cells):
    """One group against others, which count as many cells as they have."""
    share = np.asarray(n_cells, float)[others]
    return Sides(one, tuple(others), tuple(share / share.sum()))


def count_uses(rows, positions):
    return np.array([(rows == position).sum() for position in positions])


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_pairs", [1, 6, 59, 60, 61, 150, 1000])
def test_every_sample_of_the_first_side_is_used_equally_often(n_codes, n_pairs):
    samples = groups((30, codes(n_codes)), (60, codes(n_codes)), (60, codes(n_codes)))
    for one, others in ((1, [0]), (0, [1, 2]), (2, [0, 1])):
        first, second = choose_pairs(samples, sides(one, others, [10, 20, 5]), n_pairs, 0)
        assert len(first) == len(second) == max(n_pairs, n_codes)
        used = count_uses(first, samples.positions[one])
        assert used.sum() == len(first)
        assert used.max() - used.min() <= 1
        inside = np.concatenate([samples.positions[j] for j in others])
        assert set(second) <= set(inside)


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_pairs", [60, 997, 5000])
def test_the_second_sides_groups_are_in_proportion_to_their_cells(n_codes, n_pairs):
    samples = groups(*[(60, codes(n_codes))] * 4)
    n_cells = np.array([7.0, 500, 30, 71])
    for others in ([1, 2, 3], [3, 1], [2]):
        _, second = choose_pairs(samples, sides(0, others, n_cells), n_pairs, 0)
        share = n_cells[others] / n_cells[others].sum()
        for j, wanted in zip(others, share * n_pairs, strict=True):
            used = count_uses(second, samples.positions[j])
            assert abs(used.sum() - wanted) <= n_codes
            assert used.max() - used.min() <= 1 + n_codes // 2


@pytest.mark.parametrize("n_codes", [2, 3, 5])
def test_both_of_a_pair_are_decoded_alike_where_both_sides_are(n_codes):
    samples = groups(*[(30, codes(n_codes))] * 3)
    for n_pairs in (7, 30, 1001):
        first, second = choose_pairs(samples, sides(1, [0, 2], [3, 1, 5]), n_pairs, 0)
        each = 30 // n_codes
        np.testing.assert_array_equal(first % 30 // each, second % 30 // each)
        numbers = np.bincount(first % 30 // each, minlength=n_codes)
        assert numbers.max() - numbers.min() <= 1


@pytest.mark.parametrize("sizes", [(30, 30), (30, 32)])
def test_sides_that_are_decoded_as_others_are_compared_in_any_combination(sizes):
    samples = groups((sizes[0], codes(3)), (sizes[1], codes(2, shift=3)))
    first, second = choose_pairs(samples, sides(0, [1], [1, 1]), 3000, 0)
    table = np.zeros((3, 2))
    np.add.at(table, (first // 10, (second - 30) // (sizes[1] // 2)), 1)
    np.testing.assert_allclose(table, 500, atol=100)
    assert count_uses(first, samples.positions[0]).tolist() == [100] * 30


def test_pairs_are_independent_and_follow_the_seed():
    """The two sides are independent of each other and of the position among the pairs."""
    samples = groups((500, codes(1)), (500, codes(1)), (500, codes(1)))
    first, second = choose_pairs(samples, sides(0, [1, 2], [1, 1, 1]), 5000, 3)
    for a, b in ((first, second), (first, np.arange(5000)), (second, np.arange(5000))):
        assert stats.spearmanr(a, b).pvalue > 1e-3
    again, other = (choose_pairs(samples, sides(0, [1, 2], [1] * 3), 5000, seed) for seed in (3, 4))
    np.testing.assert_array_equal(again[0], first)
    np.testing.assert_array_equal(again[1], second)
    assert (other[0] != first).mean() > 0.9
    assert (other[1] != second).mean() > 0.9


def test_numbers_of_samples_and_pairs():
    assert options().n_samples(2) == options().n_pairs(5000) == 5000
    assert options(n_samples_overall=17).n_samples(40) == 17
    assert options().n_pairs(9000) == 9000
    assert options().n_pairs(17) >= 1000
    assert options(use_permutation=True, m_permutation=33).n_pairs(5000) == 33
    for n in range(2, 40):
        assert 1000 <= options().n_samples(n) <= 5000
        assert options().n_samples(n + 1) <= options().n_samples(n)
