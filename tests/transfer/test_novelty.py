"""How novel cells of a query are: what is measured, how it is weighed, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from blobs import blobs, transferred, two_batches
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from vivace.transfer import (
    Labelled,
    LabelOptions,
    LatentCells,
    labels,
    novelty,
    sample_of,
    transfer_labels,
)
from vivace.transfer.expression import claims, claims_without
from vivace.transfer.neighbours import crowding, near_each_other, nearest
from vivace.transfer.novelty import Company, Sight, companies, ranks, share_below
from vivace.transfer.rehearsal import Rehearsal, rehearse, weights


@pytest.fixture(scope="module")
def reference():
    return two_batches(150)


def with_genes(n, seed, own=None):
    """Cells of three labels, each with two genes of its own, of twelve."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3 if own is None else np.asarray(own)
    genes = rng.random((n, 12))
    for marker in (0, 1):
        genes[np.arange(n), 2 * label + marker] += 1.5
    places = rng.normal(size=(n, 2)) + 2 * label[:, None]
    cells = LatentCells(places, np.full((n, 2), 0.01), sp.csr_matrix(genes))
    return Labelled(cells, label, np.zeros(n, np.int64), 3)


def seen(query, reference, size=500, genes=True):
    """What is seen of a query's cells."""
    cells = query.cells if genes else query.cells.without_genes()
    learnt = (reference.cells.expression, reference.labels, reference.n_labels)
    odds = claims(*learnt, cells.expression, 0) if genes else None
    near = nearest(reference.cells.places(), cells.places(), 15)
    groups = companies(cells, size, np.random.default_rng(0))
    return Sight(cells, odds, reference, reference, near, groups)


# ---- what is measured -----------------------------------------------------------------


def test_nearest_and_how_often_each_is_against_all_distances():
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(40, 3)), rng.normal(size=(25, 3))
    found = nearest(known, points, 6)
    distance = cdist(points, known)
    np.testing.assert_array_equal(found.found, np.argsort(distance)[:, :6])
    np.testing.assert_allclose(found.distance, np.sort(distance)[:, :6])
    others = np.argsort(cdist(known, known) + 1e9 * np.eye(40))[:, :6]
    np.testing.assert_array_equal(found.in_degree, [(others == i).sum() for i in range(40)])
    assert nearest(known[:1], points, 6).in_degree.tolist() == [0]


def test_crowding_counts_who_shares_the_nearest_reference_cells():
    rng = np.random.default_rng(0)
    near = nearest(rng.normal(size=(30, 3)), rng.normal(size=(50, 3)), 4)
    ratio = np.zeros(50)
    for i, mine in enumerate(near.found):
        points = sum(int((near.found == one).sum()) for one in mine) / 50
        cells = (sum(int(near.in_degree[one]) for one in mine) + 1) / 30
        ratio[i] = np.log(points / cells)
    ratio -= np.median(ratio)
    np.testing.assert_allclose(crowding(near), ratio / (np.median(np.abs(ratio)) + 1e-3))


def test_crowding_of_points_that_are_all_the_same_is_none():
    near = nearest(np.zeros((5, 2)), np.zeros((9, 2)), 3)
    np.testing.assert_array_equal(crowding(near), np.zeros(9))


@pytest.mark.parametrize("n_known", [300, 600, 6_000])
def test_crowding_finds_what_only_the_query_has(n_known):
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(n_known, 3)), rng.normal(size=(600, 3))
    new = np.arange(600) % 20 == 0
    points[new] = 0.1 * points[new] + 1  # among the known cells, but denser
    found = crowding(nearest(known, points, 5))
    assert np.median(found[new]) > np.quantile(found[~new], 0.9)
    assert abs(np.median(found)) < 1e-12


def test_points_near_each_other_against_all_distances():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    expected = np.argsort(cdist(points, points))[:, :4]
    np.testing.assert_array_equal(near_each_other(points, 4), expected)
    assert near_each_other(points[:2], 4).shape == (2, 2)


@pytest.mark.parametrize("sizes", [(900, 100), (1_900, 60)])
@pytest.mark.parametrize("n", [40, 500])
def test_batches_need_not_be_as_large(sizes, n):
    """Distances shrink with the number of cells that they are measured to."""
    reference = two_batches(*sizes)
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    found = np.concatenate([transferred(reference, query).novelty for query in queries])
    assert abs(np.median(found) - 0.5) < 0.2
    assert (found > 0.95).mean() < 0.12


def test_a_sample_of_a_large_reference_measures_the_same_novelty(monkeypatch):
    monkeypatch.setattr(labels, "_MOST_CELLS", 600)
    rng = np.random.default_rng(0)
    whole, (query, truth, _) = two_batches(3_000), blobs(2_000, 0, 9)
    kept = (whole.labels == 0) | (rng.random(6_000) < 0.03)  # 2 % are of other labels
    reference = whole.at(np.flatnonzero(kept))
    some = reference.at(sample_of(reference.labels, rng))
    asked = query.at(np.flatnonzero((truth == 0) | (rng.random(2_000) < 0.03)))
    found = transfer_labels(reference, some, asked, LabelOptions(), rng).novelty
    assert (found > 0.95).mean() < 0.1
    assert (found > 0.9).mean() < 0.17


