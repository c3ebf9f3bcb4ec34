"""The figure of a posterior predictive check."""

from __future__ import annotations

import pytest

from check_tables import CHECK
from vivace.report import draw_check


@pytest.mark.parametrize("check", [CHECK, {"NB": CHECK, "ZINB": CHECK}], ids=["one", "two"])
def test_a_check_figure_is_drawn_if_statistics_are_missing(check, tmp_path):
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_the_check_of_a_model_is_drawn(trained, tmp_path):
    check = trained.posterior_predictive_check(n_samples=3, n_correlated=5, seed=0)
    draw_check(tmp_path / "check.png", check)
    assert (tmp_path / "check.png").stat().st_size > 10_000
