"""From a reference to a query: genes, categories, weights, labels."""

from vivace.transfer.genes import GeneReport

__all__ = ["GeneReport"]
