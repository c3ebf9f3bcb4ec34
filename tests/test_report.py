"""Summaries and figures of posterior predictive checks and differential expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from vivace import pl, report
from vivace.errors import DataError, OptionError
from vivace.pl import heatmap, volcano
from vivace.report import draw_check, summarise_check


def rows(statistic: str, by: str, observed: list[float], predicted: list[float]) -> pd.DataFrame:
    """A check whose interval is half a unit to either side of the prediction."""
    centre = np.array(predicted)
    return pd.DataFrame(
        {
            "statistic": statistic,
            "by": by,
            "name": [f"n{i}" for i in range(len(observed))],
            "observed": observed,
            "predicted": predicted,
            "lower": centre - 0.5,
            "upper": centre + 0.5,
            "p_value": 0.5,
        }
    )


def test_public_names_are_in_both_places():
    assert set(report.__all__) >= {
        "draw_check",
        "draw_overview",
        "need_plotting",
        "summarise_check",
    }
    for name in ("draw_check", "heatmap", "volcano"):
        assert getattr(pl, name) is getattr(report, name)


CHECK = pd.concat(
    [
        rows("mean", "gene", [1.0, 2.0, 3.0, 9.0], [1.1, 2.2, 5.0, 4.0]),
        rows("correlation", "gene pair", [0.1, np.nan], [0.3, np.nan]),
    ]
)


def test_a_summary_counts_values_inside_above_and_below_the_interval():
    mean, correlation = summarise_check(CHECK).to_dict("records")
    assert (mean["statistic"], mean["by"], mean["n"]) == ("mean", "gene", 4)
    assert (mean["inside"], mean["too_low"], mean["too_high"]) == (0.5, 0.25, 0.25)
    assert mean["error"] == pytest.approx(np.median([0.1, 0.2, 2.0, 5.0]))
    assert mean["spearman"] == pytest.approx(0.8)
    assert correlation["n"] == 1  # a pair without a correlation is left out
    assert np.isnan(correlation["spearman"])


def test_a_summary_of_several_models_names_them():
    summary = summarise_check({"NB": CHECK, "ZINB": CHECK})
    assert summary["model"].tolist() == ["NB", "NB", "ZINB", "ZINB"]
    pd.testing.assert_frame_equal(
        summary.drop(columns="model").iloc[2:].reset_index(drop=True), summarise_check(CHECK)
    )


@pytest.mark.parametrize("check", [CHECK, {"NB": CHECK, "ZINB": CHECK}], ids=["one", "two"])
def test_a_check_figure_is_drawn_if_statistics_are_missing(check, tmp_path):
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_the_check_of_a_model_is_drawn(trained, tmp_path):
    check = trained.posterior_predictive_check(n_samples=3, n_correlated=5, seed=0)
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").stat().st_size > 10_000


# ---- differential expression ----------------------------------------------------------


def de_table(comparison: str, effects: list[float], called: list[bool]) -> pd.DataFrame:
    n = len(effects)
    proba = np.where(called, 0.999, 0.3)
    return pd.DataFrame(
        {
            "proba_not_de": 1 - proba,
            "lfc_mean": effects,
            "delta": 0.25,
            "is_de_fdr_0.05": called,
            "comparison": comparison,
        },
        index=[f"gene{i}" for i in range(n)],
    )


TABLE = de_table("a vs Rest", [3.0, -2.0, 0.1], [True, True, False])


def test_a_volcano_shows_every_gene_and_names_the_called_ones(tmp_path):
    ax = volcano(TABLE, save=tmp_path / "volcano.png")
    assert (tmp_path / "volcano.png").read_bytes().startswith(b"\x89PNG")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert sorted(points[:, 0]) == [-2.0, 0.1, 3.0]
    assert {t.get_text() for t in ax.texts} == {"gene0", "gene1"}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "not called (1)",
        "up (1)",
        "down (1)",
    ]


def test_a_volcano_shows_one_comparison(refused):
    both = pd.concat([TABLE, de_table("b vs Rest", [1.0], [True])])
    assert volcano(both, "b vs Rest").get_title(loc="left") == "b vs Rest"
    with refused(OptionError, "2 comparisons", "'a vs Rest'"):
        volcano(both)
    with refused(DataError, "'c vs Rest'", "'a vs Rest'"):
        volcano(both, "c vs Rest")
    with refused(OptionError, "'vanilla'"):
        volcano(TABLE.drop(columns="is_de_fdr_0.05"))


def test_a_heatmap_shows_the_genes_that_are_called_and_up(tmp_path, refused):
    counts = np.array([[9, 1, 0], [8, 0, 2], [0, 5, 5], [1, 4, 5]], np.float32)
    obs = pd.DataFrame({"kind": ["a", "a", "b", "b"]}, index=list("wxyz"))
    var = pd.DataFrame(index=["gene0", "gene1", "gene2"])
    adata = AnnData(sp.csr_matrix(counts), obs=obs, var=var)
    result = pd.concat([TABLE, de_table("b vs Rest", [-3.0, 2.0, 1.0], [True, True, True])])
    result.attrs["groupby"] = "kind"
    ax = heatmap(result, adata, save=tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["gene0", "gene1", "gene2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, 0], [0, 1, 1]])
    with refused(DataError, "'kin'", "did you mean 'kind'?"):
        heatmap(result, adata, groupby="kin")
    with refused(DataError, "'gene2'"):
        heatmap(result, adata[:, :2])
    with refused(DataError, "No gene is called"):
        heatmap(de_table("a vs b", [1.0], [False]), adata, groupby="kind")
