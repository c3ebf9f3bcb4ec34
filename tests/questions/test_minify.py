"""Minified data: questions that need no counts are answered as before, the others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from vivace import SCVI, LinearSCVI
from vivace.errors import (
    DataError,
    MissingColumnError,
    NotTrainedError,
    OptionError,
    ShapeError,
)
from vivace.model import load as load_model

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
BARE, WITH_COUNTS = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"
NEED_COUNTS = {
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_importance_weights": {"n_mc_samples": 2},
    "posterior_predictive_check": {"n_samples": 2},
    "get_normalized_expression": {"weights": "importance", "n_samples_overall": 3},
}


def load(folder):
    return load_model(GOLDEN / folder, anndata.read_h5ad(GOLDEN / "adata.h5ad"))


@pytest.fixture(params=FOLDERS)
def golden(request):
    """A model of scvi-tools', on its data."""
    return load(request.param)


@pytest.fixture(scope="module")
def answer_once():
    """What each golden model answered with its counts."""
    result = {}

    def ask(folder):
        if folder not in result:
            result[folder] = answers(load(folder))
        return result[folder]

    return ask


@pytest.fixture
def before(request, answer_once):
    return answer_once(request.node.callspec.params["golden"])


@pytest.fixture
def fitted(saved, tiny):
    """The small trained model on data of its own."""
    return SCVI.load(saved, tiny())


def answers(model, adata=None):
    """All that is asked of a model without its counts, by the question."""
    mean, variance = model.get_latent_representation(adata, return_dist=True)
    rows = [7, 250, 7, 3]
    last = model.schema.batches[-1]
    other = None if model.schema.declarations.batch_key is None else last
    moves, some = np.eye(mean.shape[1])[:2], model.schema.genes[:20]
    programs = model.get_gene_programs(adata, directions=moves, transform_batch=other)
    result = {
        "mean": mean,
        "variance": variance,
        "latent": model.get_latent_representation(adata, mc_samples=50, seed=1),
        "sample of the latent": model.get_latent_representation(
            adata, rows, give_mean=False, seed=1
        ),
        "library": model.get_latent_library_size(adata),
        "sample of the library": model.get_latent_library_size(adata, give_mean=False, seed=1),
        "expression": model.get_normalized_expression(adata, rows, transform_batch=other),
        "molecules": model.get_normalized_expression(
            adata, library_size="latent", n_samples=3, seed=1
        ),
        "observed library": model.get_normalized_expression(adata, library_size="observed"),
        "samples of a group": model.get_normalized_expression(adata, n_samples_overall=20, seed=1),
        "effects": programs.effect,
        "spread": programs.spread,
        "correlation": model.get_feature_correlation_matrix(
            adata, n_samples=2, gene_list=some, seed=1
        ),
        "decoded": model.decode(np.full_like(mean, 0.1), adata).mean.numpy(),
        "aggregated": model.get_aggregated_posterior(adata, rows).mean.numpy(),
    }
    sample = model.posterior_predictive_sample(adata, rows, seed=1)
    result["samples"] = sample.toarray() if sp.issparse(sample) else sample
    for name, value in model.get_likelihood_parameters(adata, rows, give_mean=True).items():
        result[f"parameter {name}"] = value
    return {name: np.asarray(value) for name, value in result.items()}


def assert_same(result, expected):
    """Equal to float32 precision, relative to the largest value of each answer."""
    assert list(result) == list(expected)
    for name, value in expected.items():
        bound = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=bound, err_msg=name)


def contents(adata):
    """A copy of all contents of an AnnData."""
    return {
        "X": adata.X.copy(),
        "obs": adata.obs.copy(),
        "var": adata.var.copy(),
        "uns": dict(adata.uns),
        **{f"obsm {k}": v.copy() for k, v in adata.obsm.items()},
        **{f"layer {k}": v.copy() for k, v in adata.layers.items()},
    }


def test_what_needs_no_counts_is_answered_as_before(golden, before):
    golden.minify_adata()
    assert golden.minified_data_type == BARE
    assert_same(answers(golden), before)


def test_what_needs_counts_is_refused(golden, refused):
    golden.minify_adata()
    for method, arguments in NEED_COUNTS.items():
        with refused(DataError, "minify_adata", "counts"):
            getattr(golden, method)(**arguments)
    with refused(DataError, "minif", "train"):
        golden.train(1, progress=False)


