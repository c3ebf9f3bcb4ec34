"""Model folders of scvi-tools: read without running code in them, and written."""

from vivace.store.scvi_tools.read import is_scvi_tools, read_scvi_tools
from vivace.store.scvi_tools.weights import weights_from_scvi_tools, weights_to_scvi_tools
from vivace.store.scvi_tools.write import write_scvi_tools

__all__ = [
    "is_scvi_tools",
    "read_scvi_tools",
    "weights_from_scvi_tools",
    "weights_to_scvi_tools",
    "write_scvi_tools",
]
