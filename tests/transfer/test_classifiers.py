"""Classifiers of labels by genes, and cells by their own expression."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial.distance import cdist

from vivace.transfer.classifiers import (
    label_log_odds,
    log_normalise,
    odds_to_shares,
    principal_components,
)


@pytest.mark.parametrize("shape", [(40, 30), (3, 30), (40, 1)])
def test_components_keep_the_distances_of_cells_that_few_genes_tell_apart(shape):
    rng = np.random.default_rng(0)
    genes = np.zeros(shape)
    genes[:, :5] = rng.normal(size=(shape[0], min(5, shape[1])))
    result = principal_components(sp.csr_matrix(genes), rng)
    np.testing.assert_allclose(cdist(result, result), cdist(genes, genes), atol=1e-6)


def test_cells_that_are_all_the_same_have_components():
    result = principal_components(sp.csr_matrix(np.ones((30, 20))), np.random.default_rng(0))
    np.testing.assert_allclose(result, result[:1].repeat(30, axis=0), atol=1e-9)


def test_cells_without_any_counts_have_components():
    result = principal_components(sp.csr_matrix((30, 20)), np.random.default_rng(0))
    np.testing.assert_array_equal(result, np.zeros_like(result))


def test_counts_are_scaled_to_ten_thousand_before_the_logarithm():
    counts = sp.csr_matrix(np.array([[1.0, 0, 3], [0, 0, 0]], np.float32))
    expected = [[np.log1p(2_500), 0, np.log1p(7_500)], [0, 0, 0]]
    np.testing.assert_allclose(log_normalise(counts).toarray(), expected)
    assert counts[0, 2] == 3


def test_a_label_claims_the_cells_that_have_its_gene():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    genes = rng.random((90, 6))
    genes[np.arange(90), labels] += 5
    odds = label_log_odds(sp.csr_matrix(genes), labels, 4, sp.csr_matrix(genes), 0)
    np.testing.assert_array_equal(odds.argmax(1), labels)
    assert np.isneginf(odds[:, 3]).all()
    np.testing.assert_allclose(odds_to_shares(odds).sum(1), 1.0)
    nobody = sp.csr_matrix(rng.random((5, 6)))
    claimed = label_log_odds(sp.csr_matrix(genes), labels, 4, nobody, 0).max(1)
    assert claimed.max() < odds[np.arange(90), labels].min()


def test_classifiers_learn_the_same_on_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    genes, labels = sp.csr_matrix(rng.random((200, 9))), rng.integers(0, 7, 200)
    result = []
    for n in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        result.append(label_log_odds(genes, labels, 7, genes, 0))
    np.testing.assert_array_equal(*result)
