"""``differential_expression`` end to end: every option, on real and small data."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from comparison_cases import CHANGE, COUNTED, VANILLA, fitted
from scipy import stats

from vivace import SCVI, model
from vivace.de.differential import _choose_codes
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    OptionError,
    TrainingError,
    VivaceWarning,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
LAST = ["comparison", "group1", "group2"]
FEW = {"n_samples_overall": 60, "seed": 0}
BT = {"groupby": "cell_type", "group1": "B", "group2": "T"}
WEIGHTED = {
    "weights": "importance",
    "importance_weighting_kwargs": {"max_cells": 10, "n_mc_samples": 3},
}


def run_de(model, adata=None, **options):
    return model.differential_expression(adata, **BT | FEW | options)


def sort_genes(result, model):
    return result.loc[list(model.schema.genes)]


# ---- what is found -----------------------------------------------------------


@pytest.mark.parametrize("mode", ["change", "vanilla"])
def test_markers_go_the_right_way(pbmc, mode):
    result = pbmc.differential_expression(
        groupby="cell_type", group1="B cells", group2="NK cells", mode=mode, seed=0
    )
    up, down = ["CD79A", "MS4A1", "HLA-DRA"], ["NKG7", "GNLY", "PRF1"]
    if mode == "change":
        assert (result.loc[up, "lfc_mean"] > 0.25).all()
        assert (result.loc[down, "lfc_mean"] < -0.25).all()
        assert result.loc[up + down, "proba_de"].min() > result["proba_de"].median()
    else:
        assert (result.loc[up, "proba_m1"] > 0.8).all()
        assert (result.loc[down, "proba_m2"] > 0.8).all()
    assert (result.loc[up, "scale1"] > result.loc[up, "scale2"]).all()
    assert (result.loc[down, "raw_mean1"] < result.loc[down, "raw_mean2"]).all()


def test_statistics_of_the_counts_are_those_of_each_side(covered):
    result = sort_genes(run_de(covered), covered)
    kind, x = covered.adata.obs["cell_type"].to_numpy(), covered.adata.X.toarray().astype(float)
    relative = 1e4 * x / x.sum(1, keepdims=True)
    for side, name in ((1, "B"), (2, "T")):
        inside = kind == name
        np.testing.assert_allclose(result[f"raw_mean{side}"], x[inside].mean(0))
        np.testing.assert_allclose(result[f"non_zeros_proportion{side}"], (x[inside] > 0).mean(0))
        np.testing.assert_allclose(
            result[f"raw_normalized_mean{side}"], relative[inside].mean(0), rtol=1e-6
        )


def test_scales_and_fold_changes_are_of_the_model(covered):
    """Compared with the mean expression of many samples by another method."""
    result = sort_genes(run_de(covered, n_samples_overall=4000, pseudocounts=1e-5), covered)
    kind = covered.adata.obs["cell_type"].to_numpy()
    logs = []
    for side, name in ((1, "B"), (2, "T")):
        x = covered.get_normalized_expression(
            indices=kind == name, n_samples=50, return_mean=False, return_numpy=True, seed=5
        ).astype(np.float64)
        np.testing.assert_allclose(result[f"scale{side}"], x.mean((0, 1)), rtol=0.03)
        logs.append(np.log2(x + 1e-5).reshape(-1, 30))
    error = np.sqrt(sum(each.var(0) for each in logs))
    mean = logs[0].mean(0) - logs[1].mean(0)
    assert (np.abs(result["lfc_mean"] - mean) < 0.1 * error).all()
    np.testing.assert_allclose(result["lfc_std"], error, rtol=0.1)
    for gene in range(30):
        effects = np.subtract.outer(logs[0][::3, gene], logs[1][::3, gene])
        row = result.iloc[gene]
        assert row["lfc_median"] == pytest.approx(np.median(effects), abs=0.1 * error[gene])
        wanted = max((effects >= 0.25).mean(), (effects < -0.25).mean())
        assert row["proba_de"] == pytest.approx(wanted, abs=0.03)


@pytest.mark.filterwarnings("ignore:.*is one cell")
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("mode", ["change", "vanilla"])
def test_every_likelihood_and_library(folder, mode):
    model_ = model.load(GOLDEN / folder, anndata.read_h5ad(GOLDEN / "adata.h5ad"))
    result = model_.differential_expression(groupby="cell_type", mode=mode, **FEW)
    kinds = model_.adata.obs["cell_type"].astype(str).unique()
    assert len(result) == len(kinds) * 150
    wanted = [*CHANGE, *COUNTED, "is_de_fdr_0.05"] if mode == "change" else [*VANILLA, *COUNTED]
    assert list(result) == [*wanted, *LAST]
    assert len(result.columns) == (22 if mode == "change" else 14)
    assert result.notna().all().all()
    assert np.isfinite(result.select_dtypes("number").to_numpy()).all()
    assert set(result.groupby("comparison").size()) == {150}


@pytest.mark.parametrize("folder", ["normal", "zinb_latent_library", "poisson_logistic_normal"])
def test_importance_weights_of_every_likelihood(folder):
    model_ = model.load(GOLDEN / folder, anndata.read_h5ad(GOLDEN / "adata.h5ad"))
    result = model_.differential_expression(idx1=range(20), idx2=range(30, 60), **FEW, **WEIGHTED)
    assert result.notna().all().all()
    assert result.attrs["weights"] == "importance"


def test_a_gene_without_counts_on_both_sides_is_never_called(covered):
    """It has counts in other cells, so the model knows it."""
    adata = covered.adata.copy()
    x = adata.X.toarray()
    x[np.isin(adata.obs["cell_type"], ["B", "T"]), 7] = 0
    assert x[:, 7].sum() > 0
    adata.X = x
    empty = x.sum(1) == 0
    adata = adata[~empty].copy()
    for options in ({"delta": 0.0}, {"test_mode": "two", "delta": 0.0}, {"delta": None}):
        result = run_de(covered, adata, fdr_target=0.9, pseudocounts=1e-9, **options)
        assert not result.loc["gene7", "is_de_fdr_0.9"]
        assert result.loc["gene7", "proba_de"] == 0
        assert result["is_de_fdr_0.9"].any()
        assert result.notna().all().all()
    result = run_de(covered, adata, group1="NK", group2="T", pseudocounts=1e-9, delta=0.0)
    assert result.loc["gene7", "proba_de"] > 0


# ---- options -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"delta": None},
        {"delta": 0},
        {"test_mode": "two"},
        {"fdr_target": 0.5},
        {"weights": None},
        WEIGHTED,
        {"batch_correction": True},
        {"batch_correction": "donor"},
        {"batch_correction": ["donor", "batch"]},
        {"batch_correction": True, "batchid1": "b0", "batchid2": "b0"},
        {"batch_correction": True, "batchid1": ["b1", "b0"], "batchid2": ["b0", "b1"]},
        {"batch_correction": True, "batchid1": "b0", "batchid2": "b1"},
        {
            "batch_correction": True,
            "batchid1": {"donor": "d1"},
            "batchid2": {"donor": ["d0", "d2"]},
        },
        {"change_fn": "log-fold"},
        {"change_fn": lambda a, b, p: np.log2((a + p) / (b + p))},
        {"change_fn": lambda a, b, p: a - b, "delta": None},
        {"m1_domain_fn": lambda e: (e > 1, e < -1)},
        {"m1_domain_fn": lambda e: np.abs(e) > 1, "test_mode": "two"},
        {"cred_interval_lvls": [0.5, 0.95]},
        {"cred_interval_lvls": 0.9},
        {"use_permutation": True, "m_permutation": 33, "cred_interval_lvls": 0.9},
        {"pseudocounts": 1e-5},
        {"pseudocounts": 0},
        {"threshold_counts": 0.5},
        {"mode": "vanilla"},
        {"mode": "vanilla", "batch_correction": True},
        {"all_stats": False},
        {"n_samples_overall": None},
        {"n_samples_overall": 1},
        {"batch_size": 7},
        {"silent": True},
    ],
    ids=str,
)
def test_every_option(covered, options):
    result = run_de(covered, **options)
    wanted = list(VANILLA) if options.get("mode") == "vanilla" else list(CHANGE)
    for level in np.atleast_1d(options.get("cred_interval_lvls", [])):
        wanted += [f"lfc_confidence_interval_{level}_{end}" for end in ("min", "max")]
        low, high = result[wanted[-2]], result[wanted[-1]]
        assert (low <= high).all()
        assert (result["lfc_min"] <= low + 1e-4).all()
        assert (high <= result["lfc_max"] + 1e-4).all()
    wanted += COUNTED if options.get("all_stats", True) else []
    if options.get("mode") != "vanilla":
        wanted.append(f"is_de_fdr_{options.get('fdr_target', 0.05)}")
        assert result["proba_de"].between(0, 1).all()
        assert (np.diff(result["proba_de"]) <= 0).all()
    assert list(result) == [*wanted, *LAST]
    assert sorted(result.index) == sorted(covered.schema.genes)
    values = result.drop(columns="delta", errors="ignore")
    assert values.notna().all().all()
    if "delta" in result:
        assert result["delta"].isna().all() == ("m1_domain_fn" in options)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"mode": "chang"}, OptionError, ("mode", "'change'", "'chang'")),
        ({"test_mode": "one"}, OptionError, ("test_mode", "'one'")),
        ({"delta": -1}, OptionError, ("delta", "-1")),
        ({"delta": "a"}, ArgumentTypeError, ("delta", "'a'")),
        ({"delta": np.nan}, OptionError, ("delta", "nan")),
        ({"pseudocounts": -1e-3}, OptionError, ("pseudocounts",)),
        ({"fdr_target": 0}, OptionError, ("fdr_target", "0")),
        ({"fdr_target": 1.0}, OptionError, ("fdr_target", "1.0")),
        ({"fdr_target": None}, ArgumentTypeError, ("fdr_target", "None")),
        ({"threshold_counts": -1}, OptionError, ("threshold_counts", "-1")),
        ({"n_samples_overall": 0}, OptionError, ("n_samples_overall", "0")),
        ({"n_samples_overall": 2.5}, ArgumentTypeError, ("n_samples_overall", "2.5")),
        ({"m_permutation": 0}, OptionError, ("m_permutation", "0")),
        ({"cred_interval_lvls": [0.5, 1.0]}, OptionError, ("cred_interval_lvls", "1.0")),
        ({"cred_interval_lvls": "0.95"}, ArgumentTypeError, ("cred_interval_lvls", "'0.95'")),
        ({"cred_interval_lvls": ["a"]}, ArgumentTypeError, ("cred_interval_lvls", "'a'")),
        ({"weights": "equal"}, OptionError, ("weights", "'equal'", "'uniform'")),
        ({"weights": "importance", "importance_weighting_kwargs": {"max_cell": 3}},
         ArgumentTypeError, ("max_cell", "did you mean 'max_cells'")),
        ({"importance_weighting_kwargs": {"max_cells": 3}}, OptionError, ("weights='importance'",)),
        ({"change_fn": 3}, ArgumentTypeError, ("change_fn", "3")),
        ({"change_fn": "log"}, ArgumentTypeError, ("change_fn", "'log'")),
        ({"m1_domain_fn": "x"}, ArgumentTypeError, ("m1_domain_fn", "'x'")),
        ({"change_fn": lambda a, b: a}, ArgumentTypeError, ("change_fn", "pseudocounts")),
        ({"m1_domain_fn": lambda e: e[:1] > 0}, ArgumentTypeError, ("m1_domain_fn", "(1, 30)")),
        ({"mode": "vanilla", "cred_interval_lvls": 0.5}, OptionError, ("cred_interval_lvls",)),
        ({"mode": "vanilla", "change_fn": lambda a, b, p: a}, OptionError, ("change_fn",)),
        ({"batchid1": "b0"}, OptionError, ("batchid1", "batch_correction=True")),
        ({"batchid2": "b0"}, OptionError, ("batchid2", "batch_correction=True")),
        ({"batch_correction": True, "batchid1": "b7"}, DataError, ("'b7'", "'b0'")),
        ({"batch_correction": True, "batchid1": ["b0", "b1"], "batchid2": "b1"}, OptionError,
         ("batchid1", "batchid2", "share")),
        ({"batch_correction": "dono"}, DataError, ("'dono'", "did you mean 'donor'")),
        ({"batch_correction": 3}, ArgumentTypeError, ("batch_correction", "3")),
        ({"batch_correction": []}, ArgumentTypeError, ("batch_correction",)),
        ({"seed": "a"}, ArgumentTypeError, ("seed", "'a'")),
        ({"key_added": 3}, ArgumentTypeError, ("key_added", "3")),
        ({"group": "B"}, ArgumentTypeError, ("'group'", "did you mean", "'group1'")),
        ({"n_sample_overall": 3}, ArgumentTypeError, ("did you mean 'n_samples_overall'",)),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)  # fmt: skip
def test_bad_input_is_refused(covered, refused, options, error, parts):
    with refused(error, *parts):
        run_de(covered, **options)


def test_a_model_without_batch_has_none_to_correct(refused):
    model_ = model.load(GOLDEN / "zinb_no_batch", anndata.read_h5ad(GOLDEN / "adata.h5ad"))
    with refused(OptionError, "batch", "setup_anndata", "batch_correction="):
        model_.differential_expression(idx1=range(20), batch_correction=True)


@pytest.mark.filterwarnings("ignore:.*is one cell")
def test_outliers_are_left_out(covered):
    result = run_de(covered, filter_outlier_cells=True)
    assert result.notna().all().all()
    assert (result["scale1"] != run_de(covered)["scale1"].loc[result.index]).any()
    with pytest.warns(VivaceWarning, match="Could not detect outliers among 1 cells"):
        covered.differential_expression(
            idx1=[0], idx2=range(2, 100), filter_outlier_cells=True, **FEW
        )


def test_groups_without_outliers_give_one_warning(covered):
    adata = covered.adata.copy()
    adata.obs["few"] = ["a", "b"] + ["c"] * 148
    with pytest.warns(VivaceWarning) as caught:
        covered.differential_expression(adata, groupby="few", filter_outlier_cells=True, **FEW)
    said = [str(w.message) for w in caught]
    assert len(said) == 2
    assert said[0].startswith("Each of 2 groups is one cell ('a', 'b')")
    assert said[1] == (
        "Could not detect outliers in 2 of 3 groups (of 1, 1 cells); all their cells were kept."
    )


@pytest.mark.parametrize("form", [np.array, pd.Index, pd.Series, tuple])
def test_columns_to_correct_for_may_be_an_array(covered, form):
    expected = run_de(covered, batch_correction=["batch", "donor"])
    result = run_de(covered, batch_correction=form(["batch", "donor"]))
    pd.testing.assert_frame_equal(result, expected, check_flags=False)
    result = run_de(covered, batch_correction=np.array("donor"))
    pd.testing.assert_frame_equal(result, run_de(covered, batch_correction="donor"))


def test_comparisons_that_are_confounded_give_one_warning(covered):
    adata = covered.adata.copy()
    adata.obs["part"] = adata.obs["batch"].astype(str) + adata.obs["donor"].astype(str)
    with pytest.warns(VivaceWarning) as caught:
        covered.differential_expression(
            adata, groupby="part", group2="b0d0", batch_correction=["batch", "donor"], **FEW
        )
    (said,) = [str(w.message) for w in caught]
    assert said.startswith(
        "b1d0 vs b0d0: no category of 'batch' has cells of both groups (and 6 more "
        "comparisons or columns like it)"
    )


@pytest.mark.filterwarnings("ignore:.*is one cell")
def test_one_cell_is_a_group(covered):
    result = covered.differential_expression(idx1=[3], idx2=[5], **FEW)
    assert result.notna().all().all()
    assert result.attrs["comparisons"]["group1 vs group2"]["n_cells"] == [1, 1]


def test_a_correction_decodes_both_sides_as_all_batches(covered):
    """Both sides are the same cells in different batches; with the correction they are equal."""
    result = covered.differential_expression(
        idx1=range(10), idx2=range(10, 20), batch_correction=True, pseudocounts=1e-5, seed=0,
        batchid1="b0", batchid2="b1",
    )  # fmt: skip
    x = [
        covered.get_normalized_expression(
            indices=rows, transform_batch=b, n_samples=200, return_numpy=True, seed=1
        ).mean(0)
        for rows, b in ((range(10), "b0"), (range(10, 20), "b1"))
    ]
    both = sort_genes(result, covered)
    np.testing.assert_allclose(both["scale1"], x[0], rtol=0.02)
    np.testing.assert_allclose(both["scale2"], x[1], rtol=0.02)
    result = covered.differential_expression(
        idx1=range(10), idx2=range(10, 20), batch_correction=True, pseudocounts=1e-5, seed=0
    )
    wanted = covered.get_normalized_expression(
        indices=range(10), transform_batch=["b0", "b1"], n_samples=200, return_numpy=True, seed=1
    ).mean(0)
    np.testing.assert_allclose(sort_genes(result, covered)["scale1"], wanted, rtol=0.02)


@pytest.mark.parametrize(("correction", "warned"), [(True, True), ("donor", False), (False, False)])
def test_groups_in_separate_batches_give_a_warning(covered, correction, warned):
    batch = covered.adata.obs["batch"]
    rows = {"idx1": np.flatnonzero(batch == "b0")[:30], "idx2": np.flatnonzero(batch == "b1")[:30]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        covered.differential_expression(**rows, batch_correction=correction, **FEW)
    assert [str(w.message) for w in caught if "'batch'" in str(w.message)] == [
        str(w.message) for w in caught
    ]
    assert len(caught) == warned
    if warned:
        assert caught[0].category is VivaceWarning
        assert "group1 vs group2" in str(caught[0].message)
        assert caught[0].filename == __file__


# ---- several at once, symmetry -----------------------------------------------


def test_swapped_groups_mirror_the_change(covered):
    asks = {"pseudocounts": 1e-5, "n_samples_overall": 4000}
    one = sort_genes(run_de(covered, **asks), covered)
    other = sort_genes(run_de(covered, group1="T", group2="B", **asks, seed=1), covered)
    assert (np.abs(one["lfc_mean"] + other["lfc_mean"]) < 0.12 * one["lfc_std"]).all()
    np.testing.assert_allclose(one["lfc_std"], other["lfc_std"], rtol=0.12)
    np.testing.assert_allclose(one["proba_de"], other["proba_de"], atol=0.04)
    np.testing.assert_allclose(one["scale1"], other["scale2"], rtol=0.1)
    for column in COUNTED:
        twin = column[:-1] + {"1": "2", "2": "1"}[column[-1]]
        np.testing.assert_array_equal(one[column], other[twin])


def test_several_at_once_are_as_one_at_a_time(covered):
    asks = {"groupby": "cell_type", "pseudocounts": 1e-5, "n_samples_overall": 4000, "seed": 0}
    together = covered.differential_expression(**asks)
    kinds = ["B", "NK", "T"]
    assert list(together["comparison"].unique()) == [f"{k} vs Rest" for k in kinds]
    assert together.shape == (90, 22)
    for kind in kinds:
        single = sort_genes(
            covered.differential_expression(group1=kind, **asks | {"seed": 7}), covered
        )
        part = sort_genes(together[together["group1"] == kind], covered)
        assert (part["group2"] == "Rest").all()
        assert (np.abs(part["lfc_mean"] - single["lfc_mean"]) < 0.12 * single["lfc_std"]).all()
        np.testing.assert_allclose(part["proba_de"], single["proba_de"], atol=0.04)
        np.testing.assert_allclose(part["lfc_std"], single["lfc_std"], rtol=0.12)
        np.testing.assert_allclose(part["scale2"], single["scale2"], rtol=0.1)
        for column in COUNTED:
            np.testing.assert_allclose(part[column], single[column], rtol=1e-12)


def test_the_other_cells_count_one_by_one_not_group_by_group(pbmc):
    """Groups of 10 to 300 cells."""
    asks = {"groupby": "cell_type", "pseudocounts": 1e-5, "n_samples_overall": 1500, "seed": 0}
    together = pbmc.differential_expression(**asks)
    part = sort_genes(together[together["group1"] == "B cells"], pbmc)
    single = sort_genes(pbmc.differential_expression(group1="B cells", **asks | {"seed": 7}), pbmc)
    np.testing.assert_allclose(part["scale2"], single["scale2"], rtol=0.15)
    assert (np.abs(part["lfc_mean"] - single["lfc_mean"]) < 0.15 * single["lfc_std"]).all()
    for column in COUNTED:
        np.testing.assert_allclose(part[column], single[column], rtol=1e-12)


def test_rows_and_groups_say_the_same(covered):
    kind = covered.adata.obs["cell_type"].to_numpy()
    groups = run_de(covered)
    rows = covered.differential_expression(idx1=kind == "B", idx2="cell_type == 'T'", **FEW)
    pd.testing.assert_frame_equal(groups.drop(columns=LAST), rows.drop(columns=LAST))
    assert set(rows["comparison"]) == {"group1 vs group2"}


# ---- seeds, data, attributes -------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, WEIGHTED, {"batch_correction": True}, {"delta": None}, {"sample_key": "sample"}],
    ids=str,
)
def test_a_seed_repeats_bit_for_bit(covered, options):
    first, again, other = (run_de(covered, **options | {"seed": s}) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert first.attrs == again.attrs
    assert first.attrs["seed"] == 3
    assert (sort_genes(first, covered)["lfc_mean"] != sort_genes(other, covered)["lfc_mean"]).any()


@pytest.mark.parametrize("options", [{}, {"sample_key": "sample"}], ids=str)
def test_a_call_takes_one_of_the_models_seeds(covered, options):
    before = covered._seeds.used
    first, second = (run_de(covered, **options, seed=None) for _ in range(2))
    assert covered._seeds.used == before + 2
    assert first.attrs["seed"] != second.attrs["seed"]
    again = run_de(covered, **options, seed=first.attrs["seed"])
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert covered._seeds.used == before + 2


def test_batches_of_cells_do_not_matter(covered):
    few, many = (sort_genes(run_de(covered, batch_size=n), covered) for n in (7, 512))
    columns = ["lfc_mean", "lfc_std", "scale1", "scale2", "pseudocounts"]
    np.testing.assert_allclose(few[columns], many[columns], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(few["proba_de"], many["proba_de"], atol=0.01)


@pytest.mark.parametrize("options", [{}, WEIGHTED, {"sample_key": "sample"}], ids=str)
def test_new_data_may_have_genes_in_another_order(covered, options):
    order = np.random.default_rng(0).permutation(30)
    adata = covered.adata[:, order].copy()
    del adata.uns["vivace"]
    result, wanted = run_de(covered, adata, **options), run_de(covered, **options)
    pd.testing.assert_frame_equal(result, wanted)


def test_groups_are_those_of_the_new_data(covered):
    adata = covered.adata[40:110].copy()
    adata.obs["own"] = ["x", "y"] * 35
    result = covered.differential_expression(adata, groupby="own", group1="x", **FEW)
    assert result.attrs["comparisons"]["x vs Rest"]["n_cells"] == [35, 35]
    rows = covered.differential_expression(
        idx1=np.arange(40, 110, 2), idx2=np.arange(41, 110, 2), **FEW
    )
    np.testing.assert_allclose(
        sort_genes(result, covered)["raw_mean1"], sort_genes(rows, covered)["raw_mean1"]
    )


@pytest.mark.parametrize("options", [{}, {"sample_key": "sample"}, {"mode": "vanilla"}], ids=str)
def test_data_are_changed_by_key_added_alone(covered, options):
    adata = covered.adata.copy()
    twin = adata.copy()
    result = run_de(covered, adata, **options)
    assert list(adata.uns) == list(twin.uns)
    run_de(covered, adata, **options, key_added="de")
    assert set(adata.uns) - set(twin.uns) == {"de"}
    pd.testing.assert_frame_equal(adata.obs, twin.obs)
    pd.testing.assert_frame_equal(adata.var, twin.var)
    assert (adata.X != twin.X).nnz == 0
    assert not adata.obsm
    assert result.shape[0] == len(adata.uns["de"]["names"]["B"])


@pytest.mark.parametrize("delta", [0.25, None])
def test_the_result_says_how_it_was_made(covered, delta):
    result = run_de(covered, delta=delta, fdr_target=0.6, seed=11)
    kind = covered.adata.obs["cell_type"]
    counts = result.attrs["comparisons"]["B vs T"]
    assert {k: v for k, v in result.attrs.items() if k != "comparisons"} == {
        "mode": "change",
        "test_mode": "three",
        "fdr_target": 0.6,
        "weights": "uniform",
        "groupby": "cell_type",
        "seed": 11,
        "batch_correction": False,
        "filter_outlier_cells": False,
    }
    assert counts["n_cells"] == [(kind == "B").sum(), (kind == "T").sum()]
    assert counts["n_draws"] == [60, 60]
    assert counts["delta"] == result["delta"].iloc[0]
    assert counts["pseudocounts"] == result["pseudocounts"].iloc[0]
    called = result["is_de_fdr_0.6"]
    assert counts["n_called"] == called.sum() > 0
    assert counts["expected_fdr"] == pytest.approx(result["proba_not_de"][called].mean())
    assert counts["expected_fdr"] <= 0.6
    rest = result["proba_not_de"].to_numpy()
    assert rest[: called.sum() + 1].mean() > 0.6 or called.all()


def test_vanilla_says_how_it_was_made(covered):
    result = run_de(covered, mode="vanilla")
    assert result.attrs["mode"] == "vanilla"
    assert list(result.attrs["comparisons"]["B vs T"]) == ["n_cells", "n_draws"]


# ---- minified data -----------------------------------------------------------


@pytest.fixture
def minified(covered, tmp_path):
    covered.save(tmp_path / "model")
    model_ = SCVI.load(tmp_path / "model", covered.adata.copy())
    model_.minify_adata()
    return model_


def test_minified_data_need_a_pseudocount(minified, covered, refused):
    with refused(OptionError, "minify_adata", "pseudocounts="):
        run_de(minified)
    result = run_de(minified, pseudocounts=1e-5)
    assert list(result) == [*CHANGE, "is_de_fdr_0.05", *LAST]
    wanted = run_de(covered, pseudocounts=1e-5)
    result, wanted = sort_genes(result, covered), sort_genes(wanted, covered)
    np.testing.assert_allclose(result["lfc_mean"], wanted["lfc_mean"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result["scale1"], wanted["scale1"], rtol=1e-4)
    assert list(run_de(minified, mode="vanilla")) == [*VANILLA, *LAST]


def test_minified_data_cannot_be_weighted_nor_compared_over_samples(minified, refused):
    for options in (WEIGHTED, {"sample_key": "sample"}):
        with refused(DataError, "minif"):
            run_de(minified, pseudocounts=1e-5, **options)


def test_surer_genes_differ_more_in_counts(pbmc):
    """Rank correlation with a test on the counts."""
    result = pbmc.differential_expression(
        groupby="cell_type", group1="B cells", group2="NK cells", seed=0
    )
    counted = np.log2((result["raw_normalized_mean1"] + 1) / (result["raw_normalized_mean2"] + 1))
    expressed = result[["raw_mean1", "raw_mean2"]].max(axis=1) > 0.5
    assert stats.spearmanr(result["lfc_mean"][expressed], counted[expressed]).statistic > 0.7


def test_weights_that_are_not_finite_are_refused(conditions, refused):
    model = fitted(conditions)
    with torch.no_grad():
        model.module.decoder.scale.bias[3] = torch.nan
    with refused(TrainingError, "not finite", "train it again"):
        model.differential_expression(groupby="condition", seed=0)


def test_the_declarations_are_not_written_over(conditions, refused):
    model = fitted(conditions)
    for taken in ("vivace", ""):
        with refused(OptionError, "key_added"):
            model.differential_expression(groupby="condition", key_added=taken)


def test_columns_named_beside_a_batch_are_corrected_too(conditions):
    model = fitted(conditions, batch_key="batch", categorical_covariate_keys=["lane"])
    codes, _ = _choose_codes(model, ["batch", "lane"], "0", "0")
    assert {(c.batch, c.categorical) for c in codes} == {(0, ((0, k),)) for k in range(3)}


def test_blocks_of_genes_give_the_same_table(conditions, monkeypatch):
    """Blocks give what all genes together do, for size factors too."""
    for setup in ({}, {"size_factor_key": "size"}):
        model = fitted(conditions, **setup)
        ask = {"groupby": "condition", "group1": "1", "group2": "0", "seed": 0}
        whole = model.differential_expression(**ask, n_samples_overall=200)
        with monkeypatch.context() as patch:
            patch.setattr("vivace.de.samples.MAX_VALUES", 400 * 7)
            blocks = model.differential_expression(**ask, n_samples_overall=200)
        pd.testing.assert_frame_equal(
            blocks.loc[whole.index].drop(columns="bayes_factor"),
            whole.drop(columns="bayes_factor"),
            rtol=1e-4,
            atol=1e-4,
        )


def test_levels_that_would_share_a_column_are_refused(conditions, refused):
    with refused(OptionError, "cred_interval_lvls"):
        fitted(conditions).differential_expression(
            groupby="condition", cred_interval_lvls=[0.9991, 0.9992]
        )


def test_functions_of_users_must_give_numbers_and_regions(conditions, refused):
    model = fitted(conditions)
    ask = {"groupby": "condition", "group1": "1", "seed": 0, "n_samples_overall": 50}
    with refused(OptionError, "change_fn", "not finite"):
        model.differential_expression(**ask, change_fn=lambda a, b, p: a * np.nan)
    with refused(ArgumentTypeError, "m1_domain_fn", "True and False"):
        model.differential_expression(**ask, m1_domain_fn=lambda effects: effects)
