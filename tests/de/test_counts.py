"""Statistics of the counts of groups, compared with pandas and NumPy on dense counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from vivace.de.counts import sum_counts


@pytest.fixture(scope="module")
def dense(covered):
    return covered.adata.X.toarray().astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_sums_are_of_each_part(covered, dense, batch_size):
    kind = covered.adata.obs["cell_type"].astype("category")
    parts = [np.flatnonzero(kind == name) for name in ("T", "B", "NK")]
    parts[1] = np.random.default_rng(0).permutation(parts[1])
    result = sum_counts(covered._cells(None, None, batch_size, True), parts)
    groups = kind.cat.codes.map({0: 1, 1: 2, 2: 0}).to_numpy()
    for name, x in (
        ("counts", dense),
        ("above_zero", dense > 0),
        ("normalized", 1e4 * dense / dense.sum(1, keepdims=True)),
    ):
        wanted = pd.DataFrame(x).groupby(groups).sum().to_numpy()
        np.testing.assert_allclose(getattr(result, name), wanted, rtol=1e-12)
    np.testing.assert_array_equal(result.n_cells, [len(p) for p in parts])


def test_groups_together_are_as_if_they_were_one(cells, dense):
    parts = [np.arange(3), np.arange(50, 150), np.array([20])]
    result = sum_counts(cells, parts)
    for groups in ([0], [2, 0], [0, 1, 2]):
        x = dense[np.concatenate([parts[i] for i in groups])]
        mean, share, normalized = result.means(groups)
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(share, (x > 0).mean(0), rtol=1e-12)
        relative = 1e4 * x / x.sum(1, keepdims=True)
        np.testing.assert_allclose(normalized, relative.mean(0), rtol=1e-12)


def test_cells_outside_of_the_parts_do_not_count(cells, dense):
    result = sum_counts(cells, [np.array([5]), np.array([149, 0])])
    np.testing.assert_array_equal(result.counts, [dense[5], dense[[0, 149]].sum(0)])


def test_a_stored_zero_is_a_zero(covered, dense):
    n, g = dense.shape
    genes, starts = np.tile(np.arange(g), n), np.arange(n + 1) * g
    adata = covered.adata.copy()
    adata.X = sp.csr_matrix((dense.astype(np.float32).ravel(), genes, starts), (n, g))
    result = sum_counts(covered._cells(adata, None, None, True), [np.arange(n)])
    np.testing.assert_array_equal(result.above_zero, [(dense > 0).sum(0)])
