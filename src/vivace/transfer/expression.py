"""What the genes of a cell say of its label: one linear classifier a label against the rest.

The latent space keeps what explains the counts; what tells close types apart may be a few
genes in it.  And a cell that no classifier claims is unlike the reference: the softmax of
a multinomial classifier would have to claim it.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
from scipy.special import expit

from vivace.config import settings
from vivace.transfer.options import need_sklearn
from vivace.types import F64, I64

_SCALE = 1e4  # counts of a cell add up to it before the logarithm
_ITERATIONS = 100
_MOST_THREADS = 4  # each holds a copy of the reference while it learns
_COMPONENTS = 20


def log_normalised(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + counts of a cell as parts of ten thousand), float64 CSR, new."""
    x = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    total = np.asarray(x.sum(1)).ravel()
    x.data *= np.repeat(_SCALE / np.where(total > 0, total, 1.0), np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    return x


def claims(
    reference_rg: sp.csr_matrix,
    labels_r: I64,
    n_labels: int,
    query_qg: sp.csr_matrix,
    seed: int,
) -> F64:
    """Log odds with which each label claims each cell of the query, shape (q, labels).

    Both are :func:`log_normalised`, and the reference has two labels at least.  A label
    without a cell in it claims none: -inf.
    """
    need_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    odds = np.full((query_qg.shape[0], n_labels), -np.inf)
    present = np.unique(labels_r)

    def claimed_by(label: np.int64) -> F64:
        one = LogisticRegression(solver="liblinear", max_iter=_ITERATIONS, random_state=seed)
        found: F64 = one.fit(reference_rg, labels_r == label).decision_function(query_qg)
        return found

    n_threads = min(settings.num_threads, _MOST_THREADS)
    with warnings.catch_warnings(), ThreadPoolExecutor(n_threads) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        odds[:, present] = np.stack(list(pool.map(claimed_by, present)), axis=1)
    return odds


def shares_of(odds: F64) -> F64:
    """Probabilities that the claims make, shape (q, labels)."""
    claimed = expit(odds) + 1e-9
    shares: F64 = claimed / claimed.sum(1, keepdims=True)
    return shares


def components(expression_qg: sp.csr_matrix, rng: np.random.Generator) -> F64:
    """Where cells lie by their own expression alone, shape (q, at most 20)."""
    need_sklearn()
    from sklearn.decomposition import TruncatedSVD

    n = min(_COMPONENTS, *expression_qg.shape)
    if n == 1 or expression_qg.nnz == 0:  # which TruncatedSVD does not take
        return np.asarray(expression_qg[:, :1].toarray())
    svd = TruncatedSVD(n, random_state=int(rng.integers(2**31)))
    with np.errstate(divide="ignore", invalid="ignore"):  # shares of no variance, not asked for
        return np.asarray(svd.fit_transform(expression_qg))
