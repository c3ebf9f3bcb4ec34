"""Pictures of a model; needs the extra ``vivace[plot]``."""

from vivace.report.overview import draw_overview, need_plotting

__all__ = ["draw_overview", "need_plotting"]
