"""Figures, under the name that scanpy users expect; needs the extra ``vivace[plot]``."""

from vivace.pl.check_figure import draw_check
from vivace.pl.de_figures import heatmap, volcano

__all__ = ["draw_check", "heatmap", "volcano"]
