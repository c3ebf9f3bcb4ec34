"""What the genes of a cell say about its label: one linear classifier per label.

The latent space keeps what explains the counts, but what separates similar types may be a few
genes. Each classifier separates its label from all others, and a cell that no classifier claims
is unlike the reference. The softmax of a multinomial classifier would have to claim it.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
from scipy.special import expit

from vivace.config import settings
from vivace.transfer.neighbours import need_sklearn
from vivace.types import F64, I64

_SCALE = 1e4  # total of a cell's counts before the logarithm
_MAX_ITERATIONS = 100
_MAX_THREADS = 4  # each holds a copy of the reference while fitting
_N_COMPONENTS = 20


def log_normalise(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + counts, scaled to ten thousand per cell), a new float64 CSR."""
    x = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    total = np.asarray(x.sum(1)).ravel()
    x.data *= np.repeat(_SCALE / np.where(total > 0, total, 1.0), np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    return x


def label_log_odds(
    reference_rg: sp.csr_matrix,
    labels_r: I64,
    n_labels: int,
    query_qg: sp.csr_matrix,
    seed: int,
) -> F64:
    """Log odds of each label against all others for each cell of the query, shape (q, labels).

    Parameters
    ----------
    reference_rg, query_qg
        Expression from :func:`log_normalise`.
    labels_r
        Codes of the reference's labels, at least two different ones. A label without a cell
        has log odds -inf.
    n_labels
        Number of labels.
    seed
        Random seed of the classifiers.
    """
    need_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    odds = np.full((query_qg.shape[0], n_labels), -np.inf)
    present = np.unique(labels_r)

    def classify(label: np.int64) -> F64:
        model = LogisticRegression(solver="liblinear", max_iter=_MAX_ITERATIONS, random_state=seed)
        log_odds: F64 = model.fit(reference_rg, labels_r == label).decision_function(query_qg)
        return log_odds

    n_threads = min(settings.num_threads, _MAX_THREADS)
    with warnings.catch_warnings(), ThreadPoolExecutor(n_threads) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        odds[:, present] = np.stack(list(pool.map(classify, present)), axis=1)
    return odds


def odds_to_shares(odds: F64) -> F64:
    """Probabilities of the labels, scaled to sum to 1 per cell, shape (q, labels)."""
    probability = expit(odds) + 1e-9
    shares: F64 = probability / probability.sum(1, keepdims=True)
    return shares


def principal_components(expression_qg: sp.csr_matrix, rng: np.random.Generator) -> F64:
    """Coordinates of cells from their own expression alone, shape (q, at most 20)."""
    need_sklearn()
    from sklearn.decomposition import TruncatedSVD

    n = min(_N_COMPONENTS, *expression_qg.shape)
    if n == 1 or expression_qg.nnz == 0:  # TruncatedSVD does not take these
        return np.asarray(expression_qg[:, :1].toarray())
    svd = TruncatedSVD(n, random_state=int(rng.integers(2**31)))
    with np.errstate(divide="ignore", invalid="ignore"):  # explained shares, which are not used
        return np.asarray(svd.fit_transform(expression_qg))
