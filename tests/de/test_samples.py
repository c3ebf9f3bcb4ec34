"""Comparisons across samples: which samples, which design, and that one of them decides nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from vivace import SCVI
from vivace.de import samples
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    OptionError,
    VivaceWarning,
)

SMALL = {"n_samples_overall": 200, "seed": 0}


def labelled(model, side, sample):
    """The model's data with other sides and samples."""
    adata = model.adata.copy()
    adata.obs["side"], adata.obs["mouse"] = side, sample
    return adata


def laid_out(model, *numbers):
    """So many cells of (side, sample), in turn; the others are of no side."""
    side, sample = [], []
    for a, b, n in numbers:
        side += [a] * n
        sample += [b] * n
    left = model.adata.n_obs - len(side)
    assert left >= 0
    return labelled(model, side + ["none"] * left, sample + ["m?"] * left)


def asked(model, adata, **options):
    arguments = {"groupby": "side", "group1": "A", "group2": "B", "sample_key": "mouse"}
    return model.differential_expression(adata, **arguments | SMALL | options)


def about(found, name="A vs B"):
    return found.attrs["comparisons"][name]


# ---- design ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "design", "n_samples"),
    [
        ([("A", "m0", 20), ("A", "m1", 20), ("B", "m0", 20), ("B", "m1", 20)], "paired", [2, 2]),
        ([("A", "m0", 20), ("A", "m1", 20), ("B", "m2", 20), ("B", "m3", 20)], "unpaired", [2, 2]),
        # 9 cells are too few of a sample
        (
            [("A", "m0", 20), ("A", "m1", 20), ("A", "m2", 9), ("B", "m0", 20), ("B", "m1", 10),
             ("B", "m2", 20)],
            "paired",
            [2, 2],
        ),
        # half of the smaller side's are on both sides: those alone
        (
            [("A", "m0", 12), ("A", "m1", 12), ("A", "m2", 12), ("A", "m3", 12), ("B", "m0", 12),
             ("B", "m1", 12), ("B", "m4", 12), ("B", "m5", 12), ("A", "m6", 12)],
            "paired",
            [2, 2],
        ),
        # one of three is fewer than half
        (
            [("A", "m0", 12), ("A", "m1", 12), ("A", "m2", 12), ("B", "m0", 12), ("B", "m4", 12),
             ("B", "m5", 12), ("B", "m6", 12)],
            "unpaired",
            [3, 4],
        ),
    ],
)  # fmt: skip
def test_the_design_follows_from_the_samples(covered, numbers, design, n_samples):
    found = about(asked(covered, laid_out(covered, *numbers)))
    assert found["design"] == design
    assert found["n_samples"] == n_samples


def test_the_rest_is_the_same_samples_in_other_groups(covered):
    found = covered.differential_expression(
        covered.adata, groupby="cell_type", sample_key="batch", **SMALL
    )
    assert found.attrs["sample_key"] == "batch"
    assert list(found.attrs["comparisons"]) == ["B vs Rest", "NK vs Rest", "T vs Rest"]
    for each in found.attrs["comparisons"].values():
        assert (each["design"], each["n_samples"]) == ("paired", [2, 2])
    assert list(found["comparison"].unique()) == list(found.attrs["comparisons"])
    assert found.notna().all().all()


def test_a_comparison_of_too_few_samples_is_left_out_with_a_warning(covered):
    numbers = [("A", "m0", 15), ("A", "m1", 15), ("C", "m0", 15), ("C", "m1", 9)]
    adata = laid_out(covered, *numbers, ("B", "m0", 15), ("B", "m1", 15))
    with pytest.warns(VivaceWarning, match="C vs B is left out: 1 and 2 samples"):
        found = asked(covered, adata, group1=["A", "C"])
    assert list(found.attrs["comparisons"]) == ["A vs B"]
    assert set(found["comparison"]) == {"A vs B"}
    assert len(found) == 30


@pytest.mark.parametrize(
    "numbers",
    [
        [("A", "m0", 30), ("B", "m0", 30)],
        [("A", "m0", 30), ("A", "m1", 9), ("B", "m2", 30), ("B", "m3", 30)],
        [("A", "m0", 9), ("A", "m1", 9), ("B", "m2", 9), ("B", "m3", 9)],
    ],
)
def test_too_few_samples_in_all_comparisons_are_refused(covered, refused, numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VivaceWarning)
        with refused(DataError, "two samples", "10 cells", "sample_key"):
            asked(covered, laid_out(covered, *numbers))


def test_bad_input(covered, refused):
    adata = labelled(covered, ["A", "B"] * 75, [None, "m0", "m1", "m1", "m0"] * 30)
    with refused(DataError, "'mouse'", "sample_key", "30 of the cells"):
        asked(covered, adata)
    with refused(MissingColumnError, "'mous'", "did you mean 'mouse'"):
        asked(covered, adata, sample_key="mous")
    with refused(ArgumentTypeError, "sample_key", "4"):
        asked(covered, adata, sample_key=4)
    for options in (
        {"mode": "vanilla"},
        {"change_fn": lambda a, b, p: a - b},
        {"m1_domain_fn": lambda e: e > 0},
    ):
        with refused(OptionError, "sample_key", "mode='change'"):
            asked(covered, adata, **options)


