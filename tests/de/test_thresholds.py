"""The pseudocount and the threshold on the fold change."""

from __future__ import annotations

import numpy as np
import pytest
from comparison_cases import options
from sklearn.mixture import GaussianMixture

from vivace.de import effects
from vivace.de.counts import CountSums
from vivace.de.thresholds import choose_delta, choose_pseudocount
from vivace.errors import OptionError

# ---- the threshold -----------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
def test_delta_is_of_the_outer_of_three_components(seed):
    effects = np.random.default_rng(0).normal([[-2.0], [0], [1]], 0.1, (3, 300)).ravel()
    mixture = GaussianMixture(3, random_state=seed % 2**32).fit(effects.reshape(-1, 1))
    outer = np.abs([mixture.means_.min(), mixture.means_.max()]).mean()
    assert choose_delta(effects, seed) == pytest.approx(0.6 * outer, rel=1e-9)
    assert choose_delta(effects, seed) == pytest.approx(0.6 * 1.5, rel=0.03)


def test_delta_is_a_tenth_at_least():
    effects = np.random.default_rng(0).normal(0, 0.01, 200)
    assert choose_delta(effects, 0) == 0.1


@pytest.mark.parametrize("effects", [[1.0, -1.0], [0.0] * 50, [0.0, 2.0] * 20], ids=len)
def test_delta_of_few_different_effects(effects):
    assert 0.1 <= choose_delta(np.array(effects), 0) <= 1.2


# ---- the pseudocount ---------------------------------------------------------


def get_sums(counts, n_cells):
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
        sums = get_sums(counts, n_cells)
        result = choose_pseudocount(largest, sums, options(threshold_counts=threshold))
        least = threshold * n_cells.sum() / counts.sum()
        assert result == pytest.approx(max(wanted, least), rel=1e-12)


def test_the_pseudocount_of_groups_without_silent_genes_is_least():
    """The threshold in molecules per cell, relative to the molecules of a cell."""
    sums = get_sums(np.full((2, 5), 50), [10, 10])
    assert choose_pseudocount(np.full((2, 5), 1e-3), sums, options()) == pytest.approx(0.01 / 25)
    assert choose_pseudocount(np.full((2, 5), 1e-3), sums, options(threshold_counts=0)) == 1e-10


def test_the_pseudocount_may_be_given(refused):
    sums = get_sums(np.ones((2, 5)), [10, 10])
    for given, wanted in ((1e-5, 1e-5), (0, 1e-10), (3, 3.0)):
        assert (
            choose_pseudocount(np.full((2, 5), 1e-3), sums, options(pseudocounts=given)) == wanted
        )
        assert (
            choose_pseudocount(np.full((2, 5), 1e-3), None, options(pseudocounts=given)) == wanted
        )
    with refused(OptionError, "pseudocount", "minify_adata", "pseudocounts=", "1e-6"):
        choose_pseudocount(np.full((2, 5), 1e-3), None, options())


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
def test_the_pseudocount_is_of_the_samples_of_the_groups_that_were_counted(
    covered, monkeypatch, asks
):
    """Samples are intercepted, and their expression is computed with the public ``decode``."""
    caught, sample_latents = [], effects.sample_latents

    def catching(*arguments):
        caught.append(sample_latents(*arguments))
        return caught[-1]

    monkeypatch.setattr(effects, "sample_latents", catching)
    threshold = 1.0
    result = covered.differential_expression(
        groupby="cell_type", **asks, threshold_counts=threshold, n_samples_overall=40, seed=0
    )
    kind, x = covered.adata.obs["cell_type"].to_numpy(), covered.adata.X.toarray()
    named = sorted({*result["group1"], *result["group2"]} - {"Rest"})
    largest = {}
    for group in caught:
        (name,) = set(np.where(np.isin(kind, named), kind, "Rest")[group.cells.rows])
        for segment, code in group.segments():
            batch = None if code.batch is None else covered.schema.batches[code.batch]
            rows = group.cells.rows[segment]
            scale = covered.decode(group.z[segment], indices=rows, transform_batch=batch).scale
            largest[name] = np.maximum(largest.get(name, 0.0), scale.numpy().max(0))
    wanted = []
    for name, each in largest.items():
        inside = ~np.isin(kind, named) if name == "Rest" else kind == name
        silent = x[inside].mean(0) < threshold
        assert 3 <= silent.sum() <= 27
        wanted.append(np.quantile(each[silent], 0.9))
    assert result["pseudocounts"].nunique() == 1
    assert result["pseudocounts"].iloc[0] == pytest.approx(max(wanted), rel=1e-5)
