"""Pictures of a model; needs the extra ``vivace[plot]``."""

from vivace.report.check import draw_check, summarise_check
from vivace.report.de import heatmap, volcano
from vivace.report.overview import draw_overview, need_plotting

__all__ = ["draw_check", "draw_overview", "heatmap", "need_plotting", "summarise_check", "volcano"]
