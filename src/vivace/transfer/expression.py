"""What the genes of a cell say of its label, by linear classifiers of two kinds.

The latent space keeps what explains the counts; what tells close types apart may be a few
genes in it.  One multinomial classifier says which label it is rather than another.  One
a label against the rest says so less well, but a cell that none of them claims is unlike
the reference, which a softmax cannot say.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit

from vivace.transfer.options import need_sklearn

Floats = NDArray[np.float64]
_SCALE = 1e4  # counts of a cell add up to it before the logarithm
_ITERATIONS = 100
_RELATIVES = 2  # labels that learn anew what they claim when another is taken out
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
    labels_r: NDArray[np.int64],
    n_labels: int,
    query_qg: sp.csr_matrix,
    seed: int,
) -> Floats:
    """Log odds with which each label claims each cell of the query, shape (q, labels).

    Both are :func:`log_normalised`, and the reference has two labels at least.  A label
    without a cell in it claims none: -inf.
    """
    odds = np.full((query_qg.shape[0], n_labels), -np.inf)
    for label in np.unique(labels_r):
        one = _fitted("liblinear", reference_rg, labels_r == label, seed)
        odds[:, label] = one.decision_function(query_qg)
    return odds


def claims_without(
    label: int,
    odds_qn: Floats,
    its_own: NDArray[np.int64],
    reference_rg: sp.csr_matrix,
    labels_r: NDArray[np.int64],
    query_qg: sp.csr_matrix,
    seed: int,
) -> Floats:
    """What :func:`claims` would say if the reference did not have ``label``; ``odds_qn`` is what it said.

    ``its_own`` are rows of the query with that label.  Learnt anew are the two labels
    that claim these most; to tell the others apart the cells of ``label`` mattered less.
    """
    odds = odds_qn.copy()
    odds[:, label] = -np.inf
    others = labels_r != label
    learnt, known = reference_rg[others], labels_r[others]
    nearest = np.argsort(-odds[its_own].mean(0), kind="stable")[:_RELATIVES]
    for relative in np.intersect1d(nearest, known):
        one = _fitted("liblinear", learnt, known == relative, seed)
        odds[:, relative] = one.decision_function(query_qg)
    return odds


def contrasts(
    reference_rg: sp.csr_matrix,
    labels_r: NDArray[np.int64],
    n_labels: int,
    query_qg: sp.csr_matrix,
) -> Floats:
    """Probabilities of the labels by one multinomial classifier, shape (q, labels)."""
    shares = np.zeros((query_qg.shape[0], n_labels))
    one = _fitted("lbfgs", reference_rg, labels_r)
    shares[:, one.classes_] = one.predict_proba(query_qg)
    return shares


def shares_of(odds: Floats) -> Floats:
    """Probabilities that the claims make, shape (q, labels)."""
    claimed = expit(odds) + 1e-9
    shares: Floats = claimed / claimed.sum(1, keepdims=True)
    return shares


def _fitted(solver: str, genes: sp.csr_matrix, target: NDArray[Any], seed: int = 0) -> Any:
    need_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    one = LogisticRegression(solver=solver, max_iter=_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return one.fit(genes, target)


def components(expression_qg: sp.csr_matrix, rng: np.random.Generator) -> Floats:
    """Where cells lie by their own expression alone, shape (q, at most 20)."""
    need_sklearn()
    from sklearn.decomposition import TruncatedSVD

    n = min(_COMPONENTS, *expression_qg.shape)
    if n == 1 or expression_qg.nnz == 0:  # which TruncatedSVD does not take
        return np.asarray(expression_qg[:, :1].toarray())
    svd = TruncatedSVD(n, random_state=int(rng.integers(2**31)))
    with np.errstate(divide="ignore", invalid="ignore"):  # shares of no variance, not asked for
        return np.asarray(svd.fit_transform(expression_qg))
