"""Summaries of a model, and the figures of :mod:`vivace.pl` that belong to them."""

from vivace.pl.canvas import need_plotting
from vivace.pl.check_figure import draw_check
from vivace.pl.de_figures import heatmap, volcano
from vivace.pl.overview_figure import draw_overview
from vivace.report.check_summary import summarise_check

__all__ = ["draw_check", "draw_overview", "heatmap", "need_plotting", "summarise_check", "volcano"]
