"""Expected expression, compared with ``decode`` and scvi-tools; its samples; writing to a file."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData

from vivace import SCVI, model
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    MissingExtraError,
    NotTrainedError,
    OptionError,
    ShapeError,
)
from vivace.nn import VAE
from vivace.questions import expression
from vivace.questions.expression import write_expression_at

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
WITH_BATCH = [f for f in FOLDERS if f != "zinb_no_batch"]
GENES = ["gene7", "gene2", "gene29", "gene7"]
SIX = 6.0  # standard errors; of some thousand comparisons with fixed seeds none may be beyond


class Golden(NamedTuple):
    """A model of scvi-tools', its data, and what scvi-tools said."""

    model: SCVI
    adata: AnnData
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    expected = np.load(GOLDEN / request.param / "expected.npz")
    return Golden(model.load(GOLDEN / request.param, adata), adata, dict(expected))


@pytest.fixture(scope="module")
def covered(tiny):
    """A model with a batch, a further category and a continuous covariate, which its encoder sees."""
    adata = tiny()
    keys = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    SCVI.setup_anndata(adata, batch_key="batch", **keys)
    fitted = SCVI(adata, n_hidden=16, n_latent=3, encode_covariates=True)
    fitted.train(5, seed=0, progress=False)
    return fitted


def mean_of_z(model, adata=None):
    """The mean of q(z|x) as the decoder takes it."""
    return placed(model, model.get_latent_representation(adata, return_dist=True)[0])


def placed(model, z):
    z = torch.as_tensor(z)
    return z.softmax(-1) if model.config.latent_distribution == "ln" else z


def get_scale(observation):
    name = "normal_mu" if isinstance(observation, torch.distributions.Normal) else "scale"
    return getattr(observation, name).numpy()


def get_mean(observation):
    """The mean before a zero inflation."""
    return next(getattr(observation, n) for n in ("rate", "mu") if hasattr(observation, n)).numpy()


