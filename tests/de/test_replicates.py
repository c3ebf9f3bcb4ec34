"""Comparisons across replicates: which ones, which design, and that one alone does not decide.

Statistics are compared with SciPy's t tests, limma's moderation and numerical integration.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from comparison_cases import fitted
from scipy import integrate, special, stats

from vivace import SCVI
from vivace.de import replicates
from vivace.de.replicates import (
    ObservedEffects,
    infer_mean_effects,
    moderate_variances,
    observe_paired,
    observe_unpaired,
)
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    VivaceWarning,
)

SMALL = {"n_samples_overall": 200, "seed": 0}


def labelled(model, side, sample):
    """The model's data with other sides and samples."""
    adata = model.adata.copy()
    adata.obs["side"], adata.obs["mouse"] = side, sample
    return adata


def laid_out(model, *numbers):
    """Given numbers of cells per (side, sample), in turn; the others are on neither side."""
    side, sample = [], []
    for a, b, n in numbers:
        side += [a] * n
        sample += [b] * n
    left = model.adata.n_obs - len(side)
    assert left >= 0
    return labelled(model, side + ["none"] * left, sample + ["m?"] * left)


def run_de(model, adata, **options):
    arguments = {"groupby": "side", "group1": "A", "group2": "B", "sample_key": "mouse"}
    return model.differential_expression(adata, **arguments | SMALL | options)


def comparison_record(result, name="A vs B"):
    return result.attrs["comparisons"][name]


# ---- design ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "design", "n_samples"),
    [
        ([("A", "m0", 20), ("A", "m1", 20), ("B", "m0", 20), ("B", "m1", 20)], "paired", [2, 2]),
        ([("A", "m0", 20), ("A", "m1", 20), ("B", "m2", 20), ("B", "m3", 20)], "unpaired", [2, 2]),
        # 9 cells are too few of a sample
        (
            [("A", "m0", 20), ("A", "m1", 20), ("A", "m2", 9), ("B", "m0", 20), ("B", "m1", 10),
             ("B", "m2", 20)],
            "paired",
            [2, 2],
        ),
        # half of the smaller side's are on both sides: those alone
        (
            [("A", "m0", 12), ("A", "m1", 12), ("A", "m2", 12), ("A", "m3", 12), ("B", "m0", 12),
             ("B", "m1", 12), ("B", "m4", 12), ("B", "m5", 12), ("A", "m6", 12)],
            "paired",
            [2, 2],
        ),
        # one of three is fewer than half
        (
            [("A", "m0", 12), ("A", "m1", 12), ("A", "m2", 12), ("B", "m0", 12), ("B", "m4", 12),
             ("B", "m5", 12), ("B", "m6", 12)],
            "unpaired",
            [3, 4],
        ),
    ],
)  # fmt: skip
def test_the_design_follows_from_the_samples(covered, numbers, design, n_samples):
    result = comparison_record(run_de(covered, laid_out(covered, *numbers)))
    assert result["design"] == design
    assert result["n_samples"] == n_samples


def test_the_rest_is_the_same_samples_in_other_groups(covered):
    result = covered.differential_expression(
        covered.adata, groupby="cell_type", sample_key="batch", **SMALL
    )
    assert result.attrs["sample_key"] == "batch"
    assert list(result.attrs["comparisons"]) == ["B vs Rest", "NK vs Rest", "T vs Rest"]
    for each in result.attrs["comparisons"].values():
        assert (each["design"], each["n_samples"]) == ("paired", [2, 2])
    assert list(result["comparison"].unique()) == list(result.attrs["comparisons"])
    assert result.notna().all().all()


def test_a_comparison_of_too_few_samples_is_left_out_with_a_warning(covered):
    numbers = [("A", "m0", 15), ("A", "m1", 15), ("C", "m0", 15), ("C", "m1", 9)]
    adata = laid_out(covered, *numbers, ("B", "m0", 15), ("B", "m1", 15))
    with pytest.warns(VivaceWarning, match="C vs B is left out: 1 and 2 samples"):
        result = run_de(covered, adata, group1=["A", "C"])
    assert list(result.attrs["comparisons"]) == ["A vs B"]
    assert set(result["comparison"]) == {"A vs B"}
    assert len(result) == 30


