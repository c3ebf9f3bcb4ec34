"""Model folders on disk, ours and those of scvi-tools, and matrices larger than memory."""

from pathlib import Path

from vivace.data.schema import Schema
from vivace.store.arrays import fill_dense, fill_sparse
from vivace.store.folder import StoredModel, damaged_model, read_folder, write_folder
from vivace.store.scvi_tools import is_scvi_tools, read_scvi_tools, write_scvi_tools
from vivace.store.scvi_tools.read import UNUSED

__all__ = [
    "UNUSED",
    "StoredModel",
    "fill_dense",
    "fill_sparse",
    "read_folder",
    "read_genes",
    "read_model",
    "read_scvi_tools",
    "write_folder",
    "write_scvi_tools",
]


def read_genes(path: Path) -> tuple[tuple[str, ...], str | None]:
    """Names of the genes of the model in a folder, and the layer of its counts."""
    try:
        schema = Schema.from_dict(read_model(path).sections["schema"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged_model(path, error) from error
    return schema.genes, schema.declarations.layer


def read_model(path: Path) -> StoredModel:
    """The model in a folder, whichever of the two wrote it."""
    return read_scvi_tools(path) if is_scvi_tools(path) else read_folder(path)
