"""Vectorisable elementary and gamma functions for the kernels."""