def test_comparisons_that_are_left_out_give_one_warning(covered):
    few = [(f"C{i}", "m0", 10) for i in range(7)]
    adata = laid_out(
        covered, ("A", "m0", 15), ("A", "m1", 15), *few, ("B", "m0", 15), ("B", "m1", 15)
    )
    with pytest.warns(VivaceWarning) as caught:
        result = run_de(covered, adata, group1=["A", *(side for side, _, _ in few)])
    assert list(result.attrs["comparisons"]) == ["A vs B"]
    assert [str(w.message) for w in caught] == [
        "7 of 8 comparisons are left out ('C0 vs B', 'C1 vs B', 'C2 vs B', 'C3 vs B', 'C4 vs B', "
        "...), because a side has fewer than two samples of at least 10 cells."
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        [("A", "m0", 30), ("B", "m0", 30)],
        [("A", "m0", 30), ("A", "m1", 9), ("B", "m2", 30), ("B", "m3", 30)],
        [("A", "m0", 9), ("A", "m1", 9), ("B", "m2", 9), ("B", "m3", 9)],
    ],
)
def test_too_few_samples_in_all_comparisons_are_refused(covered, refused, numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VivaceWarning)
        with refused(DataError, "two samples", "10 cells", "sample_key"):
            run_de(covered, laid_out(covered, *numbers))


def test_bad_input_is_refused(covered, refused):
    adata = labelled(covered, ["A", "B"] * 75, [None, "m0", "m1", "m1", "m0"] * 30)
    with refused(DataError, "'mouse'", "sample_key", "30 of the cells"):
        run_de(covered, adata)
    with refused(MissingColumnError, "'mous'", "did you mean 'mouse'"):
        run_de(covered, adata, sample_key="mous")
    with refused(ArgumentTypeError, "sample_key", "4"):
        run_de(covered, adata, sample_key=4)
    for options in (
        {"mode": "vanilla"},
        {"change_fn": lambda a, b, p: a - b},
        {"m1_domain_fn": lambda e: e > 0},
    ):
        with refused(OptionError, "sample_key", "mode='change'"):
            run_de(covered, adata, **options)


# ---- what is found -----------------------------------------------------------


@pytest.fixture(scope="module")
def mice():
    """Four donors in two conditions. Most cells are of one donor, and only there g1 is up.

    g0 is up in condition B in every donor.
    """
    rng = np.random.default_rng(0)
    numbers = [150, 25, 25, 25]
    donor = np.repeat([f"m{i}" for i in range(4)] * 2, numbers * 2)
    condition = np.repeat(["A", "B"], sum(numbers))
    profile = np.tile(rng.gamma(2.0, 1.0, 50) + 0.5, (len(donor), 1))
    up = condition == "B"
    profile[up, 0] *= 6.0
    profile[up & (donor == "m0"), 1] *= 6.0
    profile *= np.array([rng.lognormal(0, 0.05, 50) for _ in range(4)])[[int(d[1]) for d in donor]]
    counts = rng.poisson(2.0 * profile).astype(np.float32)
    obs = pd.DataFrame({"condition": condition, "donor": donor})
    adata = AnnData(counts, obs=obs.set_index(pd.Index([f"c{i}" for i in range(len(donor))])))
    adata.var_names = [f"g{i}" for i in range(50)]
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=32, n_latent=5)
    model.train(40, batch_size=32, seed=0, progress=False)
    return model


def test_one_sample_makes_a_gene_significant_among_cells_and_not_among_samples(mice):
    asks = {"groupby": "condition", "group1": "B", "group2": "A", "seed": 0, "fdr_target": 0.1}
    cell_result = mice.differential_expression(**asks)
    sample_result = mice.differential_expression(**asks, sample_key="donor")
    called = "is_de_fdr_0.1"
    assert cell_result.loc["g0", called]
    assert cell_result.loc["g1", called]
    assert sample_result.loc["g0", called]
    assert not sample_result.loc["g1", called]
    assert sample_result[called].sum() == 1
    assert sample_result.loc["g0", "lfc_mean"] > 1
    assert comparison_record(sample_result, "B vs A")["n_samples"] == [4, 4]
    assert list(sample_result) == list(cell_result)