def test_data_with_counts_may_be_passed_all_the_same(golden):
    adata = golden.adata
    before = golden.get_elbo(return_mean=False, seed=1)
    golden.minify_adata()
    np.testing.assert_allclose(golden.get_elbo(adata, return_mean=False, seed=1), before, rtol=1e-6)


def test_it_is_saved_with_the_model_and_loaded_without_being_asked_for(golden, before, tmp_path):
    rows = [3, 5]
    golden.minify_adata()
    golden.save(tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert type(back) is type(golden)
    assert back.minified_data_type == BARE
    assert back.adata.X.nnz == 0
    assert_same(answers(back), before)
    again = type(back).load(tmp_path / "model", golden.adata[rows].copy())
    np.testing.assert_array_equal(
        again.get_latent_representation(return_dist=True)[0], before["mean"][rows]
    )


def test_the_original_data_stay_as_they_are(fitted):
    original = fitted.adata
    original.obsm["X_pca"] = np.ones((60, 2))
    before = contents(original)
    fitted.minify_adata()
    assert fitted.adata is not original
    after = contents(original)
    assert list(after) == list(before)
    for name in before:
        if isinstance(before[name], pd.DataFrame):
            pd.testing.assert_frame_equal(after[name], before[name])
        elif sp.issparse(before[name]):
            assert (after[name] != before[name]).nnz == 0
        elif name == "uns":
            assert after[name] == before[name]
        else:
            np.testing.assert_array_equal(after[name], before[name])


def test_the_counts_are_gone_and_the_rest_is_there(fitted):
    adata = fitted.adata
    adata.layers["log1p"] = adata.X.log1p()
    adata.raw = adata
    adata.obsm["X_pca"] = np.ones((60, 2))
    adata.varm["PCs"] = np.ones((30, 2))
    adata.obsp["distances"] = sp.eye(60, format="csr")
    adata.varp["network"] = np.ones((30, 30))
    adata.uns["colours"] = ["red"]
    fitted.minify_adata()
    small = fitted.adata
    assert small.shape == (60, 30)
    assert sp.issparse(small.X)
    assert small.X.nnz == 0
    assert not small.layers
    assert small.raw is None
    pd.testing.assert_frame_equal(small.obs[adata.obs.columns], adata.obs)
    pd.testing.assert_frame_equal(small.var, adata.var)
    np.testing.assert_array_equal(small.obsm["X_pca"], 1.0)
    np.testing.assert_array_equal(small.varm["PCs"], 1.0)
    np.testing.assert_array_equal(small.obsp["distances"].toarray(), np.eye(60))
    np.testing.assert_array_equal(small.varp["network"], 1.0)
    assert small.uns["colours"] == ["red"]
    np.testing.assert_array_equal(small.obs["observed_lib_size"], adata.X.sum(1).A1)
    mean, variance = fitted.get_latent_representation(adata, return_dist=True)
    np.testing.assert_array_equal(small.obsm["X_latent_qzm"], mean)
    np.testing.assert_array_equal(small.obsm["X_latent_qzv"], variance)


def test_counts_of_a_layer_are_gone_too(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    SCVI.setup_anndata(adata, layer="counts")
    fitted = SCVI(adata, n_hidden=8, n_latent=2)
    fitted.train(1, progress=False)
    before = fitted.get_normalized_expression(library_size="observed")
    fitted.minify_adata()
    assert fitted.adata.layers["counts"].nnz == fitted.adata.X.nnz == 0
    assert adata.layers["counts"].nnz == adata.X.nnz > 0
    pd.testing.assert_frame_equal(fitted.get_normalized_expression(library_size="observed"), before)


def test_with_counts_everything_is_answered_as_before(golden, before):
    counts = golden.adata.X.copy()
    elbo = golden.get_elbo(return_mean=False, seed=1)
    marginal = golden.get_marginal_ll(indices=[3, 8], n_mc_samples=5, return_mean=False, seed=1)
    golden.minify_adata(WITH_COUNTS)
    assert golden.minified_data_type == WITH_COUNTS
    assert (counts != golden.adata.X).nnz == 0
    assert_same(answers(golden), before)
    np.testing.assert_allclose(golden.get_elbo(return_mean=False, seed=1), elbo, rtol=1e-6)
    result = golden.get_marginal_ll(indices=[3, 8], n_mc_samples=5, return_mean=False, seed=1)
    np.testing.assert_allclose(result, marginal, rtol=1e-6)


def test_with_counts_the_data_stay_whole(tiny):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata
    adata.X = adata.X.log1p()
    adata.layers["more"] = adata.X.sqrt()
    adata.obsp["distances"] = sp.eye(60, format="csr")
    SCVI.setup_anndata(adata, layer="counts")
    fitted = SCVI(adata, n_hidden=8, n_latent=2)
    fitted.train(1, progress=False)
    fitted.minify_adata(WITH_COUNTS)
    kept = fitted.adata
    assert kept is not adata
    assert (kept.X != adata.X).nnz == 0
    assert set(kept.layers) == {"counts", "more"}
    for layer in kept.layers:
        assert (kept.layers[layer] != adata.layers[layer]).nnz == 0
    assert (kept.raw.X != adata.raw.X).nnz == 0
    assert set(kept.obsp) == {"distances"}
    assert "observed_lib_size" not in adata.obs


@pytest.mark.parametrize("saved_first", [False, True])
def test_training_on_minified_data_with_counts_is_that_on_the_data(
    fitted, tiny, saved, tmp_path, saved_first
):
    plain = SCVI.load(saved, tiny())
    fitted.minify_adata(WITH_COUNTS)
    if saved_first:
        fitted.save(tmp_path / "minified")
        fitted = SCVI.load(tmp_path / "minified")
    for model in (plain, fitted):
        model.train(2, batch_size=20, seed=4, progress=False)
    assert fitted.minified_data_type == WITH_COUNTS
    assert fitted.history["elbo_validation"].equals(plain.history["elbo_validation"])
    fitted.save(tmp_path / "trained")
    for model in (fitted, SCVI.load(tmp_path / "trained")):
        np.testing.assert_array_equal(
            model.get_latent_representation(), plain.get_latent_representation()
        )
        assert model.get_elbo(seed=0) == plain.get_elbo(seed=0)


def test_refused_training_keeps_the_stored_posterior(fitted, refused):
    fitted.adata.obsm["zero"] = np.zeros((60, 3), np.float32)
    fitted.minify_adata(WITH_COUNTS, "zero")
    with refused(OptionError, "recipe must be one of"):
        fitted.train(1, recipe="slow")
    assert not fitted.get_latent_representation().any()


def test_training_on_minified_data_without_counts_is_refused(fitted, refused):
    fitted.minify_adata()
    with refused(DataError, "counts", "were dropped", "train before minify_adata", "as adata="):
        fitted.train(1, progress=False)


def test_the_data_from_before_can_be_trained_on_and_minified_again(fitted, tmp_path):
    before = fitted.adata
    fitted.minify_adata(WITH_COUNTS)
    fitted.save(tmp_path / "minified")
    loaded = SCVI.load(tmp_path / "minified", before)
    loaded.train(1, progress=False)
    loaded.minify_adata(BARE)
    assert loaded.minified_data_type == BARE


def test_counts_are_read_only_to_be_kept(fitted, monkeypatch):
    monkeypatch.delattr("vivace.questions.minify.count_matrix")
    fitted.minify_adata(BARE)
    assert fitted.adata.X.nnz == 0


@pytest.fixture
def trained_further(saved, tiny):
    other = SCVI.load(saved, tiny())
    other.train(1, recipe="scvi-tools", progress=False)  # keeps the last weights, better or not
    return other


def test_another_model_has_nothing_to_say_about_data_without_counts(
    fitted, trained_further, refused, tmp_path
):
    """Not even the same one after more training."""
    fitted.minify_adata()
    for ask in (
        trained_further.get_latent_representation,
        trained_further.get_normalized_expression,
        trained_further.get_elbo,
    ):
        with refused(DataError, "another model", "counts"):
            ask(fitted.adata)
    trained_further.save(tmp_path / "further")
    with refused(DataError, "another model", "counts"):
        SCVI.load(tmp_path / "further", fitted.adata)


def test_another_model_encodes_data_that_kept_their_counts(fitted, trained_further):
    adata = fitted.adata
    fitted.minify_adata(WITH_COUNTS)
    result = trained_further.get_latent_representation(fitted.adata)
    np.testing.assert_array_equal(result, trained_further.get_latent_representation(adata))
    assert np.abs(result - fitted.get_latent_representation()).max() > 1e-3
    elbo = trained_further.get_elbo(fitted.adata, seed=0)
    assert elbo == trained_further.get_elbo(adata, seed=0)


def test_a_new_model_of_data_that_kept_their_counts_is_made(fitted):
    SCVI.setup_anndata(fitted.adata, batch_key="batch", labels_key="cell_type")
    fitted.minify_adata(WITH_COUNTS)
    fresh = SCVI(fitted.adata, n_hidden=8, n_latent=2)
    assert fresh.schema == fitted.schema


def test_a_new_model_of_data_without_counts_is_refused(fitted, refused):
    fitted.minify_adata()
    with refused(DataError, "minify_adata", "load"):
        SCVI(fitted.adata)
    with refused(DataError, "minify_adata", "load"):
        LinearSCVI(fitted.adata)


def test_the_latent_may_come_from_obsm(fitted):
    adata = fitted.adata
    rng = np.random.default_rng(0)
    adata.obsm["mine"] = rng.normal(size=(60, 3))
    adata.obsm["sure"] = rng.gamma(1.0, 1.0, (60, 3))
    computed = fitted.get_latent_representation(return_dist=True)
    fitted.minify_adata(use_latent_qzm_key="mine", use_latent_qzv_key="sure")
    mean, variance = fitted.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, adata.obsm["mine"].astype(np.float32))
    np.testing.assert_array_equal(variance, adata.obsm["sure"].astype(np.float32))
    expected = fitted.decode(mean).scale.numpy()
    np.testing.assert_allclose(fitted.get_normalized_expression(), expected, rtol=1e-5)
    assert np.abs(computed[0] - mean).max() > 0.1


def test_one_part_of_the_latent_may_come_from_obsm(fitted):
    fitted.adata.obsm["mine"] = np.ones((60, 3))
    computed = fitted.get_latent_representation(return_dist=True)
    fitted.minify_adata(WITH_COUNTS, use_latent_qzm_key="mine")
    mean, variance = fitted.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, np.ones((60, 3), np.float32))
    np.testing.assert_array_equal(variance, computed[1])