def assert_close(result, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    assert result.shape == wanted.shape
    assert (
        np.abs(result - wanted) <= tolerance * (np.abs(wanted) + 1e-3 * np.abs(wanted).max())
    ).all()


# ---- what it is --------------------------------------------------------------


def test_it_is_what_is_decoded_at_the_mean_of_z(golden):
    result = golden.model.get_normalized_expression(return_numpy=True)
    assert result.dtype == np.float32
    assert_close(result, get_scale(golden.model.decode(mean_of_z(golden.model))))


def test_it_adds_up_to_the_library_but_with_size_factors(golden):
    total = golden.model.get_normalized_expression(library_size=1e4, return_numpy=True).sum(1)
    if golden.model.schema.declarations.size_factor_key is None:
        np.testing.assert_allclose(total, 1e4, rtol=1e-5)
    else:
        assert (np.abs(total / 1e4 - 1) > 0.01).any()


@pytest.mark.parametrize("other", [False, True], ids=["own batch", "last batch"])
@pytest.mark.parametrize("golden", WITH_BATCH, indirect=True)
def test_at_a_sample_of_z_it_is_what_scvi_tools_computed(golden, other):
    """The sample is scvi-tools' own, whose random numbers differ from ours."""
    copy = golden.model
    wanted = golden.expected["px_scale_transform_last_batch" if other else "px_scale"]
    codes = copy.schema.codes(copy.schema.batches[-1] if other else None)
    result = np.empty_like(wanted)
    z, nothing = torch.from_numpy(golden.expected["z"][:24]), torch.zeros(24)
    with torch.no_grad():
        write_expression_at(copy._cells(None, range(24), 10), codes, None, 1, z, nothing, result)
    assert_close(result, wanted, 1e-4)


def test_the_library_is_a_number_the_observed_one_or_the_latent_one(golden):
    copy, x = golden.model, golden.adata.X.toarray()
    scale = get_scale(copy.decode(mean_of_z(copy)))

    def result(size):
        return copy.get_normalized_expression(library_size=size, return_numpy=True)

    assert_close(result(250), 250 * scale)
    assert_close(result("observed"), x.sum(1, keepdims=True) * scale)
    factor = x.sum(1, keepdims=True)
    if copy.schema.declarations.size_factor_key is not None:
        factor = golden.adata.obs["size_factor"].to_numpy(np.float32)[:, None]
    elif not copy.config.use_observed_lib_size:
        factor = np.exp(golden.expected["ql_mean"])
    assert_close(result("latent"), factor * scale, 1e-4)
    assert_close(result("latent"), get_mean(copy.decode(mean_of_z(copy))))


# ---- other categories --------------------------------------------------------


@pytest.mark.parametrize("golden", WITH_BATCH, indirect=True)
def test_a_batch_takes_the_place_of_the_cells_own(golden):
    """As for the same points with another column in the data; a list gives the mean."""
    fitted = golden.model
    z, decoded = mean_of_z(fitted), []
    for batch in fitted.schema.batches:
        changed = golden.adata.copy()
        changed.obs["batch"] = batch
        decoded.append(get_scale(fitted.decode(z, changed)))
        result = fitted.get_normalized_expression(transform_batch=batch, return_numpy=True)
        assert_close(result, decoded[-1])
    assert np.abs(decoded[0] - decoded[1]).max() > 1e-4
    both = fitted.get_normalized_expression(
        transform_batch=list(fitted.schema.batches), library_size=1e3, return_numpy=True
    )
    assert_close(both, 1e3 * np.mean(decoded, axis=0))


@pytest.mark.parametrize(
    "mapping",
    [
        {"donor": "d2"},
        {"donor": ["d2", "d0"], "batch": "b1"},
        {"batch": ["b0", "b1"], "donor": ["d0", "d1", "d2"]},
        {"batch": "b0"},
    ],
    ids=str,
)
def test_a_mapping_names_categories_of_any_column(covered, mapping):
    z, decoded = mean_of_z(covered), []
    for chosen in product(*([v] if isinstance(v, str) else v for v in mapping.values())):
        changed = covered.adata.copy()
        for column, category in zip(mapping, chosen, strict=True):
            changed.obs[column] = category
        decoded.append(get_scale(covered.decode(z, changed)))
    result = covered.get_normalized_expression(transform_batch=mapping, return_numpy=True)
    assert_close(result, np.mean(decoded, axis=0))
    observed = covered.get_normalized_expression(return_numpy=True)
    assert np.abs(result - observed).max() > 1e-5


# ---- genes, cells, frames ----------------------------------------------------


@pytest.mark.parametrize("genes", [GENES, pd.Index(GENES), np.array(GENES), tuple(GENES)], ids=repr)
def test_genes_come_in_the_order_asked_for_with_repeats(trained, genes):
    whole = trained.get_normalized_expression()
    result = trained.get_normalized_expression(gene_list=genes)
    assert list(result.columns) == GENES
    np.testing.assert_array_equal(result.to_numpy(), whole[GENES].to_numpy())


def test_a_frame_names_cells_and_genes(trained):
    result = trained.get_normalized_expression(indices=[5, 0, 5, -1])
    assert isinstance(result, pd.DataFrame)
    assert list(result.index) == ["cell5", "cell0", "cell5", "cell59"]
    assert list(result.columns) == list(trained.schema.genes)
    assert (result.dtypes == np.float32).all()
    one_sample = trained.get_normalized_expression(return_mean=False)
    assert isinstance(one_sample, pd.DataFrame)
    assert isinstance(trained.get_normalized_expression(return_numpy=True), np.ndarray)
    assert isinstance(trained.get_normalized_expression(return_numpy=False), pd.DataFrame)


@pytest.mark.parametrize("library_size", [1, "observed", "latent"])
def test_rows_are_of_the_indices_in_their_order(trained, library_size):
    whole = trained.get_normalized_expression(library_size=library_size, return_numpy=True)
    rows = np.array([40, 3, 3, 59, 0, 17])
    result = trained.get_normalized_expression(
        indices=rows, library_size=library_size, return_numpy=True
    )
    assert_close(result, whole[rows])
    mask = np.arange(60) % 7 == 2
    masked = trained.get_normalized_expression(
        indices=mask, library_size=library_size, return_numpy=True
    )
    assert_close(masked, whole[mask])


def test_no_cells_give_no_rows(trained, refused):
    result = trained.get_normalized_expression(indices=[])
    assert result.shape == (0, 30)
    assert list(result.columns) == list(trained.schema.genes)
    several = trained.get_normalized_expression(indices=[], n_samples=3, return_mean=False)
    assert several.shape == (3, 0, 30)
    with refused(OptionError, "indices", "no cells"):
        trained.get_normalized_expression(indices=[], n_samples_overall=4)


def test_without_data_of_its_own_the_model_answers_about_those_it_is_given(trained, saved, refused):
    loaded = SCVI.load(saved)
    with refused(DataError, "without data", "adata="):
        loaded.get_normalized_expression()
    shuffled = trained.adata[::-1, np.random.default_rng(0).permutation(30)].copy()
    options = {"gene_list": GENES, "n_samples": 2, "seed": 3, "library_size": "observed"}
    result = loaded.get_normalized_expression(shuffled, **options)
    wanted = trained.get_normalized_expression(indices=range(59, -1, -1), **options)
    pd.testing.assert_frame_equal(result, wanted, rtol=1e-5)
    rows = loaded.get_normalized_expression(shuffled, indices=[2, 1])
    assert list(rows.index) == ["cell57", "cell58"]


# ---- samples -----------------------------------------------------------------


def independent_samples(golden, rows, n, library):
    """Expression at samples of q(z, l|x) by NumPy, through ``decode``, shape (n, cells, g)."""
    copy, rng = golden.model, np.random.default_rng(7)
    mean, variance = copy.get_latent_representation(indices=rows, return_dist=True)
    z = mean + np.sqrt(variance) * rng.standard_normal((n, *mean.shape))
    size = None
    if library == "latent":
        mean, variance = (golden.expected[name][rows] for name in ("ql_mean", "ql_var"))
        size = np.exp(mean + np.sqrt(variance) * rng.standard_normal((n, len(rows), 1))).reshape(-1)
    decoded = copy.decode(
        placed(copy, z.reshape(-1, z.shape[-1])), indices=np.tile(rows, n), library_size=size
    )
    result = get_scale(decoded) if library == 1 else get_mean(decoded)
    return result.reshape(n, len(rows), -1)


@pytest.mark.parametrize(
    ("golden", "library"),
    [
        ("zinb_default", 1),
        ("poisson_logistic_normal", 1),
        ("nb_gene_batch_covariates", 1),
        ("normal", 1),
        ("zinb_latent_library", "latent"),
    ],
    indirect=["golden"],
)
def test_samples_and_their_mean_are_those_of_the_posterior(golden, library):
    rows, n = np.array([8, 250]), 1_000
    options = {"indices": rows, "n_samples": n, "library_size": library}
    mean = golden.model.get_normalized_expression(**options, seed=1, return_numpy=True)
    samples = golden.model.get_normalized_expression(**options, seed=2, return_mean=False)
    assert mean.shape == (2, 150)
    assert samples.shape == (n, 2, 150)
    wanted = independent_samples(golden, rows, n, library)
    error = np.sqrt((wanted.var(0) + samples.var(0)) / n)
    assert (np.abs(mean - wanted.mean(0)) <= SIX * error).all()
    logs, wanted_logs = np.log(samples), np.log(wanted)
    error = np.sqrt((logs.var(0) + wanted_logs.var(0)) / n)
    assert (np.abs(logs.mean(0) - wanted_logs.mean(0)) <= SIX * error).all()
    assert logs.std(0) / wanted_logs.std(0) == pytest.approx(1.0, abs=0.2)


def test_kept_samples_have_the_mean_that_is_given_without_them(trained):
    options = {"n_samples": 4, "seed": 5, "transform_batch": ["b0", "b1"], "library_size": 1e3}
    kept = trained.get_normalized_expression(**options, return_mean=False)
    assert kept.shape == (4, 60, 30)
    mean = trained.get_normalized_expression(**options, return_numpy=True)
    assert_close(mean, kept.mean(0, dtype=np.float64))
    assert (kept[0] != kept[1]).mean() > 0.99


def test_one_sample_without_the_mean_is_a_sample(trained):
    """Of those with more samples the first."""
    one = trained.get_normalized_expression(return_mean=False, seed=5, return_numpy=True)
    assert one.shape == (60, 30)
    more = trained.get_normalized_expression(n_samples=3, return_mean=False, seed=5)
    assert_close(one, more[0])
    at_mean = trained.get_normalized_expression(return_numpy=True)
    assert (np.abs(one / at_mean - 1) > 1e-4).mean() > 0.9


SAMPLING_OPTIONS = [
    {"n_samples": 3},
    {"n_samples": 3, "return_mean": False},
    {"return_mean": False},
    {"n_samples_overall": 90},
    {"n_samples_overall": 90, "weights": "importance", "n_mc_samples": 4, "max_cells": 8},
]


@pytest.mark.parametrize("options", SAMPLING_OPTIONS, ids=str)
def test_a_seed_repeats_the_samples_and_none_takes_the_next(trained, options):
    def result(seed):
        return np.asarray(trained.get_normalized_expression(**options, seed=seed))

    first = result(11)
    np.testing.assert_array_equal(result(11), first)
    others = [result(12), result(None), result(None)]
    for one, other in ((first, others[0]), (first, others[1]), (others[1], others[2])):
        assert (one != other).mean() > 0.9


@pytest.mark.parametrize("options", [{}, *SAMPLING_OPTIONS], ids=str)
@pytest.mark.parametrize("library_size", [1, "observed"])
def test_nothing_depends_on_the_batch_size(trained, options, library_size):
    small, large = (
        np.asarray(
            trained.get_normalized_expression(
                **options, batch_size=size, library_size=library_size, seed=4
            )
        )
        for size in (7, 512)
    )
    assert_close(small, large)


# ---- samples that stand for a group ------------------------------------------


@pytest.mark.parametrize("weights", [None, "uniform", "importance"])
def test_overall_samples_are_rows_of_the_cells_that_they_are_named_after(trained, weights):
    """Each adds up to the molecules of its cell, which differ."""
    group = np.arange(10, 50)
    options = {"n_samples_overall": 150, "weights": weights, "library_size": "observed", "seed": 0}
    result = trained.get_normalized_expression(indices=group, **options)
    assert result.shape == (150, 30)
    assert set(result.index) <= set(trained.adata.obs_names[group])
    assert len(set(result.index)) > (15 if weights is None else 5)
    molecules = pd.Series(np.asarray(trained.adata.X.sum(1))[:, 0], trained.adata.obs_names)
    np.testing.assert_allclose(result.sum(axis=1), molecules[result.index], rtol=1e-5)
    array = trained.get_normalized_expression(indices=group, **options, return_numpy=True)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, result.to_numpy())


