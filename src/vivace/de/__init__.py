"""Differential expression: which genes differ between groups of cells, and how sure that is.

Read in this order: ``differential.py``, which calls the others; ``groups.py`` (which cells),
``sampling.py`` and ``draws.py`` (samples of their expression); ``compare.py`` (between cells:
``change.py`` has the fold changes) or ``samples.py`` (between samples: ``replicates.py`` has
the statistics); ``counts.py`` and ``result.py`` (the table).
"""
