"""From a reference to a query.

``genes.py`` aligns the genes of a query, ``query.py`` makes the model of a query
(``categories.py`` finds its new categories), and ``labels.py`` transfers labels:
``predictors.py`` combines the nearest cells (``neighbours.py``) with the genes
(``classifiers.py``), and ``novelty.py`` says how unlike the reference a cell is.
"""

from vivace.transfer.genes import GeneReport

__all__ = ["GeneReport"]
