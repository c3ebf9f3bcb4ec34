"""From a reference to a query: genes, categories, weights, labels.

In the order of use: ``genes.py`` (the query's genes as the reference has them),
``categories.py`` (its batches and covariates), ``labels.py`` (labels, from what neighbours and
genes say, ``neighbours.py`` and ``expression.py``), ``novelty.py``.  The surgery itself is ``nn/surgery.py``.
"""

from vivace.transfer.categories import extended
from vivace.transfer.cells import Labelled, LatentCells
from vivace.transfer.expression import log_normalised
from vivace.transfer.genes import GeneReport, aligned
from vivace.transfer.labels import (
    label_table,
    labels_of,
    sample_of,
    transfer_labels,
)
from vivace.transfer.options import LabelOptions

__all__ = [
    "GeneReport",
    "LabelOptions",
    "Labelled",
    "LatentCells",
    "aligned",
    "extended",
    "label_table",
    "labels_of",
    "log_normalised",
    "sample_of",
    "transfer_labels",
]
