"""Pictures of results, under the name that scanpy's users look for: ``vivace.pl.volcano``."""

from vivace.report.check import draw_check
from vivace.report.de import heatmap, volcano

__all__ = ["draw_check", "heatmap", "volcano"]
