"""Columns that are declared twice, or that determine each other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vivace import SCVI
from vivace.errors import OptionError, VivaceWarning

SMALL = {"n_hidden": 16, "n_latent": 3}


def overlap_warnings(adata, **declared):
    """The warnings of ``setup_anndata`` about columns that overlap."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SCVI.setup_anndata(adata, **declared)
    return [str(w.message) for w in caught if "overlap" in str(w.message)]


@pytest.mark.parametrize(
    ("declared", "parts", "remedy"),
    [
        (
            {"batch_key": "batch", "categorical_covariate_keys": ["batch", "donor"]},
            ["'batch'", "batch_key and categorical_covariate_keys", "leave it out of one"],
            {"batch_key": "batch", "categorical_covariate_keys": ["donor"]},
        ),
        (
            {"batch_key": "age", "continuous_covariate_keys": ["age"]},
            ["'age'", "batch_key and continuous_covariate_keys", "leave it out of one"],
            {"continuous_covariate_keys": ["age"]},
        ),
        (
            {
                "categorical_covariate_keys": ["depth"],
                "continuous_covariate_keys": ["age", "depth"],
            },
            ["'depth'", "categorical_covariate_keys and continuous_covariate_keys"],
            {"continuous_covariate_keys": ["age", "depth"]},
        ),
        (
            {"batch_key": "batch", "categorical_covariate_keys": ["donor", "cell_type", "donor"]},
            ["categorical_covariate_keys", "'donor' twice", "name it once"],
            {"batch_key": "batch", "categorical_covariate_keys": ["donor", "cell_type"]},
        ),
        (
            {"continuous_covariate_keys": ["age", "age"]},
            ["continuous_covariate_keys", "'age' twice", "name it once"],
            {"continuous_covariate_keys": ["age"]},
        ),
    ],
)
def test_a_column_that_is_declared_twice_is_refused(tiny, refused, declared, parts, remedy):
    adata = tiny()
    with refused(OptionError, *parts):
        SCVI.setup_anndata(adata, **declared)
    assert "vivace" not in adata.uns
    SCVI.setup_anndata(adata, **remedy)


def test_a_label_may_be_a_covariate_too(tiny):
    SCVI.setup_anndata(tiny(), labels_key="batch", batch_key="batch")
    SCVI.setup_anndata(tiny(), labels_key="donor", categorical_covariate_keys=["donor"])


# batches alternate from cell to cell
COLUMNS = {
    "lane": lambda i: [f"lane{k}" for k in i % 4],  # of a batch
    "site": lambda i: np.where(i % 3 == 0, "s0", "s1"),  # of donors
    "code": lambda i: (i % 2) * 1.0,
    "named": lambda i: np.where(i % 2, "first", "second"),
    "dose": lambda i: (i % 2) * 2.5,
    "years": lambda i: 30.0 + i % 3,
    "one": lambda i: np.zeros(len(i), int),
}


@pytest.fixture
def adata(tiny):
    adata = tiny()
    for key, values in COLUMNS.items():
        adata.obs[key] = values(np.arange(60))
    adata.obs["age2"] = adata.obs["age"]
    adata.obs["days"] = adata.obs["age"] * 365.25 - 1000
    return adata


@pytest.mark.parametrize(
    ("batch", "categorical", "continuous", "said"),
    [
        ("batch", ["lane"], [], ["each 'lane' has one 'batch'"]),
        ("lane", ["batch"], [], ["each 'lane' has one 'batch'"]),
        (None, ["donor", "site"], [], ["each 'donor' has one 'site'"]),
        ("batch", ["code"], [], ["'batch' and 'code' divide the cells alike"]),
        ("named", ["batch"], [], ["'named' and 'batch' divide the cells alike"]),
        ("batch", [], ["dose"], ["each 'batch' has one 'dose'"]),
        (None, ["donor"], ["years", "age"], ["each 'donor' has one 'years'"]),
        (None, [], ["age", "age2"], ["'age' and 'age2' are the same up to their unit"]),
        (None, [], ["days", "age"], ["'days' and 'age' are the same up to their unit"]),
        (
            "batch",
            ["lane", "donor", "site"],
            [],
            ["each 'lane' has one 'batch'", "each 'donor' has one 'site'"],
        ),
        (
            "batch",
            ["lane", "code"],
            [],
            ["'batch' and 'code' divide", "each 'lane' has one 'batch'", "'lane' has one 'code'"],
        ),
    ],
)
def test_columns_that_determine_each_other_are_one_warning(
    adata, batch, categorical, continuous, said
):
    declared = {
        "batch_key": batch,
        "categorical_covariate_keys": categorical,
        "continuous_covariate_keys": continuous,
    }
    with pytest.warns(VivaceWarning, match="Declared columns overlap") as caught:
        SCVI.setup_anndata(adata, **declared)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert all(part in message for part in said)
    assert message.count(" has one ") + message.count(" alike") + message.count(
        " are the same"
    ) == len(said)
    model = SCVI(adata, **SMALL)  # without another warning, as are questions
    model.train(1, progress=False)
    assert np.isfinite(model.get_elbo(adata.copy()))