def test_samples_that_differ_by_nothing_are_not_called(mice):
    """The same condition, two donors against two."""
    result = mice.differential_expression(
        idx1="condition == 'A' and donor in ['m1', 'm2']",
        idx2="condition == 'A' and donor in ['m0', 'm3']",
        sample_key="donor",
        seed=0,
    )
    assert result["is_de_fdr_0.05"].sum() == 0
    assert comparison_record(result, "group1 vs group2")["design"] == "unpaired"


def test_samples_count_the_same_whatever_their_cells(mice):
    """Expression of a side is the mean over samples of what the model expects, not over cells."""
    result = mice.differential_expression(
        groupby="condition", group1="B", group2="A", sample_key="donor", seed=0
    )
    obs = mice.adata.obs
    x = mice.get_normalized_expression(n_samples=20, seed=1)
    for column, name in (("scale1", "B"), ("scale2", "A")):
        inside = (obs["condition"] == name).to_numpy()
        wanted = x[inside].groupby(obs["donor"][inside].to_numpy()).mean().mean()
        np.testing.assert_allclose(result.loc[wanted.index, column], wanted, rtol=0.1)


def test_swapped_sides_mirror_effects(mice):
    one, other = (
        mice.differential_expression(
            groupby="condition", group1=a, group2=b, sample_key="donor", seed=0
        ).loc[mice.adata.var_names]
        for a, b in ("AB", "BA")
    )
    np.testing.assert_allclose(one["lfc_mean"], -other["lfc_mean"], atol=0.05)
    np.testing.assert_allclose(one["proba_de"], other["proba_de"], atol=0.05)
    np.testing.assert_allclose(one["scale1"], other["scale2"], rtol=0.05)


def test_random_samples_are_reported(covered, monkeypatch):
    """The number of random samples is reported, also when it is the same for each category."""
    made, sample_latents = [], replicates.sample_latents

    def counting(*arguments):
        made.append(sample_latents(*arguments))
        return made[-1]

    monkeypatch.setattr(replicates, "sample_latents", counting)
    result = covered.differential_expression(
        groupby="cell_type",
        group1="B",
        group2="T",
        sample_key="batch",
        batch_correction="donor",
        n_samples_overall=301,
        seed=0,
    )
    assert sum(comparison_record(result, "B vs T")["n_draws"]) == sum(map(len, made))
    assert comparison_record(result, "B vs T")["n_cells"] == [
        (covered.adata.obs["cell_type"] == kind).sum() for kind in "BT"
    ]


def every(n):
    return np.ones(n, bool)


# ---- variances ---------------------------------------------------------------


def inverse_trigamma(y):
    """Newton's method as in limma."""
    x = 0.5 + 1 / y
    for _ in range(50):
        x += special.polygamma(1, x) * (1 - special.polygamma(1, x) / y) / special.polygamma(2, x)
    return x


def moderate_as_limma(variance, dof):
    """limma's squeezeVar, with the prior from fitFDist."""
    e = np.log(variance) - special.digamma(dof / 2) + np.log(dof / 2)
    spread = e.var(ddof=1) - special.polygamma(1, dof / 2)
    prior_dof = 2 * inverse_trigamma(spread)
    prior = np.exp(e.mean() + special.digamma(prior_dof / 2) - np.log(prior_dof / 2))
    return (prior_dof * prior + dof * variance) / (prior_dof + dof), prior_dof + dof


@pytest.mark.parametrize("dof", [1, 3, 6])
def test_variances_are_moderated_as_limma_does(dof):
    variance = np.array([0.001, 0.02, 0.5, 3.0, 40.0, 0.0004, 7.0, 900.0])
    result, together = moderate_variances(variance, dof, every(8))
    wanted, wanted_dof = moderate_as_limma(variance, dof)
    np.testing.assert_allclose(result, wanted, rtol=1e-6)
    assert together == pytest.approx(wanted_dof, rel=1e-6)
    assert together > dof


