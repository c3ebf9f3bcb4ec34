"""Differential expression: which genes differ between groups of cells, and how sure that is.

Read in this order: ``differential.py``, which calls the others; ``groups.py`` (which cells),
``sampling.py`` and ``draws.py`` (draws of their expression); ``compare.py`` (between cells:
``change.py`` has the fold changes) or ``samples.py`` (between samples: ``replicates.py`` has
the statistics); ``counts.py`` and ``result.py`` (the table).
"""

from vivace.de.differential import differential_expression
from vivace.de.groups import Plan, plan, samples_of
from vivace.de.options import Mode, Options, TestMode, change_function, levels
from vivace.de.result import to_scanpy
from vivace.de.sampling import Sampling

__all__ = [
    "Mode",
    "Options",
    "Plan",
    "Sampling",
    "TestMode",
    "change_function",
    "differential_expression",
    "levels",
    "plan",
    "samples_of",
    "to_scanpy",
]