# ---- what is found -----------------------------------------------------------


@pytest.fixture(scope="module")
def mice():
    """Four donors in two conditions.  Most cells are of one of them, in which alone g1 is up.

    g0 is up in condition B in every donor.
    """
    rng = np.random.default_rng(0)
    numbers = [150, 25, 25, 25]
    donor = np.repeat([f"m{i}" for i in range(4)] * 2, numbers * 2)
    condition = np.repeat(["A", "B"], sum(numbers))
    profile = np.tile(rng.gamma(2.0, 1.0, 50) + 0.5, (len(donor), 1))
    up = condition == "B"
    profile[up, 0] *= 6.0
    profile[up & (donor == "m0"), 1] *= 6.0
    profile *= np.array([rng.lognormal(0, 0.05, 50) for _ in range(4)])[[int(d[1]) for d in donor]]
    counts = rng.poisson(2.0 * profile).astype(np.float32)
    obs = pd.DataFrame({"condition": condition, "donor": donor})
    adata = AnnData(counts, obs=obs.set_index(pd.Index([f"c{i}" for i in range(len(donor))])))
    adata.var_names = [f"g{i}" for i in range(50)]
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=32, n_latent=5)
    model.train(40, batch_size=32, seed=0, progress=False)
    return model


def test_one_sample_makes_a_gene_significant_among_cells_and_not_among_samples(mice):
    asks = {"groupby": "condition", "group1": "B", "group2": "A", "seed": 0, "fdr_target": 0.1}
    by_cells = mice.differential_expression(**asks)
    by_samples = mice.differential_expression(**asks, sample_key="donor")
    called = "is_de_fdr_0.1"
    assert by_cells.loc["g0", called]
    assert by_cells.loc["g1", called]
    assert by_samples.loc["g0", called]
    assert not by_samples.loc["g1", called]
    assert by_samples[called].sum() == 1
    assert by_samples.loc["g0", "lfc_mean"] > 1
    assert about(by_samples, "B vs A")["n_samples"] == [4, 4]
    assert list(by_samples) == list(by_cells)


def test_samples_that_differ_by_nothing_are_not_called(mice):
    """The same condition, two donors against two."""
    found = mice.differential_expression(
        idx1="condition == 'A' and donor in ['m1', 'm2']",
        idx2="condition == 'A' and donor in ['m0', 'm3']",
        sample_key="donor",
        seed=0,
    )
    assert found["is_de_fdr_0.05"].sum() == 0
    assert about(found, "group1 vs group2")["design"] == "unpaired"


def test_samples_count_the_same_whatever_their_cells(mice):
    """Expression of a side is the mean over samples of what the model expects, not over cells."""
    found = mice.differential_expression(
        groupby="condition", group1="B", group2="A", sample_key="donor", seed=0
    )
    obs = mice.adata.obs
    x = mice.get_normalized_expression(n_samples=20, seed=1)
    for column, name in (("scale1", "B"), ("scale2", "A")):
        inside = (obs["condition"] == name).to_numpy()
        wanted = x[inside].groupby(obs["donor"][inside].to_numpy()).mean().mean()
        np.testing.assert_allclose(found.loc[wanted.index, column], wanted, rtol=0.1)


def test_swapped_sides_mirror_effects(mice):
    one, other = (
        mice.differential_expression(
            groupby="condition", group1=a, group2=b, sample_key="donor", seed=0
        ).loc[mice.adata.var_names]
        for a, b in ("AB", "BA")
    )
    np.testing.assert_allclose(one["lfc_mean"], -other["lfc_mean"], atol=0.05)
    np.testing.assert_allclose(one["proba_de"], other["proba_de"], atol=0.05)
    np.testing.assert_allclose(one["scale1"], other["scale2"], rtol=0.05)


def test_draws_are_reported(covered, monkeypatch):
    """As many as were drawn, also where each of the categories gets equally many."""
    drawn, draw_group = [], samples.draw_group

    def counting(*arguments):
        drawn.append(draw_group(*arguments))
        return drawn[-1]

    monkeypatch.setattr(samples, "draw_group", counting)
    found = covered.differential_expression(
        groupby="cell_type",
        group1="B",
        group2="T",
        sample_key="batch",
        batch_correction="donor",
        n_samples_overall=301,
        seed=0,
    )
    assert sum(about(found, "B vs T")["n_draws"]) == sum(map(len, drawn))
    assert about(found, "B vs T")["n_cells"] == [
        (covered.adata.obs["cell_type"] == kind).sum() for kind in "BT"
    ]