@pytest.mark.parametrize(("prior_dof", "dof"), [(4, 3), (10, 3), (30, 6)])
def test_the_prior_of_sampled_variances_is_found(prior_dof, dof):
    rng = np.random.default_rng(0)
    true = 0.3 * prior_dof / rng.chisquare(prior_dof, 20_000)
    variance = true * rng.chisquare(dof, len(true)) / dof
    result, together = moderate_variances(variance, dof, every(len(true)))
    assert together - dof == pytest.approx(prior_dof, rel=0.15)
    prior = (result * together - dof * variance) / (together - dof)
    np.testing.assert_allclose(prior, 0.3, rtol=0.05)
    assert ((result - true) ** 2).mean() < ((variance - true) ** 2).mean()


def test_variances_that_differ_by_chance_only_become_one():
    rng = np.random.default_rng(1)
    variance = np.full(5000, 0.2) * np.repeat(rng.chisquare(3, 500) / 3, 10) ** 0.5
    result, together = moderate_variances(variance, 3, every(5000))
    assert np.ptp(result) == 0
    assert together >= 1e6


def test_only_genes_that_fit_say_what_is_usual():
    variance = np.concatenate([[0.1, 0.4, 1.0, 0.2, 5.0, 0.02], [1e-9, 1e5, 0.0]])
    fit = np.arange(9) < 6
    result, together = moderate_variances(variance, 2, fit)
    moderated, subset_prior = moderate_variances(variance[:6], 2, every(6))
    np.testing.assert_allclose(result[:6], moderated)
    assert together == subset_prior
    assert result[8] > 0


def test_of_fewer_than_three_genes_variances_stay():
    variance = np.array([0.5, 0.0, 2.0])
    result, dof = moderate_variances(variance, 4, every(3))
    np.testing.assert_allclose(result, variance, atol=1e-300)
    assert (result > 0).all()
    assert dof == 4


# ---- effects -----------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired_effects_are_those_of_a_paired_t_test(n):
    first, second = np.random.default_rng(n).normal(size=(2, n, 2))
    result = observe_paired((first, second), (first, second), every(2))
    test = stats.ttest_rel(first, second)
    np.testing.assert_allclose(result.mean, (first - second).mean(0))
    np.testing.assert_allclose(result.mean / result.error, test.statistic)
    assert result.dof == n - 1
    np.testing.assert_allclose(result.least, (first - second).min(0))
    np.testing.assert_allclose(result.largest, (first - second).max(0))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (5, 2)])
def test_observe_unpaired_are_those_of_students_t_test(n, m):
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=(n, 2)), rng.normal(1, 1, (m, 2))
    result = observe_unpaired((first, second), (first, second), every(2))
    test = stats.ttest_ind(first, second, equal_var=True)
    np.testing.assert_allclose(result.mean / result.error, test.statistic)
    assert result.dof == n + m - 2
    pairs = first[:, None] - second[None]
    np.testing.assert_allclose(result.least, pairs.min((0, 1)))
    np.testing.assert_allclose(result.largest, pairs.max((0, 1)))


def test_the_effect_is_expected_and_its_error_counted():
    rng = np.random.default_rng(0)
    expected, counted = rng.normal(size=(2, 2, 4, 2))
    for effects, test in (
        (observe_paired, stats.ttest_rel),
        (observe_unpaired, stats.ttest_ind),
    ):
        result = effects(tuple(expected), tuple(counted), every(2))
        wanted = test(*counted)
        np.testing.assert_allclose(result.mean, (expected[0] - expected[1]).mean(0))
        seen = (counted[0] - counted[1]).mean(0)
        error = seen / wanted.statistic
        for gene in range(2):  # what is expected beyond what was counted is an error too
            inside = sorted([0.0, seen[gene]])
            beyond = max(inside[0] - result.mean[gene], result.mean[gene] - inside[1], 0.0)
            assert result.error[gene] == pytest.approx(np.hypot(error[gene], beyond))