@pytest.mark.parametrize(
    ("batch", "categorical", "continuous"),
    [
        ("batch", ["donor", "cell_type"], ["age", "depth"]),
        ("lane", ["donor", "site"][:1], ["age"]),
        ("batch", ["site"], ["years"]),
    ],
)
def test_independent_columns_are_not_named(adata, batch, categorical, continuous):
    SCVI.setup_anndata(
        adata,
        batch_key=batch,
        categorical_covariate_keys=categorical,
        continuous_covariate_keys=continuous,
    )


def test_a_column_of_one_value_is_nested_in_nothing(adata):
    assert not overlap_warnings(adata, batch_key="batch", categorical_covariate_keys=["one"])
    assert not overlap_warnings(adata, batch_key="batch", continuous_covariate_keys=["one"])
    assert not overlap_warnings(adata, batch_key="one", continuous_covariate_keys=["age"])


def test_one_cell_between_the_places_makes_columns_independent(tiny):
    """All cells are compared, not only those that are compared first."""
    adata = tiny(5000)
    adata.obs["lane"] = [f"lane{k}" for k in np.arange(5000) % 4]
    declared = {"batch_key": "batch", "categorical_covariate_keys": ["lane"]}
    assert overlap_warnings(adata, **declared)
    counted = 0
    for cell in (1, 1234, 2501, 4998):
        changed = adata.copy()
        changed.obs.iloc[cell, changed.obs.columns.get_loc("lane")] = f"lane{(cell + 1) % 4}"
        counted += len(overlap_warnings(changed, **declared))
    assert counted == 0


@pytest.fixture(scope="module")
def confounded(tiny):
    """A gene differs between the batches; lanes are nested in them."""
    adata = tiny(600)
    x = adata.X.toarray()
    second = np.arange(600) % 2 == 1
    x[second, 0] += np.random.default_rng(0).poisson(30, 300)
    adata.X = x
    adata.obs["lane"] = [f"lane{k}" for k in np.arange(600) % 4]
    return adata, second


@pytest.mark.parametrize("remedy", ["leave one out", "a category of each"])
def test_both_remedies_remove_the_effect_of_the_batch(confounded, remedy):
    adata, second = confounded
    declared = {"batch_key": "batch", "categorical_covariate_keys": ["lane"]}
    transform = {"batch": "b0", "lane": "lane0"}
    if remedy == "leave one out":
        del declared["categorical_covariate_keys"], transform["lane"]
    assert len(overlap_warnings(adata, **declared)) == len(transform) - 1
    model = SCVI(adata, gene_likelihood="nb", **SMALL)
    model.train(30, seed=0, progress=False)
    decoded = model.get_normalized_expression(transform_batch=transform, gene_list=["gene0"])
    ratio = decoded["gene0"][second].mean() / decoded["gene0"][~second].mean()
    assert 0.5 < ratio < 2
    if remedy == "a category of each":
        decoded = model.get_normalized_expression(transform_batch="b0", gene_list=["gene0"])
        assert decoded["gene0"][second].mean() / decoded["gene0"][~second].mean() > 2


def test_a_mirrored_covariate_is_the_same(tiny):
    adata = tiny()
    adata.obs["born"] = 2020 - adata.obs["age"]
    with pytest.warns(VivaceWarning, match="are the same up to their unit") as caught:
        SCVI.setup_anndata(adata, continuous_covariate_keys=["age", "born"])
    assert "transform_batch" not in str(caught[0].message)
