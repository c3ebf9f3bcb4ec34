"""The distribution of differences between samples, compared with all pairs in NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from vivace.de import histograms
from vivace.de.histograms import (
    ABOVE,
    MAX,
    MEAN,
    MEDIAN,
    MIN,
    MINUS,
    PLUS,
    STD,
    describe,
    write_by_gene,
)

GENES, SAMPLES = [1, 15, 16, 17, 63, 64, 65, 200], [1, 2, 5, 100]
FLOAT32_ERROR = 4e-5  # log2 of expression is of -40 to 0, where float32 has steps of up to 4e-6
CLOSE = 1e-5  # of probabilities, which are sums in float32


class Samples:
    """Samples of several groups, each decoded with several codes, in segments of given lengths."""

    def __init__(self, x, lengths, n_codes=1):
        self.x = x
        self.starts = np.cumsum([0, *lengths]).astype(np.int32)
        self.segments = np.arange(len(lengths), dtype=np.int32).reshape(-1, n_codes)

    def described(self, sides, deltas, pseudocount=1e-30):
        """``sides``: of each comparison the first group, and the weight of every other."""
        first = np.array([self.segments[one] for one, _ in sides])
        widest = max(len(weights) for _, weights in sides)
        second = np.zeros((len(sides), widest, first.shape[1]), np.int32)
        weight = np.zeros((len(sides), widest))
        for c, (_, weights) in enumerate(sides):
            for j, (group, value) in enumerate(weights.items()):
                second[c, j], weight[c, j] = self.segments[group], value
        out = np.full((len(sides), len(self.x), 8), np.nan)
        describe(
            out, self.x, pseudocount, self.starts, first, second, weight, np.asarray(deltas, float)
        )
        return out

    def pairs(self, side, gene, pseudocount=1e-30):
        """Every difference of one gene, and its weight."""
        one, weights = side
        logs = np.log2(self.x[gene].astype(np.float64) + pseudocount)
        effects, counts = [], []
        n_codes = self.segments.shape[1]
        for k in range(n_codes):
            a = self.samples(logs, one, k)
            for group, value in weights.items():
                b = self.samples(logs, group, k)
                effects.append(np.subtract.outer(a, b).ravel())
                counts.append(np.full(len(a) * len(b), value / len(a) / len(b) / n_codes))
        return np.concatenate(effects), np.concatenate(counts)

    def samples(self, logs, group, k):
        segment = self.segments[group, k]
        return logs[self.starts[segment] : self.starts[segment + 1]]

    def width(self, gene, pseudocount=1e-30):
        return np.ptp(np.log2(self.x[gene].astype(np.float64) + pseudocount)) / histograms._BINS


def assert_described(result, effects, counts, delta, width):
    """Means and extremes agree to float32, the rest to half a bin or one bin per sample."""
    mean = effects @ counts
    assert counts.sum() == pytest.approx(1)
    assert result[MEAN] == pytest.approx(mean, abs=FLOAT32_ERROR)
    assert result[STD] == pytest.approx(np.sqrt((effects - mean) ** 2 @ counts), abs=FLOAT32_ERROR)
    assert result[MIN] == pytest.approx(effects.min(), abs=FLOAT32_ERROR)
    assert result[MAX] == pytest.approx(effects.max(), abs=FLOAT32_ERROR)
    off = 1.5 * width + FLOAT32_ERROR

    def above(threshold):
        return counts[effects >= threshold].sum()

    for value, threshold in ((PLUS, delta), (ABOVE, 0.0)):
        assert above(threshold + off) - CLOSE <= result[value] <= above(threshold - off) + CLOSE
    assert above(-delta + off) - CLOSE <= 1 - result[MINUS] <= above(-delta - off) + CLOSE
    off += width
    assert above(result[MEDIAN] - off) >= 0.5 - CLOSE
    assert above(result[MEDIAN] + off) <= 0.5 + CLOSE


@pytest.mark.parametrize("n_samples", SAMPLES)
@pytest.mark.parametrize("genes", GENES)
def test_effects_are_described_as_from_all_pairs(genes, n_samples):
    rng = np.random.default_rng(genes * 1000 + n_samples)
    x = (10.0 ** rng.uniform(-12, 0, (genes, 3 * n_samples))).astype(np.float32)
    samples = Samples(x, [n_samples] * 3)
    sides = [(0, {1: 1.0}), (2, {0: 0.25, 1: 0.75}), (1, {2: 1.0})]
    deltas = [0.0, 0.25, 3.0]
    for pseudocount in (1e-30, 1e-5):
        out = samples.described(sides, deltas, pseudocount)
        for gene in {0, genes // 2, genes - 1}:
            width = samples.width(gene, pseudocount)
            for c, side in enumerate(sides):
                pairs = samples.pairs(side, gene, pseudocount)
                assert_described(out[c, gene], *pairs, deltas[c], width)


@pytest.mark.parametrize("n_codes", [2, 3])
def test_only_samples_that_are_decoded_alike_are_compared(n_codes):
    rng = np.random.default_rng(n_codes)
    lengths = np.repeat([40, 10, 25], n_codes)
    code_means = np.repeat(np.tile(np.arange(n_codes) * 6.0, 3), lengths)
    x = (2.0 ** (rng.normal(-20, 1, (20, lengths.sum())) + code_means)).astype(np.float32)
    samples = Samples(x, lengths, n_codes)
    sides = [(0, {1: 0.9, 2: 0.1}), (1, {0: 1.0})]
    out = samples.described(sides, [0.5, 0.25])
    for c, side in enumerate(sides):
        for gene in range(20):
            pairs = samples.pairs(side, gene)
            assert_described(out[c, gene], *pairs, (0.5, 0.25)[c], samples.width(gene))
    assert (out[..., STD] < 3).all()


def test_probabilities_of_smooth_samples_are_near_the_exact():
    """Normal samples: differences are normal."""
    rng = np.random.default_rng(0)
    standard = norm.ppf((np.arange(4000) + 0.5) / 4000)
    logs = np.concatenate([-10 + 0.4 * standard, -10.5 + 0.3 * rng.permutation(standard)])
    x = (2.0 ** logs[None]).astype(np.float32)
    for delta in (0.0, 0.25, 1.0):
        result = Samples(x, [4000, 4000]).described([(0, {1: 1.0})], [delta])[0, 0]
        law = norm(0.5, 0.5)
        assert result[PLUS] == pytest.approx(law.sf(delta), abs=1e-3)
        assert result[MINUS] == pytest.approx(law.cdf(-delta), abs=1e-3)
        assert result[ABOVE] == pytest.approx(law.sf(0), abs=1e-3)
        assert result[MEDIAN] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 4, 5, 31])
@pytest.mark.parametrize("levels", [1, 2, 3, 7])
def test_where_many_samples_are_equal(n_samples, levels):
    rng = np.random.default_rng(n_samples + levels)
    x = (2.0 ** -rng.integers(0, levels, (40, 2 * n_samples)) / 8).astype(np.float32)
    samples = Samples(x, [n_samples] * 2)
    out = samples.described([(0, {1: 1.0})], [0.5])[0]
    for gene in range(40):
        assert_described(out[gene], *samples.pairs((0, {1: 1.0}), gene), 0.5, samples.width(gene))
        exact, counts = samples.pairs((0, {1: 1.0}), gene)
        # whole numbers lie far from the threshold, so that bins do not matter
        assert out[gene, PLUS] == pytest.approx(counts[exact > 0.5].sum(), abs=CLOSE)
        assert out[gene, MINUS] == pytest.approx(counts[exact < -0.5].sum(), abs=CLOSE)


def test_a_constant_gene_does_not_change():
    x = np.repeat(np.float32([[1e-12], [0.0], [3e-5], [1.0]]), 50, axis=1)
    out = Samples(x, [20, 30]).described([(0, {1: 1.0})] * 2, [0.0, 0.1], 1e-7)
    np.testing.assert_allclose(out[..., [MEAN, MEDIAN, STD, MIN, MAX]], 0, atol=FLOAT32_ERROR)
    assert not out[1][:, [PLUS, MINUS]].any()
    np.testing.assert_allclose(out[0][:, PLUS] + out[0][:, MINUS], 1)
    np.testing.assert_allclose(out[..., ABOVE], 0.5)


def test_swapped_sides_mirror_all():
    rng = np.random.default_rng(2)
    x = (10.0 ** rng.uniform(-9, 0, (20, 150))).astype(np.float32)
    samples = Samples(x, [100, 50])
    one, other = samples.described([(0, {1: 1.0}), (1, {0: 1.0})], [0.7, 0.7])
    np.testing.assert_allclose(one[:, MEAN], -other[:, MEAN], atol=1e-5)
    np.testing.assert_array_equal(one[:, [MIN, MAX]], -other[:, [MAX, MIN]])
    np.testing.assert_allclose(one[:, STD], other[:, STD], rtol=1e-5)
    np.testing.assert_allclose(one[:, [PLUS, MINUS]], other[:, [MINUS, PLUS]], atol=1e-3)
    np.testing.assert_allclose(one[:, MEDIAN], -other[:, MEDIAN], atol=0.1)


@pytest.mark.parametrize("n_samples", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("genes", GENES)
def test_samples_are_written_by_gene(genes, n_samples):
    x = np.random.default_rng(0).random((n_samples, genes), np.float32)
    out = np.full((genes, n_samples + 9), np.nan, np.float32)
    write_by_gene(out[:, 4 : 4 + n_samples], x)
    np.testing.assert_array_equal(out[:, 4 : 4 + n_samples], x.T)
    assert np.isnan(np.delete(out, np.s_[4 : 4 + n_samples], axis=1)).all()