def test_overall_samples_take_genes_batches_and_few_rows(trained):
    options = {"n_samples_overall": 5, "seed": 2}
    whole = trained.get_normalized_expression(**options, transform_batch=["b0", "b1"])
    each = [trained.get_normalized_expression(**options, transform_batch=b) for b in ("b0", "b1")]
    assert list(whole.index) == list(each[0].index)
    assert_close(whole.to_numpy(), (each[0].to_numpy() + each[1].to_numpy()) / 2)
    some = trained.get_normalized_expression(
        **options, transform_batch=["b0", "b1"], gene_list=GENES
    )
    assert_close(some.to_numpy(), whole[GENES].to_numpy())


@pytest.mark.parametrize(
    "golden", ["zinb_latent_library", "poisson_logistic_normal"], indirect=True
)
def test_uniform_overall_samples_have_the_mean_over_cells(golden):
    latent = "ql_mean" in golden.expected
    rows, n = np.array([3, 100, 222, 290]), 4_000
    result = golden.model.get_normalized_expression(
        indices=rows,
        n_samples_overall=n,
        library_size="latent" if latent else 1,
        seed=3,
        return_numpy=True,
    )
    wanted = independent_samples(golden, rows, 1_000, "latent" if latent else 1).reshape(n, -1)
    error = np.sqrt(wanted.var(0) * 2 / n)
    assert (np.abs(result.mean(0) - wanted.mean(0)) <= SIX * error).all()


