"""Posterior samples of groups: cells, latent positions, and the covariates of the decoding."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scipy import stats

from vivace import model
from vivace.data.schema import Codes
from vivace.de import samples
from vivace.de.samples import ExpressionSamples, gene_blocks, sample_latents

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
OBSERVED = (Codes(),)
BATCHES = (Codes(0), Codes(1))
DONORS = tuple(Codes(None, ((0, i),)) for i in range(3))
WEIGHTING = {"max_cells": 20, "truncation": False, "n_mc_samples": 3}


@pytest.fixture(autouse=True)
def _no_gradients():
    """Without gradients, as in every question."""
    with torch.no_grad():
        yield


def get_expression(groups, **options):
    return ExpressionSamples(groups, groups[0].cells.network.dims.n_genes, **options)


def whole(expression):
    """Expression of all genes in all samples, shape (g, m)."""
    blocks = list(expression.blocks())
    positions = np.concatenate([np.arange(genes.start, genes.stop) for genes, _ in blocks])
    np.testing.assert_array_equal(positions, np.arange(expression.n_genes))
    return np.concatenate([x for _, x in blocks])


def decoded_as(model, group, transform):
    """The result of the public ``decode`` at the same points, (m, g)."""
    z = torch.softmax(group.z, -1) if model.config.latent_distribution == "ln" else group.z
    result = model.decode(z, indices=group.cells.rows, transform_batch=transform)
    name = "normal_mu" if model.config.gene_likelihood == "normal" else "scale"
    return getattr(result, name).numpy()


# ---- which cells -------------------------------------------------------------


@pytest.mark.parametrize("codes", [OBSERVED, BATCHES, DONORS], ids=len)
@pytest.mark.parametrize("n_samples", [1, 2, 7, 39, 40, 41, 400, 1001])
def test_every_cell_is_sampled_equally_often(cells, n_samples, codes):
    rows = np.arange(100, 140)
    group = sample_latents(cells.take(rows), n_samples, codes, 3, None)
    assert len(group) == -(-n_samples // len(codes)) * len(codes)
    assert group.codes == codes
    assert len(group.z) == len(group.log_library) == len(group.cells) == len(group)
    assert set(group.cells.rows) <= set(rows)
    often = np.bincount(group.cells.rows, minlength=140)[rows]
    assert often.max() - often.min() <= 1


def test_which_cells_come_more_often_and_when_is_chance(cells):
    first = np.concatenate(
        [
            sample_latents(cells.take(np.arange(10)), 4, OBSERVED, s, None).cells.rows
            for s in range(300)
        ]
    )
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > 1e-3


@pytest.mark.parametrize("codes", [OBSERVED, BATCHES, DONORS], ids=len)
def test_segments_are_equal_and_cover_all_samples(cells, codes):
    group = sample_latents(cells, 50, codes, 0, None)
    result = list(group.segments())
    assert [code for _, code in result] == list(codes)
    places = np.concatenate([np.arange(len(group))[s] for s, _ in result])
    np.testing.assert_array_equal(places, np.arange(len(group)))
    assert len({s.stop - s.start for s, _ in result}) == 1


def test_z_is_sampled_from_the_posterior_of_its_cell(covered, cells):
    group = sample_latents(cells, 3000, OBSERVED, 5, None)
    mean, variance = covered.get_latent_representation(return_dist=True)
    rows = group.cells.rows
    standard = (group.z.numpy() - mean[rows]) / np.sqrt(variance[rows])
    for column in standard.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(standard.T), np.eye(3), atol=0.1)
    library = np.asarray(covered.adata.X.sum(1)).ravel()
    np.testing.assert_allclose(group.log_library.exp(), library[rows], rtol=1e-5)


@pytest.mark.parametrize("weighting", [None, WEIGHTING], ids=["uniform", "importance"])
def test_samples_follow_from_the_seed(cells, weighting):
    first, again, other = (sample_latents(cells, 60, BATCHES, s, weighting) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.cells.rows, again.cells.rows)
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, other.z)
    assert (first.cells.rows != other.cells.rows).any()
    assert len(first) == 60


@pytest.mark.parametrize("weighting", [None, WEIGHTING], ids=["uniform", "importance"])
def test_samples_do_not_depend_on_the_batch_size(covered, weighting):
    few, many = (
        sample_latents(covered._cells(None, None, size, True), 70, BATCHES, 1, weighting)
        for size in (7, 512)
    )
    np.testing.assert_array_equal(few.cells.rows, many.cells.rows)
    torch.testing.assert_close(few.z, many.z, rtol=1e-5, atol=1e-5)
    x, y = (whole(get_expression([group])) for group in (few, many))
    np.testing.assert_allclose(x, y, rtol=1e-4)


# ---- what is decoded ---------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_expression_is_what_the_model_decodes(folder):
    """Every likelihood, library and latent distribution; cells with their own categories."""
    copy = model.load(GOLDEN / folder, anndata.read_h5ad(GOLDEN / "adata.h5ad"))
    cells = copy._cells(None, None, None, True)
    groups = [
        sample_latents(cells.take(np.arange(50)), 30, OBSERVED, 0, None),
        sample_latents(cells.take(np.arange(60, 300)), 41, OBSERVED, 1, None),
    ]
    wanted = np.concatenate([decoded_as(copy, group, None) for group in groups])
    np.testing.assert_allclose(whole(get_expression(groups)), wanted.T, rtol=2e-5, atol=1e-9)


def test_each_segment_is_decoded_as_its_categories(covered, cells):
    group = sample_latents(cells, 60, DONORS, 0, None)
    other = sample_latents(cells.take(np.arange(9)), 20, BATCHES, 1, None)
    result = whole(get_expression([group, other]))
    for i in range(3):
        wanted = decoded_as(covered, group, {"donor": f"d{i}"})
        positions = slice(20 * i, 20 * (i + 1))
        np.testing.assert_allclose(result[:, positions], wanted[positions].T, rtol=2e-5)
    for i in range(2):
        positions = slice(10 * i, 10 * (i + 1))
        wanted = decoded_as(covered, other, f"b{i}")[positions]
        np.testing.assert_allclose(result[:, 60:][:, positions], wanted.T, rtol=2e-5)


@pytest.mark.parametrize("genes_at_once", [1, 7, 29, 30, 31])
def test_blocks_of_genes_are_the_same_as_all_together(cells, monkeypatch, genes_at_once):
    groups = [
        sample_latents(cells, 50, BATCHES, 0, None),
        sample_latents(cells, 33, OBSERVED, 1, None),
    ]
    once = get_expression(groups)
    wanted, (mean, largest) = whole(once), once.summarise()
    monkeypatch.setattr("vivace.de.samples.MAX_VALUES", genes_at_once * 83 + 82)
    blocks = gene_blocks(groups, 30)
    assert len(blocks) == -(-30 // genes_at_once)
    expression = get_expression(groups)
    # exp of a difference of logarithms near 10: a unit in their last place is 1e-6 of it
    np.testing.assert_allclose(whole(expression), wanted, rtol=5e-6)
    for result, expected in zip(expression.summarise(), (mean, largest), strict=True):
        np.testing.assert_allclose(result, expected, rtol=5e-6)
    assert whole(get_expression(groups, all_genes=True)).shape == (30, 83)
    assert len(list(get_expression(groups, all_genes=True).blocks())) == 1


def test_the_summary_is_of_each_group(cells):
    groups = [sample_latents(cells, n, OBSERVED, n, None) for n in (1, 50, 20)]
    expression = get_expression(groups)
    x = whole(expression).astype(np.float64)
    mean, largest = expression.summarise()
    for i, (start, stop) in enumerate([(0, 1), (1, 51), (51, 71)]):
        np.testing.assert_array_equal(expression.positions[i], np.arange(start, stop))
        np.testing.assert_allclose(mean[i], x[:, start:stop].mean(1), rtol=1e-12)
        np.testing.assert_array_equal(largest[i], x[:, start:stop].max(1))


def test_a_large_model_is_decoded_in_blocks():
    """12,000 samples of 36,000 genes are not held in memory at once."""
    assert samples.MAX_VALUES < 12_000 * 36_000