@pytest.mark.parametrize("argument", ["use_latent_qzm_key", "use_latent_qzv_key"])
def test_a_latent_that_is_not_there_or_of_another_shape_is_refused(fitted, refused, argument):
    adata = fitted.adata
    with refused(DataError, "'mine'", argument):
        fitted.minify_adata(**{argument: "mine"})
    adata.obsm["mine"] = np.ones((60, 4))
    with refused(ShapeError, "'mine'", argument, "(60, 4)", "(60, 3)"):
        fitted.minify_adata(**{argument: "mine"})
    assert fitted.adata is adata


def test_genes_in_another_order_are_the_same_data(golden, before):
    golden.minify_adata()
    turned = golden.adata[:, ::-1].copy()
    assert_same(answers(golden, turned), before)


def test_some_cells_in_another_order(golden):
    mean, variance = golden.get_latent_representation(return_dist=True)
    rows = np.array([200, 4, 33])
    scale = golden.get_normalized_expression(indices=rows)
    golden.minify_adata()
    some = golden.adata[rows].copy()
    result = golden.get_latent_representation(some, return_dist=True)
    np.testing.assert_array_equal(result[0], mean[rows])
    np.testing.assert_array_equal(result[1], variance[rows])
    pd.testing.assert_frame_equal(golden.get_normalized_expression(some), scale, rtol=1e-5)


