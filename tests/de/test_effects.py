"""Log2 fold changes of all pairs of samples, compared with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from comparison_cases import GivenSamples, log2_in_float64

from vivace.de.effects import summarise_effects
from vivace.de.pairs import Sides


@pytest.fixture
def x():
    return np.random.default_rng(0).gamma(1.0, 1e-3, (20, 90)).astype(np.float32)


SIDES = [Sides(0, (1,), (1.0,)), Sides(1, (2, 0), (0.3, 0.7)), Sides(2, (1,), (1.0,))]


@pytest.mark.parametrize("n_codes", [1, 3])
@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_all_samples_of_either_side_are_compared(x, blocks, n_codes):
    deltas, samples = [0.0, 0.3, 1.0], GivenSamples(x, blocks, n_codes)
    result = summarise_effects(samples, 1e-5, SIDES, deltas)
    y = log2_in_float64(x)
    for sides, delta, each in zip(SIDES, deltas, result, strict=True):
        effects, weights = [], []
        for j, weight in zip(sides.second, sides.weights, strict=True):
            for first, second in zip(
                np.split(samples.positions[sides.first], n_codes),
                np.split(samples.positions[j], n_codes),
                strict=True,
            ):
                pairs = (y[:, first, None] - y[:, None, second]).reshape(20, -1)
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