def test_importance_weights_decide_which_samples_are_taken(trained, monkeypatch):
    """All the weight on the samples of one cell; what is asked of the weights reaches them."""
    seen = {}

    def weights(cells, z_mk, seed, weighting):
        seen.update(weighting, cells=len(cells), samples=len(z_mk))
        chosen = np.arange(len(z_mk)) % len(cells) == 7
        return chosen / chosen.sum()

    monkeypatch.setattr("vivace.questions.importance.importance_weights", weights)
    result = trained.get_normalized_expression(
        indices=range(20, 60),
        n_samples_overall=100,
        weights="importance",
        max_cells=9,
        n_mc_samples=3,
        truncation=True,
    )
    assert set(result.index) == {"cell27"}
    assert seen["samples"] == 120  # the samples of each cell of which there are 100 in all
    assert seen["cells"] == 40
    assert (seen["max_cells"], seen["n_mc_samples"], seen["truncation"]) == (9, 3, True)
    assert 1 < len(result.drop_duplicates()) <= 3


def test_importance_weighted_samples_have_the_weighted_mean(trained):
    """That of other samples by their public weights; it is not the mean over cells."""
    rows, n = np.arange(12), 3_000
    options = {"indices": rows, "max_cells": 12, "n_mc_samples": 200}
    result = trained.get_normalized_expression(
        n_samples_overall=n, weights="importance", seed=1, **options
    )
    mean, variance = trained.get_latent_representation(indices=rows, return_dist=True)
    noise = np.random.default_rng(0).standard_normal((n // len(rows), *mean.shape))
    z = (mean + np.sqrt(variance) * noise).astype(np.float32).reshape(-1, 3)
    weights = trained.get_importance_weights(zs=z, seed=2, **options)
    expression = get_scale(trained.decode(z, indices=np.tile(rows, n // len(rows))))
    wanted = weights @ expression
    size = 1 / (weights**2).sum()  # so many samples of equal weight say as much
    assert size > 100
    error = np.sqrt((weights @ expression**2 - wanted**2) * (2 / size + 1 / n))
    assert (np.abs(result.mean().to_numpy() - wanted) <= SIX * error).all()
    assert (np.abs(expression.mean(0) - wanted) > SIX * error).any()


# ---- places to write to ------------------------------------------------------

WRITTEN = [
    {},
    {"gene_list": GENES, "transform_batch": ["b0", "b1"]},
    {"library_size": "observed", "indices": [3, 9, 9, 0]},
    {"n_samples": 3, "seed": 1},
    {"n_samples": 3, "return_mean": False, "seed": 1},
    {"n_samples": 2, "return_mean": False, "gene_list": GENES, "seed": 1},
    {"n_samples_overall": 45, "seed": 1, "library_size": "latent"},
]


@pytest.fixture(scope="module", params=WRITTEN, ids=str)
def written(request, trained):
    """Arguments, and what they give in memory."""
    options = request.param | {"batch_size": 7}
    return options, trained.get_normalized_expression(**options, return_numpy=True)


def test_a_path_becomes_a_zarr_array(trained, written, tmp_path):
    options, wanted = written
    place = tmp_path / "new" / "expression.zarr"
    result = trained.get_normalized_expression(**options, out=place)
    assert isinstance(result, zarr.Array)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:], wanted)
    np.testing.assert_array_equal(zarr.open_array(str(place), mode="r")[:], wanted)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["expression.zarr"]


def test_chunks_hold_the_cells_that_are_written_at_a_time(trained, tmp_path):
    options = {"n_samples": 2, "return_mean": False, "batch_size": 7}
    result = trained.get_normalized_expression(**options, out=str(tmp_path / "samples"))
    assert result.chunks == (1, 7, 30)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("NumPy", np.float32),
        ("NumPy", np.float64),
        ("Fortran", np.float32),
        ("strided", np.float32),
        ("memory map", np.float32),
        ("zarr", np.float32),
        ("h5py", np.float32),
        ("h5py", np.float64),
    ],
)
def test_an_array_is_filled_and_given_back(trained, written, tmp_path, kind, dtype):
    options, wanted = written
    shape = wanted.shape
    with h5py.File(tmp_path / "file.h5", "w") as file:
        out = {
            "NumPy": lambda: np.full(shape, np.nan, dtype),
            "Fortran": lambda: np.full(shape, np.nan, dtype, order="F"),
            "strided": lambda: np.full((*shape[:-1], 2 * shape[-1]), np.nan, dtype)[..., ::2],
            "memory map": lambda: np.lib.format.open_memmap(tmp_path / "a.npy", "w+", dtype, shape),
            "zarr": lambda: zarr.create_array(str(tmp_path / "a"), shape=shape, dtype=dtype),
            "h5py": lambda: file.create_dataset("a", shape, dtype),
        }[kind]()
        result = trained.get_normalized_expression(**options, out=out)
        assert result is out
        np.testing.assert_array_equal(result[:], wanted)


def test_no_cells_are_written_too(trained, tmp_path):
    result = trained.get_normalized_expression(indices=[], out=tmp_path / "empty")
    assert zarr.open_array(str(tmp_path / "empty"), mode="r").shape == result.shape == (0, 30)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_where_something_is_is_refused(trained, refused, tmp_path, kind):
    place = tmp_path / "there"
    place.write_text("mine") if kind == "file" else place.mkdir()
    with refused(OptionError, str(place), "exists"):
        trained.get_normalized_expression(out=place)
    assert place.is_dir() or place.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (60, 29)),
        ({"gene_list": GENES}, (60, 30)),
        ({"indices": [1, 2]}, (60, 30)),
        ({"n_samples": 3, "return_mean": False}, (60, 30)),
        ({"n_samples": 3}, (3, 60, 30)),
        ({"n_samples_overall": 7}, (60, 30)),
    ],
    ids=str,
)
def test_an_array_of_another_shape_is_refused(trained, refused, options, shape):
    out = np.full(shape, 7.0, np.float32)
    with refused(ShapeError, "out", str(shape)):
        trained.get_normalized_expression(**options, out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, bool, np.complex64])