def test_data_that_lack_a_gene_are_refused(fitted, refused):
    fitted.minify_adata()
    with refused(MissingColumnError, "30 genes", "'gene0'"):
        fitted.get_latent_representation(fitted.adata[:, 1:].copy())


def test_they_survive_writing_and_reading_h5ad(golden, before, tmp_path):
    golden.minify_adata()
    golden.adata.write_h5ad(tmp_path / "small.h5ad")
    back = anndata.read_h5ad(tmp_path / "small.h5ad")
    assert_same(answers(golden, back), before)


def test_minified_twice_is_refused(fitted, refused):
    fitted.minify_adata()
    for kind in (BARE, WITH_COUNTS):
        with refused(DataError, "minified already; there is nothing to drop."):
            fitted.minify_adata(kind)


def test_minified_with_counts_twice_is_refused(fitted, refused):
    fitted.minify_adata(WITH_COUNTS)
    for kind in (BARE, WITH_COUNTS):
        with refused(DataError, "minified already; to drop their counts too, save", "as adata="):
            fitted.minify_adata(kind)


def test_scvi_tools_format_is_refused(fitted, refused, tmp_path):
    fitted.minify_adata()
    with refused(OptionError, "scvi-tools", "minif"):
        fitted.save(tmp_path / "theirs", format="scvi-tools")
    assert not (tmp_path / "theirs").exists()


def test_an_unknown_kind_is_refused(fitted, refused):
    with refused(OptionError, "minified_data_type", "'counts'", BARE):
        fitted.minify_adata("counts")
    assert fitted.minified_data_type is None


