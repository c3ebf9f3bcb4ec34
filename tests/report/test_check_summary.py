"""Summaries of posterior predictive checks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from check_tables import CHECK
from vivace import pl, report
from vivace.report import summarise_check


def test_figures_are_in_both_rooms():
    assert set(report.__all__) >= {
        "draw_check",
        "draw_overview",
        "need_plotting",
        "summarise_check",
    }
    for name in ("draw_check", "heatmap", "volcano"):
        assert getattr(pl, name) is getattr(report, name)


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