# ---- the posterior -----------------------------------------------------------


def get_effects(mean, error, dof=5.0):
    mean = np.asarray(mean, float)
    error = np.broadcast_to(np.asarray(error, float), mean.shape)
    return ObservedEffects(mean, error, dof, mean - error, mean + error)


def integral(function, low, high, points):
    edges = [low, *sorted(p for p in points if low < p < high), high]
    return sum(integrate.quad(function, a, b, limit=200)[0] for a, b in pairwise(edges))


def cut_normal(x, width, reach):
    """Density of a normal around zero, truncated at ``reach``."""
    whole = width * np.sqrt(2 * np.pi) * special.erf(reach / width / np.sqrt(2))
    return np.exp(-0.5 * (x / width) ** 2) / whole


def integrate_posterior(effects, delta, gene):
    """EM and posterior of one gene with densities instead of a grid."""
    widest = max(2 * np.abs(effects.mean).max(), 0.08)
    widths = [0.04 * 2 ** (i / 2) for i in range(40) if 0.04 * 2 ** ((i - 1) / 2) < widest]

    def likelihood(x, i):
        standard = (effects.mean[i] - x) / effects.error[i]
        return (1 + standard**2 / effects.dof) ** (-(effects.dof + 1) / 2)

    reach = max((np.abs(effects.mean) + 6 * effects.error).max(), delta + 1)
    marginal = np.empty((len(effects.mean), len(widths) + 1))
    for i, mean in enumerate(effects.mean):
        marginal[i, 0] = likelihood(0.0, i)
        for j, width in enumerate(widths):
            cut = [mean, 0, mean - effects.error[i], mean + effects.error[i], -width, width]
            marginal[i, j + 1] = integral(
                lambda x, i=i, w=width: likelihood(x, i) * cut_normal(x, w, reach),
                -reach,
                reach,
                cut,
            )
    weights = np.full(len(widths) + 1, 1 / (len(widths) + 1))
    for _ in range(500):
        share = marginal * weights
        share /= share.sum(1, keepdims=True)
        weights = share.sum(0)
        weights[0] += 10
        weights /= weights.sum()

    def posterior(x):
        normals = [
            cut_normal(x, w, reach) * weight for w, weight in zip(widths, weights[1:], strict=True)
        ]
        return likelihood(x, gene) * sum(normals)

    cut = [0, effects.mean[gene], -delta, delta]
    whole = weights[0] * likelihood(0.0, gene) + integral(posterior, -reach, reach, cut)
    plus = integral(posterior, delta, reach, cut) / whole
    minus = integral(posterior, -reach, -delta, cut) / whole
    mean = integral(lambda x: x * posterior(x), -reach, reach, cut) / whole
    square = integral(lambda x: x * x * posterior(x), -reach, reach, cut) / whole
    above = (integral(posterior, 0, reach, cut) + weights[0] * likelihood(0.0, gene) / 2) / whole
    return plus, minus, above, mean, np.sqrt(square - mean**2)


def test_the_posterior_is_that_of_integrals():
    effects = get_effects([0.05, 0.6, -1.0, 0.3], [0.2, 0.3, 0.25, 0.4])
    result = infer_mean_effects(effects, 0.25, every(4), ())
    for gene in (1, 2, 3):
        plus, minus, above, mean, std = integrate_posterior(effects, 0.25, gene)
        assert result.plus[gene] == pytest.approx(plus, abs=0.01)
        assert result.minus[gene] == pytest.approx(minus, abs=0.01)
        assert result.above[gene] == pytest.approx(above, abs=0.01)
        assert result.mean[gene] == pytest.approx(mean, abs=0.01)
        assert result.std[gene] == pytest.approx(std, abs=0.01)


