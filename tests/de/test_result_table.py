"""The table: columns, order and calls; and the format for scanpy, read by scanpy itself."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from comparison_cases import CHANGE, COUNTED, VANILLA, options
from matplotlib import pyplot as plt

from vivace.de.result_table import (
    ComparisonResult,
    EffectSummary,
    call_genes,
    make_table,
    to_scanpy,
)

GENES = [f"g{i}" for i in range(40)]


def made(seed=0, intervals=None):
    rng = np.random.default_rng(seed)
    plus, minus, _ = rng.dirichlet([0.3, 0.3, 0.1], len(GENES)).T
    named = {n: rng.normal(size=len(GENES)) for n in ("mean", "median", "std", "min", "max")}
    return EffectSummary(plus, minus, rng.random(len(GENES)), **named, intervals=intervals or {})


def get_table(effect, has_counts=None, counted=True, delta=0.25, **options_):
    columns = {name: np.arange(40.0) + i for i, name in enumerate(COUNTED)} if counted else None
    scale = (np.arange(40.0), np.arange(40.0)[::-1])
    result = ComparisonResult(effect, scale, 1e-5, delta, (20, 20), (60, 60))
    has_counts = np.ones(40, bool) if has_counts is None else has_counts
    return make_table(GENES, result, columns, has_counts, options(**options_))


# ---- calls -------------------------------------------------------------------


@pytest.mark.parametrize("fdr", [0.01, 0.05, 0.2, 0.5])
def test_called_is_the_longest_list_whose_expected_fdr_is_at_most_the_target(fdr):
    rng = np.random.default_rng(int(1000 * fdr))
    for n in (1, 2, 10, 300):
        proba = np.sort(1 - rng.random(n) ** 3)[::-1]
        called, expected = call_genes(proba, fdr)
        number = called.sum()
        assert called[:number].all()
        assert all(expected[i] == pytest.approx(1 - proba[: i + 1].mean()) for i in range(n))
        if number:
            assert 1 - proba[:number].mean() <= fdr + 1e-12
        if number < n:
            assert 1 - proba[: number + 1].mean() > fdr - 1e-12


def test_calls_match_a_case_by_hand():
    called, expected = call_genes(np.array([1.0, 0.9375, 0.9375, 0.8125, 0.5]), 0.078125)
    assert called.tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(expected, [0, 0.03125, 0.125 / 3, 0.078125, 0.1625], atol=1e-12)
    assert call_genes(np.array([0.9, 0.9]), 0.05)[0].tolist() == [False, False]


@pytest.mark.parametrize("fdr", [0.05, 0.3, 0.99])
def test_a_gene_that_was_not_counted_is_never_called(fdr):
    effect = made()
    effect.plus[:] = 0.999
    effect.minus[:] = 0.0
    has_counts = np.arange(40) % 4 > 0
    frame = get_table(effect, has_counts, fdr_target=fdr)
    not_counted = [g for g, p in zip(GENES, has_counts, strict=True) if not p]
    assert not frame.loc[not_counted, f"is_de_fdr_{fdr}"].any()
    assert (frame.loc[not_counted, "proba_de"] == 0).all()
    assert frame[f"is_de_fdr_{fdr}"].sum() == 30
    assert frame.attrs["expected_fdr"] == pytest.approx(0.001)


# ---- columns and order -------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_each_mode_has_its_columns(counted):
    result = get_table(made(), counted=counted, fdr_target=0.1)
    assert list(result) == [*CHANGE, *(COUNTED if counted else []), "is_de_fdr_0.1"]
    result = get_table(made(), counted=counted, mode="vanilla")
    assert list(result) == [*VANILLA, *(COUNTED if counted else [])]


def test_columns_of_intervals_come_before_those_of_counts():
    ends = {level: (np.arange(40.0), np.arange(40.0) + 1) for level in (0.5, 0.95)}
    result = get_table(made(intervals=ends))
    named = [f"lfc_confidence_interval_{lv}_{end}" for lv in (0.5, 0.95) for end in ("min", "max")]
    assert list(result) == [*CHANGE, *named, *COUNTED, "is_de_fdr_0.05"]
    np.testing.assert_array_equal(result.loc[GENES, named[0]], np.arange(40))
    np.testing.assert_array_equal(result.loc[GENES, named[3]], np.arange(40) + 1)


@pytest.mark.parametrize("test_mode", ["two", "three"])
def test_each_gene_has_its_values(test_mode):
    effect = made()
    result = get_table(effect, test_mode=test_mode).loc[GENES]
    either = effect.plus + effect.minus
    proba = either if test_mode == "two" else np.maximum(effect.plus, effect.minus)
    np.testing.assert_allclose(result["proba_de"], proba)
    np.testing.assert_allclose(result["proba_not_de"], 1 - proba)
    wanted = np.log(proba + 1e-8) - np.log(1 - proba + 1e-8)
    np.testing.assert_allclose(result["bayes_factor"], wanted)
    for name in ("mean", "median", "std", "min", "max"):
        np.testing.assert_array_equal(result[f"lfc_{name}"], getattr(effect, name))
    np.testing.assert_array_equal(result["scale1"], np.arange(40))
    np.testing.assert_array_equal(result["scale2"], np.arange(40)[::-1])
    np.testing.assert_array_equal(result["raw_normalized_mean2"], np.arange(40) + 5)
    assert (result["pseudocounts"] == 1e-5).all()
    assert (result["delta"] == 0.25).all()


def test_vanilla_is_whether_a_gene_is_higher():
    effect = made()
    result = get_table(effect, mode="vanilla").loc[GENES]
    np.testing.assert_array_equal(result["proba_m1"], effect.above)
    np.testing.assert_allclose(result["proba_m2"], 1 - effect.above)
    wanted = np.log(effect.above + 1e-8) - np.log(1 - effect.above + 1e-8)
    np.testing.assert_allclose(result["bayes_factor"], wanted)


def test_the_most_probable_come_first_and_among_equals_those_that_change_more():
    effect = made()
    effect.plus[:] = np.arange(40) // 10 / 4
    effect.minus[:] = 0
    result = get_table(effect)
    expected_order = sorted(range(40), key=lambda i: (-effect.plus[i], -abs(effect.mean[i])))
    assert list(result.index) == [GENES[i] for i in expected_order]
    vanilla = get_table(effect, mode="vanilla")
    assert (np.diff(vanilla["bayes_factor"]) <= 0).all()


def test_probabilities_of_rounding_stay_probabilities():
    effect = made()
    effect.plus[:], effect.minus[:] = 0.6, 0.4 + 1e-9
    result = get_table(effect, test_mode="two")
    assert (result["proba_de"] == 1).all()
    assert np.isfinite(result["bayes_factor"]).all()


# ---- scanpy ------------------------------------------------------------------


@pytest.fixture(params=["change", "vanilla"])
def written(request, pbmc):
    """A result for three groups against all others, written to the data and as a DataFrame."""
    adata = pbmc.adata.copy()
    result = pbmc.differential_expression(
        adata,
        groupby="cell_type",
        group1=["B cells", "NK cells", "CD8 T cells"],
        mode=request.param,
        key_added="vivace_de",
        n_samples_overall=200,
        seed=0,
    )
    return adata, result


def test_scanpy_gets_a_frame(written):
    adata, result = written
    for group in ("B cells", "NK cells", "CD8 T cells"):
        frame = sc.get.rank_genes_groups_df(adata, group=group, key="vivace_de").set_index("names")
        part = result[result["group1"] == group]
        assert sorted(frame.index) == sorted(part.index)
        assert (np.diff(frame["scores"]) <= 0).all()
        part = part.loc[frame.index]
        if "proba_de" in part:
            effect, up = part["lfc_mean"], np.sign(part["lfc_mean"]) * part["proba_de"]
            not_de = part["proba_not_de"]
        else:
            effect = np.log2((part["scale1"] + 1e-8) / (part["scale2"] + 1e-8))
            up, not_de = part["proba_m1"] - part["proba_m2"], 1 - (2 * part["proba_m1"] - 1).abs()
        np.testing.assert_allclose(frame["logfoldchanges"], effect, rtol=1e-6)
        np.testing.assert_allclose(frame["scores"], up, rtol=1e-6)
        np.testing.assert_allclose(frame["pvals"], not_de, atol=1e-12)
        adjusted = np.sort(frame["pvals_adj"].to_numpy())
        wanted = np.cumsum(np.sort(not_de)) / np.arange(1, len(frame) + 1)
        np.testing.assert_allclose(adjusted, wanted, atol=1e-12)
        order = np.lexsort((frame["pvals_adj"], not_de))
        np.testing.assert_allclose(frame["pvals_adj"].to_numpy()[order], wanted, atol=1e-12)


def test_scanpys_filters_work_on_it(written):
    adata, result = written
    part = result[result["group1"] == "B cells"]
    frame = sc.get.rank_genes_groups_df(
        adata, group=["B cells", "NK cells"], key="vivace_de", log2fc_min=0.5, pval_cutoff=0.5
    )
    assert (frame["pvals_adj"] < 0.5).all()
    assert {"B cells", "NK cells"} == set(frame["group"])
    assert "CD79A" in set(frame["names"][frame["group"] == "B cells"])
    assert part.loc["CD79A"].notna().all()


def test_scanpy_draws_it(written):
    adata, _ = written
    shown = {"key": "vivace_de", "show": False}
    drawn = sc.pl.rank_genes_groups_dotplot(
        adata, n_genes=3, return_fig=True, dendrogram=False, **shown
    )
    drawn.make_figure()
    assert drawn.dot_color_df.shape == (adata.obs["cell_type"].nunique(), 9)
    sc.pl.rank_genes_groups(adata, **shown)
    plt.close("all")


@pytest.mark.parametrize("values", ["logfoldchanges", "scores", "pvals_adj", "log10_pvals"])
def test_scanpy_draws_its_values(pbmc, values):
    adata = pbmc.adata.copy()
    result = pbmc.differential_expression(
        adata, groupby="cell_type", key_added="vivace_de", n_samples_overall=100, seed=0
    )
    drawn = sc.pl.rank_genes_groups_dotplot(
        adata,
        n_genes=2,
        key="vivace_de",
        values_to_plot=values,
        return_fig=True,
        show=False,
        dendrogram=False,
    )
    drawn.make_figure()
    plt.close("all")
    shown = drawn.dot_color_df
    assert shown.shape == (8, 16)
    if values == "logfoldchanges":
        for group in shown.index:
            wanted = result[result["group1"] == group].loc[shown.columns, "lfc_mean"]
            np.testing.assert_allclose(shown.loc[group], wanted, rtol=1e-5)


def test_it_is_written_and_read_with_the_data(written, tmp_path):
    adata, _ = written
    adata.write_h5ad(tmp_path / "data.h5ad")
    back = anndata.read_h5ad(tmp_path / "data.h5ad")
    for group in ("NK cells", "B cells"):
        frames = [
            sc.get.rank_genes_groups_df(a, group=group, key="vivace_de") for a in (adata, back)
        ]
        pd.testing.assert_frame_equal(*frames)
    assert back.uns["vivace_de"]["params"]["groupby"] == "cell_type"
    assert back.uns["vivace_de"]["params"]["reference"] == "rest"


def test_rows_without_groups_are_written_too(pbmc, tmp_path):
    adata = pbmc.adata.copy()
    pbmc.differential_expression(
        adata, idx1="cell_type == 'B cells'", key_added="de", n_samples_overall=50, seed=0
    )
    assert len(sc.get.rank_genes_groups_df(adata, group="group1", key="de")) == adata.n_vars
    adata.write_h5ad(tmp_path / "data.h5ad")
    back = anndata.read_h5ad(tmp_path / "data.h5ad")
    assert len(sc.get.rank_genes_groups_df(back, group="group1", key="de")) == adata.n_vars


def test_a_reference_is_named(covered):
    result = covered.differential_expression(
        groupby="cell_type", group1="B", group2="T", n_samples_overall=20, seed=0
    )
    assert to_scanpy(result, "cell_type")["params"]["reference"] == "T"
