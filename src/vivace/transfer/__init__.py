"""From a reference to a query: genes, categories, weights, labels.

In the order of use: ``genes.py`` (the query's genes as the reference has them),
``categories.py`` (its batches and covariates), ``labels.py`` (what the neighbours in the
reference are).  The surgery itself is ``nn/surgery.py``.
"""

from vivace.transfer.categories import extended
from vivace.transfer.genes import GeneReport, aligned

__all__ = ["GeneReport", "aligned", "extended"]
