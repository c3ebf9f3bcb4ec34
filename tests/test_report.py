"""Posterior predictive checks in rows and as a picture."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vivace.report import draw_check, summarise_check


def rows(statistic: str, by: str, observed: list[float], predicted: list[float]) -> pd.DataFrame:
    """A check whose interval is half a unit to either side of what is predicted."""
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


CHECK = pd.concat(
    [
        rows("mean", "gene", [1.0, 2.0, 3.0, 9.0], [1.1, 2.2, 5.0, 4.0]),
        rows("correlation", "gene pair", [0.1, np.nan], [0.3, np.nan]),
    ]
)


def test_a_summary_says_how_many_lie_where_the_draws_do_and_where_the_others_are():
    mean, correlation = summarise_check(CHECK).to_dict("records")
    assert (mean["statistic"], mean["by"], mean["n"]) == ("mean", "gene", 4)
    assert (mean["inside"], mean["too_low"], mean["too_high"]) == (0.5, 0.25, 0.25)
    assert mean["error"] == pytest.approx(np.median([0.1, 0.2, 2.0, 5.0]))
    assert mean["spearman"] == pytest.approx(0.8)
    assert correlation["n"] == 1  # a pair without a correlation is left out
    assert np.isnan(correlation["spearman"])


def test_a_summary_of_several_models_names_them():
    found = summarise_check({"NB": CHECK, "ZINB": CHECK})
    assert found["model"].tolist() == ["NB", "NB", "ZINB", "ZINB"]
    pd.testing.assert_frame_equal(
        found.drop(columns="model").iloc[2:].reset_index(drop=True), summarise_check(CHECK)
    )


@pytest.mark.parametrize("check", [CHECK, {"NB": CHECK, "ZINB": CHECK}], ids=["one", "two"])
def test_the_picture_is_drawn_where_statistics_are_missing_too(check, tmp_path):
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_s_own_check_is_drawn(trained, tmp_path):
    check = trained.posterior_predictive_check(n_samples=3, n_correlated=5, seed=0)
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").stat().st_size > 10_000