def test_an_array_that_holds_no_fractions_is_refused(trained, refused, dtype):
    with refused(OptionError, "out", np.dtype(dtype).name, "float32"):
        trained.get_normalized_expression(out=np.zeros((60, 30), dtype))


@pytest.mark.parametrize(
    "out",
    [7, [[0.0]], np.float32(1), torch.zeros(60, 30), pd.DataFrame(np.zeros((60, 30), np.float32))],
    ids=lambda o: type(o).__name__,
)
def test_what_is_no_place_is_refused(trained, refused, out):
    with refused(ArgumentTypeError, "out", type(out).__name__):
        trained.get_normalized_expression(out=out)


@pytest.mark.parametrize("options", [{}, {"n_samples_overall": 50}], ids=str)
def test_nothing_is_left_where_it_fails_midway(trained, monkeypatch, tmp_path, options):
    calls, scale = [], VAE.scale

    def fails_later(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scale(*arguments, **named)

    monkeypatch.setattr(VAE, "scale", fails_later)
    with pytest.raises(KeyboardInterrupt):
        trained.get_normalized_expression(**options, batch_size=10, out=tmp_path / "expression")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_path_needs_zarr(trained, refused, monkeypatch, tmp_path):
    monkeypatch.setattr("vivace.errors.find_spec", lambda name: None)
    with refused(MissingExtraError, "zarr", "pip install"):
        trained.get_normalized_expression(out=tmp_path / "expression")
    assert list(tmp_path.iterdir()) == []


# ---- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"transform_batch": "b7"}, DataError, ("'b7'", "available: 'b0', 'b1'")),
        ({"transform_batch": "b01"}, DataError, ("'b01'", "did you mean 'b1' or 'b0'")),
        ({"transform_batch": ["b0", "c"]}, DataError, ("'c'", "batch_key")),
        ({"transform_batch": []}, DataError, ("transform_batch", "no category")),
        ({"transform_batch": {"bach": "b0"}}, DataError, ("'bach'", "did you mean 'batch'")),
        ({"transform_batch": {"cell_type": "B"}}, DataError, ("'cell_type'",)),
        ({"gene_list": ["gene1", "gen2"]}, MissingColumnError, ("1 of 2", "'gen2'", "'gene2'")),
        ({"gene_list": 7}, ArgumentTypeError, ("gene_list", "7")),
        ({"gene_list": 3}, ArgumentTypeError, ("gene_list", "3")),
        ({"gene_list": []}, DataError, ("gene_list", "empty")),
        ({"library_size": 0}, OptionError, ("library_size", "above 0", "0")),
        ({"library_size": -1e4}, OptionError, ("library_size", "-10000.0")),
        ({"library_size": np.nan}, OptionError, ("library_size", "nan")),
        ({"library_size": None}, ArgumentTypeError, ("library_size", "None")),
        ({"library_size": True}, ArgumentTypeError, ("library_size", "True")),
        ({"library_size": [1.0]}, ArgumentTypeError, ("library_size", "[1.0]")),
        ({"library_size": "size"}, OptionError, ("library_size", "'latent', 'observed'", "'size'")),
        ({"n_samples": 0}, OptionError, ("n_samples", "0")),
        ({"n_samples": 2.5}, ArgumentTypeError, ("n_samples", "2.5")),
        ({"n_samples": True}, ArgumentTypeError, ("n_samples", "True")),
        ({"n_samples_overall": 0}, OptionError, ("n_samples_overall", "0")),
        ({"n_samples_overall": 9, "n_samples": 2}, OptionError, ("n_samples_overall (9)", "2")),
        ({"weights": "importance"}, OptionError, ("weights", "n_samples_overall")),
        ({"weights": "best", "n_samples_overall": 9}, OptionError, ("'uniform'", "'best'")),
        ({"n_mc_sample": 3}, ArgumentTypeError, ("n_mc_sample", "did you mean 'n_mc_samples'")),
        ({"max_cells": 0}, OptionError, ("max_cells", "0")),
        ({"truncation": "yes"}, ArgumentTypeError, ("truncation", "'yes'")),
        (
            {"n_samples": 2, "return_mean": False, "return_numpy": False},
            OptionError,
            ("return_numpy", "n_samples", "return_mean"),
        ),
        ({"indices": [60]}, OptionError, ("indices", "60")),
        ({"indices": [0.5]}, ArgumentTypeError, ("indices",)),
        ({"batch_size": 0}, OptionError, ("batch_size", "0")),
        ({"seed": -1}, OptionError, ("seed", "-1")),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_normalized_expression(**arguments)


def test_a_model_without_a_batch_has_none_to_take(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata, categorical_covariate_keys=["donor"])
    fitted = SCVI(adata, n_hidden=8, n_latent=2)
    with refused(NotTrainedError, "train()"):
        fitted.get_normalized_expression()
    fitted.train(1, progress=False)
    with refused(DataError, "no batch", "'b0'", "batch_key"):
        fitted.get_normalized_expression(transform_batch="b0")
    assert fitted.get_normalized_expression(transform_batch={"donor": "d1"}).shape == (60, 30)


@pytest.mark.parametrize("kind", ["numpy", "h5py", "zarr"])
def test_an_array_that_can_only_be_read_is_refused_before_anything_is_asked(
    trained, refused, tmp_path, kind
):
    shape = (60, 30)
    if kind == "numpy":
        out = np.zeros(shape, np.float32)
        out.flags.writeable = False
    elif kind == "h5py":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("x", shape, "float32")
        out = h5py.File(tmp_path / "x.h5", "r")["x"]
    else:
        zarr.create_array(store=str(tmp_path / "x"), shape=shape, dtype="float32")
        out = zarr.open_array(str(tmp_path / "x"), mode="r")
    with refused(OptionError, "out", "read"):
        trained.get_normalized_expression(out=out)


def test_a_place_on_another_machine_is_refused(trained, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(OptionError, "s3://bucket/x", "local path"):
        trained.get_normalized_expression(out="s3://bucket/x")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_refused_before_samples_are_weighted(
    trained, refused, tmp_path, monkeypatch
):
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(expression, "sample_group", lambda *_: pytest.fail("sampled"))
    with refused(OptionError, "exists"):
        trained.get_normalized_expression(n_samples_overall=5, out=tmp_path / "taken")


def test_what_samples_nothing_leaves_the_seeds_of_the_model(trained):
    used = trained._seeds.used
    trained.get_normalized_expression()
    trained.get_likelihood_parameters(give_mean=True)
    trained.get_latent_library_size()
    trained.get_latent_representation()
    assert trained._seeds.used == used
    trained.get_normalized_expression(n_samples=2)
    assert trained._seeds.used == used + 1


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"gene_list": {"gene1", "gene2"}}, ArgumentTypeError, ["gene_list", "in order"]),
        ({"transform_batch": {"b0", "b1"}}, ArgumentTypeError, ["transform_batch", "in order"]),
        ({"weights": np.ones(3)}, OptionError, ["weights"]),
        ({"library_size": 10**400}, OptionError, ["library_size", "finite"]),
        ({"max_cells": 5}, OptionError, ["max_cells", "weights='importance'"]),
    ],
)
def test_what_has_no_order_or_no_meaning_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_normalized_expression(**arguments)


@pytest.mark.parametrize("one", [np.array("b1"), np.str_("b1"), pd.Index(["b1"]), ["b1"]])
def test_one_batch_in_whatever_array(trained, one):
    result = trained.get_normalized_expression(transform_batch=one)
    pd.testing.assert_frame_equal(result, trained.get_normalized_expression(transform_batch="b1"))