def test_intervals_and_the_median_are_quantiles():
    """For genes much more informative than the prior, they equal those of Student's t."""
    effects = get_effects(np.linspace(-4, 4, 60), 0.15, 12.0)
    result = infer_mean_effects(effects, 0.25, every(60), (0.5, 0.9))
    far = (np.abs(effects.mean) > 2) & (np.abs(effects.mean) < 3.3)
    law = stats.t(12.0, effects.mean[far], 0.15)
    np.testing.assert_allclose(result.median[far], law.median(), atol=0.04)
    for level in (0.5, 0.9):
        ends = law.interval(level)
        for end, wanted in zip(result.intervals[level], ends, strict=True):
            np.testing.assert_allclose(end[far], wanted, atol=0.04)


def test_the_gene_that_changes_most_is_not_cut_off():
    """Its true change may be larger than the observed one."""
    effects = get_effects([*np.linspace(-2, 2, 40), 4.0], 0.4, 12.0)
    result = infer_mean_effects(effects, 0.25, every(41), (0.9,))
    assert result.intervals[0.9][1][-1] > 4.3
    assert result.std[-1] > 0.3


def test_a_gene_that_is_far_away_keeps_its_place_in_blocks_of_genes():
    effects = get_effects(np.linspace(-1, 1, 1100), 0.05)
    result = infer_mean_effects(effects, 0.25, every(1100), ())
    assert (np.diff(result.mean) > -1e-9).all()
    np.testing.assert_allclose(result.mean, -result.mean[::-1], atol=1e-6)
    np.testing.assert_allclose(result.std, result.std[::-1], atol=1e-6)


def observed(true, n, noise, seed):
    """Effects of ``n`` paired replicates that vary by ``noise`` around the true ones."""
    rng = np.random.default_rng(seed)
    first = true + rng.normal(0, noise, (n, len(true)))
    second = np.zeros((n, len(true)))
    return observe_paired((first, second), (first, second), every(len(true)))


def surest(result):
    return np.maximum(result.plus, result.minus)


@pytest.mark.parametrize("delta", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_where_no_gene_differs_none_is_called(seed, delta):
    result = infer_mean_effects(observed(np.zeros(1000), 4, 0.3, seed), delta, every(1000), ())
    assert surest(result).max() < 0.5


def test_where_no_gene_differs_none_is_called_with_a_threshold_of_nothing():
    """A change of exactly zero is neither up nor down."""
    result = infer_mean_effects(observed(np.zeros(1000), 4, 0.3, 0), 0.0, every(1000), ())
    assert surest(result).max() < 0.95


@pytest.mark.parametrize("sign", [-1, 1])
def test_genes_that_differ_in_all_replicates_are_called(sign):
    true = np.where(np.arange(1000) < 100, sign * 1.5, 0.0)
    result = infer_mean_effects(observed(true, 4, 0.2, 0), 0.25, every(1000), ())
    assert (surest(result)[:100] > 0.95).mean() > 0.95
    assert (surest(result)[100:] > 0.95).mean() < 0.01
    assert (np.sign(result.mean[:100]) == sign).all()


def test_one_deviating_replicate_calls_no_gene():
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.1, (4, 500))
    first[2, :5] += 4.0
    first[:, 5:10] += 1.0
    sides = first, np.zeros((4, 500))
    result = infer_mean_effects(observe_paired(sides, sides, every(500)), 0.25, every(500), ())
    assert (surest(result)[:5] < 0.9).all()
    assert (surest(result)[5:10] > 0.95).all()


def test_genes_that_fit_nothing_say_nothing():
    """If there is no gene to learn the prior from, none has an effect."""
    result = infer_mean_effects(get_effects([3.0, -1.0], 0.1), 0.25, np.zeros(2, bool), ())
    assert surest(result).max() < 1e-6


def test_across_samples_a_size_factor_is_no_library(conditions):
    """Expression is then in molecules, so the counts must be too."""
    model = fitted(conditions, size_factor_key="size")
    result = model.differential_expression(
        groupby="condition", group1="1", group2="0", sample_key="donor", seed=0
    )
    up = [f"g{i}" for i in range(10)]
    assert result.loc[up, "is_de_fdr_0.05"].all()
    assert (result.loc[up, "lfc_mean"] > 1).all()