@pytest.mark.parametrize("n", [40, 600, 2_000, 6_000])
def test_cells_like_the_reference_have_evenly_spread_novelty(n):
    queries = [blobs(n, 0, seed)[0] for seed in range(10, 12 + 1_000 // n)]
    reference = two_batches(1_500)
    found = np.concatenate([transferred(reference, query).novelty for query in queries])
    for level in (0.5, 0.9, 0.95):
        assert abs((found > level).mean() - (1 - level)) < 0.06


def test_a_query_is_judged_in_groups_as_held_out_cells_are(monkeypatch):
    """Of 150 held-out cells fifteen are a tenth, of a query of 6,000 they would be few."""
    sizes = []

    def noted(cells, size, rng):
        found = companies(cells, size, rng)
        sizes.extend(len(company.rows) for company in found)
        return found

    monkeypatch.setattr(labels, "companies", noted)
    transferred(two_batches(150), blobs(3_000, 0, 1)[0])
    assert sizes == [150] * 22
    sizes.clear()
    transferred(two_batches(150), blobs(60, 0, 1)[0])
    assert sizes == [60, 75, 75, 75, 75]
    sizes.clear()
    transferred(two_batches(150), blobs(90, 0, 1)[0])
    assert sizes == [90, 75, 75, 75, 75]
    sizes.clear()
    transferred(two_batches(150), blobs(49, 0, 1)[0])
    assert sizes == []


def test_cells_of_a_kind_are_judged_together():
    query = with_genes(200, 1)
    sight = seen(query, with_genes(150, 0), size=200)
    found = sight.untypical()
    alone = -sight.odds.max(1)
    (company,) = sight.companies
    like = np.argsort(cdist(company.own, company.own), axis=1)[:, :15]
    crowded = crowding(sight.near)[company.rows]
    assert sorted(company.rows) == list(range(200))
    np.testing.assert_allclose(found[:, 0], alone)
    np.testing.assert_allclose(found[company.rows, 1], alone[company.rows][like].mean(1))
    np.testing.assert_allclose(found[company.rows, 2], crowded[like].mean(1), atol=1e-9)
    assert (query.labels[company.rows][like] == query.labels[company.rows][:, None]).mean() > 0.9


def test_without_company_a_cell_is_judged_by_itself_and_without_genes_by_distance():
    query, reference = with_genes(60, 1), with_genes(150, 0)
    np.testing.assert_allclose(
        seen(query, reference, size=49).untypical(), -seen(query, reference).odds.max(1)[:, None]
    )
    distance = np.sort(cdist(query.cells.mean, reference.cells.mean))[:, :15].mean(1)
    np.testing.assert_allclose(
        seen(query, reference, genes=False).untypical()[:, 0], np.log(distance)
    )


def test_some_of_the_cells_in_company():
    company = Company(np.array([7, 2, 5, 0]), np.arange(8.0).reshape(4, 2))
    found = company.only(np.array([0, 3, 7]))
    np.testing.assert_array_equal(found.rows, [2, 0])
    np.testing.assert_array_equal(found.own, [[0, 1], [6, 7]])


@pytest.mark.parametrize("genes", [True, False])
def test_some_of_the_cells_look_as_they_do_when_they_are_all_there_are(genes):
    query, reference = with_genes(120, 1), with_genes(150, 0)
    kept = np.arange(0, 120, 2)
    some = replace(query, cells=query.cells.at(kept))
    found = seen(query, reference, genes=genes).only(kept).untypical()
    expected = seen(some, reference, genes=genes).untypical()
    np.testing.assert_allclose(found[:, 0], expected[:, 0])
    if not genes:  # with genes the components are those of all
        np.testing.assert_allclose(found, expected, atol=1e-9)


# ---- labels that are taken out ----------------------------------------------------------


def test_without_a_label_its_relatives_claim_as_if_it_had_never_been():
    reference, query = with_genes(150, 0), with_genes(90, 1)
    genes, labels = reference.cells.expression, reference.labels
    odds = claims(genes, labels, 3, query.cells.expression, 0)
    own = np.flatnonzero(query.labels == 1)
    found = claims_without(1, odds, own, genes, labels, query.cells.expression, 0)
    rest = labels != 1
    expected = claims(genes[rest], labels[rest], 3, query.cells.expression, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.isneginf(found[:, 1]).all()
    assert np.isfinite(odds).all()  # which are left as they are


def test_only_the_labels_that_claim_the_cells_most_learn_anew():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 5
    genes = sp.csr_matrix(rng.random((200, 8)) + 2 * np.eye(5, 8)[labels])
    odds = rng.normal(size=(200, 5))
    odds[:, [1, 3]] += 9
    found = claims_without(4, odds, np.flatnonzero(labels == 4), genes, labels, genes, 0)
    assert [bool(np.array_equal(found[:, i], odds[:, i])) for i in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize("genes", [True, False])
def test_a_rehearsal_is_the_reference_without_the_label(genes):
    reference, query = with_genes(150, 0), with_genes(120, 1)
    sight = seen(query, reference, genes=genes)
    found = rehearse(sight, query.labels, np.random.default_rng(0))
    assert [r.new.sum() for r in found] == [40, 5] * 3
    assert [len(r.new) for r in found] == [120, 85] * 3
    for r in found[::2]:
        (label,) = set(query.labels[r.new])
        rest = reference.at(np.flatnonzero(reference.labels != label))
        expected = seen(query, rest, genes=genes).untypical()
        np.testing.assert_allclose(r.untypical, expected, rtol=1e-3, atol=1e-3)


def test_what_is_not_rehearsed():
    """Labels of few cells; where one label would be left to tell from genes; without company."""
    reference = with_genes(150, 0)
    rare = with_genes(100, 1, own=np.repeat([0, 1, 2], [60, 26, 14]))
    found = rehearse(seen(rare, reference), rare.labels, np.random.default_rng(0))
    assert sorted(int(r.new.sum()) for r in found) == [5, 5, 26, 60]
    two = reference.at(np.flatnonzero(reference.labels < 2))
    rng = np.random.default_rng(0)
    assert rehearse(seen(rare, two), rare.labels, rng) == []
    assert len(rehearse(seen(rare, two, genes=False), rare.labels, rng)) == 4
    assert rehearse(seen(rare, reference, size=40), rare.labels, rng) == []


# ---- what becomes of it -----------------------------------------------------------------


def test_a_measure_is_heard_as_far_as_it_tells_new_cells():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(400, 3))
    new = np.arange(400) < 100
    values = rng.normal(size=(400, 3))
    values[new] += [3.0, 0.0, -3.0]  # the first tells, the second does not, the third misleads
    found = weights(known, [Rehearsal(values, new, 1.0)])
    assert found[0] > 5 * found[1] > 0
    assert found[2] == 0
    np.testing.assert_allclose(found.mean(), 1.0)
    values[new, 2] += 3.0
    other = Rehearsal(values[:, [1, 0, 2]], new, 3.0)  # the second tells, and counts three times
    found = weights(known, [Rehearsal(values, new, 1.0), other])
    assert found[1] > 1.5 * found[0] > 0
    np.testing.assert_array_equal(weights(known, []), np.ones(3))
    np.testing.assert_array_equal(weights(known[:20], [other]), np.ones(3))


def test_novelty_is_the_rank_of_a_weighted_sum_of_ranks():
    rng = np.random.default_rng(0)
    known, values = rng.normal(size=(500, 2)), rng.normal(size=(50, 2)) - 1
    found = novelty.novelty(known, values, np.array([2.0, 1.0]))
    one, other = (2 * x[:, 0] + x[:, 1] for x in (ranks(known, known), ranks(known, values)))
    np.testing.assert_allclose(found, share_below(one, other))
    np.testing.assert_array_equal(
        novelty.novelty(known, values, np.array([0.0, 7.0])).argsort(),
        novelty.novelty(known[:, 1:], values[:, 1:], np.ones(1)).argsort(),
    )


def test_a_new_label_amid_others_is_found_by_the_crowding():
    """Where the reference's own labels overlap, distance says nothing of a label taken out."""

    def overlapping(n, seed, batch, labels):
        rng = np.random.default_rng(seed)
        label = rng.choice(labels, n)
        angle = label * np.pi / 3
        centre = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        mean = (centre + 0.5 * rng.normal(size=(n, 2))).astype(np.float32)
        cells = LatentCells(mean, np.full((n, 2), 1e-4, np.float32))
        return cells, label, np.full(n, batch)

    parts = [overlapping(600, b, b, [0, 1, 2, 4, 5]) for b in (0, 1)]
    mean = np.concatenate([p[0].mean for p in parts])
    codes = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    reference = Labelled(LatentCells(mean, np.full_like(mean, 1e-4)), *codes, 6)
    query, truth, _ = overlapping(600, 7, 2, range(6))
    near = nearest(mean, query.mean, 15)
    by_distance = roc_auc_score(truth == 3, near.distance.mean(1))
    found = roc_auc_score(truth == 3, transferred(reference, query).novelty)
    assert found > 0.85
    assert found > by_distance + 0.05


def test_cells_of_a_label_that_the_reference_has_not_are_novel(reference):
    query, truth, _ = blobs(300, 0, 9, labels=4)
    novelty = transferred(reference, query).novelty
    assert novelty[truth == 3].min() > np.median(novelty[truth < 3])
    assert (novelty[truth == 3] > 0.95).mean() > 0.95
    assert ((novelty >= 0) & (novelty <= 1)).all()


def test_further_cells_are_more_novel_beyond_all_that_was_held_out(reference):
    far = LatentCells(np.float32([[30, 30], [60, 60]]), np.full((2, 2), 1e-6, np.float32))
    one, other = transferred(reference, far).novelty
    assert 0.99 < one <= other


def test_shares_below_against_a_count():
    known = np.random.default_rng(0).normal(size=500)
    values = np.linspace(-3, 1, 20)
    expected = [(known <= v).sum() / 501 for v in values]
    np.testing.assert_allclose(share_below(known, values), np.minimum(expected, 0.95))
