"""What fold changes say: against NumPy and scikit-learn, and with functions of a user's own."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from test_compare import options

from vivace.de.change import (
    Sides,
    change,
    change_by_functions,
    delta_of,
    intervals,
    shortest_interval,
)
from vivace.errors import ArgumentTypeError


class Given:
    """Expression that is given, (g, m), handed out in blocks of genes."""

    def __init__(self, x, blocks=1, n_codes=1):
        self.x, self.n_genes = x, len(x)
        self.parts = [p for p in np.array_split(np.arange(len(x)), blocks) if len(p)]
        self.places = [np.arange(0, 30), np.arange(30, 36), np.arange(36, 90)]
        self.groups = [SimpleNamespace(codes=tuple(range(n_codes)))] * 3

    def blocks(self):
        for part in self.parts:
            yield slice(part[0], part[-1] + 1), self.x[part]


@pytest.fixture
def x():
    return np.random.default_rng(0).gamma(1.0, 1e-3, (20, 90)).astype(np.float32)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(0, 90, (2, 201))) for _ in range(3)]


def logs(x, pseudocount=1e-5):
    return np.log2(x.astype(np.float64) + pseudocount)


# ---- the log2 fold change ----------------------------------------------------


SIDES = [Sides(0, (1,), (1.0,)), Sides(1, (2, 0), (0.3, 0.7)), Sides(2, (1,), (1.0,))]


@pytest.mark.parametrize("n_codes", [1, 3])
@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_all_draws_of_either_side_are_compared(x, blocks, n_codes):
    deltas, drawn = [0.0, 0.3, 1.0], Given(x, blocks, n_codes)
    found = change(drawn, 1e-5, SIDES, deltas)
    y = logs(x)
    for sides, delta, each in zip(SIDES, deltas, found, strict=True):
        effects, weights = [], []
        for j, weight in zip(sides.second, sides.weights, strict=True):
            for one, other in zip(
                np.split(drawn.places[sides.first], n_codes),
                np.split(drawn.places[j], n_codes),
                strict=True,
            ):
                pairs = (y[:, one, None] - y[:, None, other]).reshape(20, -1)
                effects.append(pairs)
                weights += [weight / n_codes / pairs.shape[1]] * pairs.shape[1]
        effect, weight = np.concatenate(effects, 1), np.array(weights)
        mean = effect @ weight
        np.testing.assert_allclose(each.mean, mean, atol=2e-5)
        spread = np.sqrt((effect - mean[:, None]) ** 2 @ weight)
        np.testing.assert_allclose(each.std, spread, atol=2e-5)
        np.testing.assert_allclose(each.min, effect.min(1), atol=2e-5)
        np.testing.assert_allclose(each.max, effect.max(1), atol=2e-5)
        np.testing.assert_allclose(each.plus, (effect >= delta) @ weight, atol=0.01)
        np.testing.assert_allclose(each.minus, (effect < -delta) @ weight, atol=0.01)
        np.testing.assert_allclose(each.above, (effect > 0) @ weight, atol=0.01)
        assert each.intervals == {}


@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_intervals_are_of_the_pairs(x, pairs, blocks):
    levels = (0.5, 0.95)
    found = intervals(Given(x, blocks), 1e-5, pairs, levels)
    for (first, second), each in zip(pairs, found, strict=True):
        effect = logs(x)[:, first] - logs(x)[:, second]
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

    for own in ({"change_fn": log_fold}, {"m1_domain_fn": region}):
        asked = options(**own, cred_interval_lvls=(0.9,))
        found, deltas = change_by_functions(Given(x), 1e-5, pairs, asked, 0)
        assert deltas == [0.25 if "change_fn" in own else None] * 3
        shortest = intervals(Given(x), 1e-5, pairs, (0.9,))
        for each, (first, second), ends in zip(found, pairs, shortest, strict=True):
            effect = logs(x)[:, first] - logs(x)[:, second]
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

    (found,), (delta,) = change_by_functions(
        Given(x), 1e-5, pairs[:1], options(change_fn=ratio, delta=2.0), 0
    )
    ((one, other, pseudocounts),) = seen
    first, second = pairs[0]
    np.testing.assert_array_equal(one, x[:, first].T)
    np.testing.assert_array_equal(other, x[:, second].T)
    assert pseudocounts == 1e-5
    effect = (x[:, first] / (x[:, second] + 1e-5)).astype(np.float64)
    np.testing.assert_allclose(found.plus, (effect >= 2.0).mean(1), atol=1e-9)
    np.testing.assert_allclose(found.minus, 0)
    np.testing.assert_allclose(found.above, (x[:, first] > x[:, second]).mean(1))
    np.testing.assert_allclose(found.mean, effect.mean(1), rtol=1e-5)
    assert delta == 2.0


def test_an_effect_of_delta_is_enough_upwards_and_not_downwards(x, pairs):
    whole = np.random.default_rng(2).integers(-2, 3, (201, 20)).astype(float)
    asked = options(change_fn=lambda one, other, p: whole, delta=1.0)
    ((found,), _) = change_by_functions(Given(x), 1e-5, pairs[:1], asked, 0)
    np.testing.assert_allclose(found.plus, np.isin(whole, [1, 2]).mean(0))
    np.testing.assert_allclose(found.minus, (whole == -2).mean(0))


def test_a_region_of_one_array_counts_either_direction(x, pairs):
    region = options(m1_domain_fn=lambda e: np.abs(e) > 1.5)
    (found,), (delta,) = change_by_functions(Given(x), 1e-5, pairs[:1], region, 0)
    first, second = pairs[0]
    effect = logs(x)[:, first] - logs(x)[:, second]
    np.testing.assert_allclose(found.plus + found.minus, (np.abs(effect) > 1.5).mean(1), atol=0.006)
    assert delta is None


@pytest.mark.parametrize(
    ("own", "parts"),
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
def test_functions_that_give_something_else_are_refused(x, pairs, refused, own, parts):
    with refused(ArgumentTypeError, *parts):
        change_by_functions(Given(x), 1e-5, pairs, options(**own), 0)


# ---- the threshold -----------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
def test_delta_is_of_the_outer_of_three_components(seed):
    effects = np.random.default_rng(0).normal([[-2.0], [0], [1]], 0.1, (3, 300)).ravel()
    mixture = GaussianMixture(3, random_state=seed % 2**32).fit(effects.reshape(-1, 1))
    outer = np.abs([mixture.means_.min(), mixture.means_.max()]).mean()
    assert delta_of(effects, seed) == pytest.approx(0.6 * outer, rel=1e-9)
    assert delta_of(effects, seed) == pytest.approx(0.6 * 1.5, rel=0.03)


def test_delta_is_a_tenth_at_least():
    effects = np.random.default_rng(0).normal(0, 0.01, 200)
    assert delta_of(effects, 0) == 0.1


@pytest.mark.parametrize("effects", [[1.0, -1.0], [0.0] * 50, [0.0, 2.0] * 20], ids=len)
def test_delta_of_few_different_effects(effects):
    assert 0.1 <= delta_of(np.array(effects), 0) <= 1.2


# ---- intervals ---------------------------------------------------------------


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
    for draw in range(20):
        ordered = np.sort(rng.standard_normal(n) ** 3 if draw % 2 else rng.integers(0, 4, n) * 1.0)
        low, high = shortest_interval(ordered, level)
        assert {low, high} <= set(ordered)
        assert ((ordered >= low) & (ordered <= high)).mean() >= level
        assert high - low == pytest.approx(brute_force(ordered, level), abs=1e-12)
