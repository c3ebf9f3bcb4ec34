"""Model folders on disk, ours and those of scvi-tools, and matrices larger than memory."""
