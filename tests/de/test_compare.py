"""Which draws are compared, and what is added to expression."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from vivace.data.schema import Codes
from vivace.de import compare
from vivace.de.change import Sides
from vivace.de.compare import pairs_of
from vivace.de.counts import CountSums
from vivace.de.options import Options
from vivace.de.sampling import pseudocount_of
from vivace.errors import OptionError


def groups(*sizes_and_codes):
    """As much of the draws as says which are compared: their places and codes."""
    starts = np.cumsum([0, *(n for n, _ in sizes_and_codes)])
    return SimpleNamespace(
        groups=[SimpleNamespace(codes=codes) for _, codes in sizes_and_codes],
        places=[np.arange(a, b) for a, b in pairwise(starts)],
    )


def codes(n, shift=0):
    return tuple(Codes(i + shift) for i in range(n))


def sides(one, others, n_cells):
    """One group against others, which count as many cells as they have."""
    share = np.asarray(n_cells, float)[others]
    return Sides(one, tuple(others), tuple(share / share.sum()))


def often(rows, places):
    return np.array([(rows == place).sum() for place in places])


def options(**changed):
    arguments = {
        "mode": "change",
        "delta": 0.25,
        "test_mode": "three",
        "fdr_target": 0.05,
        "pseudocounts": None,
        "threshold_counts": 0.01,
        "n_samples_overall": None,
        "use_permutation": False,
        "m_permutation": 10_000,
        "change_fn": None,
        "m1_domain_fn": None,
        "cred_interval_lvls": (),
    }
    return Options(**arguments | changed)


# ---- pairs -------------------------------------------------------------------


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_pairs", [1, 6, 59, 60, 61, 150, 1000])
def test_every_first_draw_is_used_equally_often(n_codes, n_pairs):
    drawn = groups((30, codes(n_codes)), (60, codes(n_codes)), (60, codes(n_codes)))
    for one, others in ((1, [0]), (0, [1, 2]), (2, [0, 1])):
        first, second = pairs_of(drawn, sides(one, others, [10, 20, 5]), n_pairs, 0)
        assert len(first) == len(second) == max(n_pairs, n_codes)
        used = often(first, drawn.places[one])
        assert used.sum() == len(first)
        assert used.max() - used.min() <= 1
        inside = np.concatenate([drawn.places[j] for j in others])
        assert set(second) <= set(inside)


@pytest.mark.parametrize("n_codes", [1, 2, 3])
@pytest.mark.parametrize("n_pairs", [60, 997, 5000])
def test_the_second_sides_groups_are_in_proportion_to_their_cells(n_codes, n_pairs):
    drawn = groups(*[(60, codes(n_codes))] * 4)
    n_cells = np.array([7.0, 500, 30, 71])
    for others in ([1, 2, 3], [3, 1], [2]):
        _, second = pairs_of(drawn, sides(0, others, n_cells), n_pairs, 0)
        share = n_cells[others] / n_cells[others].sum()
        for j, wanted in zip(others, share * n_pairs, strict=True):
            used = often(second, drawn.places[j])
            assert abs(used.sum() - wanted) <= n_codes
            assert used.max() - used.min() <= 1 + n_codes // 2


@pytest.mark.parametrize("n_codes", [2, 3, 5])
def test_both_of_a_pair_are_decoded_alike_where_both_sides_are(n_codes):
    drawn = groups(*[(30, codes(n_codes))] * 3)
    for n_pairs in (7, 30, 1001):
        first, second = pairs_of(drawn, sides(1, [0, 2], [3, 1, 5]), n_pairs, 0)
        each = 30 // n_codes
        np.testing.assert_array_equal(first % 30 // each, second % 30 // each)
        numbers = np.bincount(first % 30 // each, minlength=n_codes)
        assert numbers.max() - numbers.min() <= 1


@pytest.mark.parametrize("sizes", [(30, 30), (30, 32)])
def test_sides_that_are_decoded_as_others_are_compared_in_any_combination(sizes):
    drawn = groups((sizes[0], codes(3)), (sizes[1], codes(2, shift=3)))
    first, second = pairs_of(drawn, sides(0, [1], [1, 1]), 3000, 0)
    table = np.zeros((3, 2))
    np.add.at(table, (first // 10, (second - 30) // (sizes[1] // 2)), 1)
    np.testing.assert_allclose(table, 500, atol=100)
    assert often(first, drawn.places[0]).tolist() == [100] * 30


def test_pairs_are_any():
    """Neither side says anything about the other, nor about the place among the pairs."""
    drawn = groups((500, codes(1)), (500, codes(1)), (500, codes(1)))
    first, second = pairs_of(drawn, sides(0, [1, 2], [1, 1, 1]), 5000, 3)
    for a, b in ((first, second), (first, np.arange(5000)), (second, np.arange(5000))):
        assert stats.spearmanr(a, b).pvalue > 1e-3
    again, other = (pairs_of(drawn, sides(0, [1, 2], [1] * 3), 5000, seed) for seed in (3, 4))
    np.testing.assert_array_equal(again[0], first)
    np.testing.assert_array_equal(again[1], second)
    assert (other[0] != first).mean() > 0.9
    assert (other[1] != second).mean() > 0.9


def test_how_many_draws_and_pairs():
    assert options().draws(2) == options().pairs(5000) == 5000
    assert options(n_samples_overall=17).draws(40) == 17
    assert options().pairs(9000) == 9000
    assert options().pairs(17) >= 1000
    assert options(use_permutation=True, m_permutation=33).pairs(5000) == 33
    for n in range(2, 40):
        assert 1000 <= options().draws(n) <= 5000
        assert options().draws(n + 1) <= options().draws(n)


# ---- the pseudocount ---------------------------------------------------------


def sums_of(counts, n_cells):
    counts, n = np.asarray(counts, float), np.asarray(n_cells, float)
    return CountSums(n, counts, np.minimum(counts, n[:, None]), counts, counts.sum(1))


def test_the_pseudocount_is_what_silent_genes_hardly_exceed():
    rng = np.random.default_rng(0)
    largest = 10.0 ** rng.uniform(-7, -3, (3, 200))
    counts = rng.poisson(0.5, (3, 200)) * rng.integers(0, 9, (3, 200))
    n_cells = np.array([100, 40, 300])
    for threshold in (0.001, 0.01, 0.05):
        # groups in which one count would be too few, or the largest
        telling = [i for i in range(3) if n_cells[i] * threshold >= 1] or [2]
        wanted = max(
            np.percentile(largest[i][counts[i] / n_cells[i] < threshold], 90) for i in telling
        )
        sums = sums_of(counts, n_cells)
        found = pseudocount_of(largest, sums, options(threshold_counts=threshold))
        least = threshold * n_cells.sum() / counts.sum()
        assert found == pytest.approx(max(wanted, least), rel=1e-12)


def test_the_pseudocount_of_groups_without_silent_genes_is_least():
    """So many molecules as the threshold allows a cell, of those that a cell has."""
    sums = sums_of(np.full((2, 5), 50), [10, 10])
    assert pseudocount_of(np.full((2, 5), 1e-3), sums, options()) == pytest.approx(0.01 / 25)
    assert pseudocount_of(np.full((2, 5), 1e-3), sums, options(threshold_counts=0)) == 1e-10


def test_the_pseudocount_may_be_given(refused):
    sums = sums_of(np.ones((2, 5)), [10, 10])
    for given, wanted in ((1e-5, 1e-5), (0, 1e-10), (3, 3.0)):
        assert pseudocount_of(np.full((2, 5), 1e-3), sums, options(pseudocounts=given)) == wanted
        assert pseudocount_of(np.full((2, 5), 1e-3), None, options(pseudocounts=given)) == wanted
    with refused(OptionError, "pseudocount", "minify_adata", "pseudocounts=", "1e-6"):
        pseudocount_of(np.full((2, 5), 1e-3), None, options())


@pytest.mark.parametrize(
    "asks",
    [
        {"group1": "B", "group2": "T"},
        {"group1": "NK"},
        {},
        {"group1": ["B", "NK"], "group2": "T"},
        {"group1": ["T", "B"], "group2": "NK"},
        {"batch_correction": True},
        {"batch_correction": True, "batchid1": "b0", "batchid2": "b1", "group1": ["T", "B"]},
        {"batch_correction": True, "batchid1": "b0", "batchid2": "b1"},
    ],
    ids=str,
)
def test_the_pseudocount_is_of_the_draws_of_the_groups_that_were_counted(
    covered, monkeypatch, asks
):
    """The draws are caught on their way; what is expressed in them says the public ``decode``."""
    caught, draw_group = [], compare.draw_group

    def catching(*arguments):
        caught.append(draw_group(*arguments))
        return caught[-1]

    monkeypatch.setattr(compare, "draw_group", catching)
    threshold = 1.0
    found = covered.differential_expression(
        groupby="cell_type", **asks, threshold_counts=threshold, n_samples_overall=40, seed=0
    )
    kind, x = covered.adata.obs["cell_type"].to_numpy(), covered.adata.X.toarray()
    asked = sorted({*found["group1"], *found["group2"]} - {"Rest"})
    largest = {}
    for group in caught:
        (name,) = set(np.where(np.isin(kind, asked), kind, "Rest")[group.cells.rows])
        for at, code in group.stretches():
            batch = None if code.batch is None else covered.schema.batches[code.batch]
            rows = group.cells.rows[at]
            scale = covered.decode(group.z[at], indices=rows, transform_batch=batch).scale
            largest[name] = np.maximum(largest.get(name, 0.0), scale.numpy().max(0))
    wanted = []
    for name, each in largest.items():
        inside = ~np.isin(kind, asked) if name == "Rest" else kind == name
        silent = x[inside].mean(0) < threshold
        assert 3 <= silent.sum() <= 27
        wanted.append(np.quantile(each[silent], 0.9))
    assert found["pseudocounts"].nunique() == 1
    assert found["pseudocounts"].iloc[0] == pytest.approx(max(wanted), rel=1e-5)
