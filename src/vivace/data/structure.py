"""Whether the arrays of a sparse matrix fit its shape.

SciPy does not check that when a matrix is made of arrays or read from a file, and kernels that
follow a wrong index read or write memory outside of their arrays.
"""

from __future__ import annotations

from typing import Any

import scipy.sparse as sp

from vivace.errors import DataError


def check_structure(matrix: Any, location: str, *, indices: bool = True) -> None:
    """Refuse a CSR or CSC matrix with pointers or indices out of range; others pass.

    Parameters
    ----------
    matrix
        Matrix of n cells x g genes.
    location
        Where it is, for the message.
    indices
        Whether to look at the indices too, which takes one pass over them; otherwise only the
        pointers are checked.

    Raises
    ------
    DataError
        If the matrix is damaged.
    """
    if not sp.issparse(matrix) or matrix.format not in ("csr", "csc"):
        return
    pointers, places = matrix.indptr, matrix.indices
    is_csr = matrix.format == "csr"
    n_major, n_minor = matrix.shape if is_csr else matrix.shape[::-1]
    problem = None
    if len(pointers) != n_major + 1 or len(places) != len(matrix.data):
        problem = "its arrays differ in length"
    elif pointers[0] != 0 or pointers[-1] > len(places) or (pointers[1:] < pointers[:-1]).any():
        problem = f"its pointers do not rise from 0 to at most {len(places):,}"
    elif indices and len(used := places[: pointers[-1]]):
        # one pass: read without a sign, negative numbers are the largest
        most = used.view(f"u{used.itemsize}").max()
        if most >= n_minor:
            kind, wrong = "gene" if is_csr else "cell", most.astype(used.dtype)
            problem = f"it has an entry of {kind} number {wrong} among {n_minor:,}"
    if problem is not None:
        raise DataError(
            f"{location} is a damaged sparse matrix ({problem}); read it again from the raw data."
        )
