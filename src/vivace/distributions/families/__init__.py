"""The families of distributions, one per file, and their base."""
