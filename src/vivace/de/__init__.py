"""Differential expression: which genes differ between groups of cells, with what probability.

Start with ``differential.py``, the public function, which calls the others in this order:
``options.py`` and ``plan.py`` (what is compared with what), ``counts.py`` (sums of counts), then
``effects.py`` (between cells) or ``replicates.py`` (across donors), and ``result_table.py``.
``samples.py`` samples the expression of groups; ``thresholds.py`` chooses the pseudocount and
delta; ``pairs.py`` computes intervals and users' effects; ``histograms.py`` holds the kernels.
"""