def test_an_untrained_model_cannot_minify(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(NotTrainedError, "train()"):
        SCVI(adata, n_hidden=8).minify_adata()


@pytest.mark.parametrize("lost", ["X_latent_qzm", "X_latent_qzv", "observed_lib_size"])
def test_data_that_lost_what_was_stored_are_refused(fitted, refused, lost):
    fitted.minify_adata()
    adata = fitted.adata.copy()
    del (adata.obs if lost == "observed_lib_size" else adata.obsm)[lost]
    with refused(DataError, lost, "load"):
        fitted.get_latent_representation(adata)


def test_data_that_lost_a_latent_library_are_refused(refused):
    golden = load("zinb_latent_library")
    golden.minify_adata()
    adata = golden.adata.copy()
    del adata.obs["latent_lib_mean"]
    with refused(DataError, "latent_lib_mean", "load"):
        golden.get_normalized_expression(adata, library_size="latent")


def test_columns_of_a_latent_library_that_another_model_left_are_not_read(fitted):
    """Where the library is observed they mean nothing, and would change what is sampled."""
    before = fitted.posterior_predictive_sample(seed=1)
    fitted.adata.obs["latent_lib_mean"] = 9.0
    fitted.adata.obs["latent_lib_variance"] = 1.0
    fitted.minify_adata()
    assert (fitted.posterior_predictive_sample(seed=1) != before).nnz == 0


def test_the_latent_library_is_kept():
    golden = load("zinb_latent_library")
    inferred = golden.get_latent_library_size()
    golden.minify_adata()
    mean = golden.adata.obs["latent_lib_mean"] + 0.5 * golden.adata.obs["latent_lib_variance"]
    np.testing.assert_allclose(np.exp(mean), inferred[:, 0], rtol=1e-5)


def test_abundance_is_told_from_minified_data(fitted):
    before = fitted.differential_abundance(sample_key="donor")
    fitted.minify_adata()
    pd.testing.assert_frame_equal(fitted.differential_abundance(sample_key="donor"), before)


@pytest.mark.parametrize(
    ("key", "values", "part"),
    [
        ("use_latent_qzv_key", -1.0, "above 0"),
        ("use_latent_qzm_key", np.nan, "not finite"),
    ],
)
def test_a_posterior_that_is_none_is_refused(saved, tiny, refused, key, values, part):
    model = SCVI.load(saved, tiny())
    model.adata.obsm["q"] = np.full((60, 3), values)
    with refused(OptionError if part == "not finite" else DataError, "q", part):
        model.minify_adata(**{key: "q"})
    assert model.minified_data_type is None


def test_minified_data_that_were_damaged_are_refused(saved, tiny, refused):
    model = SCVI.load(saved, tiny())
    model.minify_adata()
    cut, broken = model.adata.copy(), model.adata.copy()
    cut.obsm["X_latent_qzm"] = cut.obsm["X_latent_qzm"][:, :2]
    broken.uns["vivace_minified"] = "{"
    for damaged in (cut, broken):
        with refused(DataError, "load"):
            model.get_latent_representation(damaged)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("obsm", "X_latent_qzm", np.nan),
        ("obsm", "X_latent_qzv", -1.0),
        ("obsm", "X_latent_qzv", np.inf),
        ("obs", "observed_lib_size", 0.0),
        ("obs", "observed_lib_size", np.nan),
    ],
)
def test_a_stored_posterior_that_was_changed_is_refused(fitted, refused, place, key, value):
    fitted.minify_adata()
    adata = fitted.adata.copy()
    part = getattr(adata, place)
    changed = np.array(part[key])
    changed.reshape(-1)[3] = value
    part[key] = changed
    with refused(DataError, key, "must be finite", "load them again"):
        fitted.get_latent_representation(adata)


def test_a_stored_posterior_of_text_is_refused(fitted, refused):
    fitted.minify_adata()
    adata = fitted.adata.copy()
    adata.obs["observed_lib_size"] = "many"
    with refused(DataError, "does not hold numbers"):
        fitted.get_latent_representation(adata)


@pytest.mark.parametrize("kind", [5, None, "posterior"])
def test_an_unknown_kind_of_minified_data_is_refused(fitted, refused, kind):
    fitted.minify_adata()
    adata = fitted.adata.copy()
    stamp = json.loads(adata.uns["vivace_minified"]) | {"type": kind}
    adata.uns["vivace_minified"] = json.dumps(stamp)
    with refused(DataError, "cannot be read"):
        fitted.get_latent_representation(adata)
