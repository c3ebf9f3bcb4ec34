"""How unlike the reference a cell is, by itself and with cells of its kind."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from vivace.transfer.latent_cells import LatentCells
from vivace.transfer.novelty import measure_novelty, rank_novelty, share_below


def test_one_new_cell_is_novel_by_itself_and_many_are_together():
    """A single new cell must be detected, and the known ones must not be called new."""
    rng = np.random.default_rng(0)
    known = [rng.normal(size=500) for _ in range(3)]
    values = [rng.normal(size=200) for _ in range(3)]
    values[0][0] = 6.0  # by itself, while those like it are as usual
    values[1][1:20] += 3.0
    values[2][1:20] += 3.0  # with its kind
    result = rank_novelty(known, values)
    assert result[0] > 0.95
    assert np.median(result[1:20]) > 0.99
    assert (result[20:] > 0.9).mean() < 0.16
    larger = np.maximum(share_below(known[0], values[0]), 0)
    np.testing.assert_array_equal(rank_novelty(known[:1], values[:1]), larger)


def test_cells_of_a_kind_are_novel_together():
    rng = np.random.default_rng(0)
    n = 200
    genes = np.abs(rng.normal(size=(n, 12)))
    genes[:20, :3] += 8
    places = rng.normal(size=(n, 2))
    cells = LatentCells(places, np.ones((n, 2)), sp.csr_matrix(genes))
    odds = rng.normal(size=n) - 1.0 * (np.arange(n) < 20)
    np.testing.assert_array_equal(measure_novelty(cells, places, odds, 15, 49, rng), [-odds])
    single, together, strange = measure_novelty(cells, places, odds, 15, n, rng)
    np.testing.assert_array_equal(single, -odds)
    assert together[:20].min() > np.quantile(together[20:], 0.95)
    assert (-odds)[:20].min() < np.median(-odds[20:])
    assert strange.shape == (n,)


def test_shares_below_against_a_count():
    known = np.random.default_rng(0).normal(size=500)
    values = np.linspace(-3, 1, 20)
    expected = [(known <= v).sum() / 501 for v in values]
    np.testing.assert_allclose(share_below(known, values), np.minimum(expected, 0.95))
    assert np.isnan(share_below(known[:5], values)).all()
