"""Model folders on disk."""

from vivace.store.folder import StoredModel, read_folder, write_folder

__all__ = ["StoredModel", "read_folder", "write_folder"]
