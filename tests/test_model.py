from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import vivace
from vivace import SCVI
from vivace.errors import ArgumentTypeError, DataError, NotTrainedError, OptionError
from vivace.train import fit

SMALL = {"n_hidden": 16, "n_latent": 3}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums in another order

INDICES = {
    "mask": (np.arange(60) % 7 == 0, list(range(0, 60, 7))),
    "mask as a list": ([True] + [False] * 58 + [True], [0, 59]),
    "mask as a column": (pd.Series(np.arange(60) > 56), [57, 58, 59]),
    "unsorted": ([50, 3, 17], [50, 3, 17]),
    "repeated": (np.array([4, 4, 2, 4]), [4, 4, 2, 4]),
    "negative": ([-1, 0, -60], [59, 0, 0]),
    "small integers": (np.array([7, 5], np.uint8), [7, 5]),
    "range": (range(10, 13), [10, 11, 12]),
    "none": ([], []),
}


@pytest.fixture
def ready(tiny):
    """Data that are set up, and a function that makes an untrained model of them."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    return lambda **options: SCVI(adata, **SMALL | options)


def numbers_of(model: SCVI) -> dict[str, np.ndarray]:
    """What a model answers about its own cells."""
    mean, variance = model.get_latent_representation(return_dist=True)
    return {
        "mean": mean,
        "variance": variance,
        "draw": model.get_latent_representation(give_mean=False, seed=3),
        "elbo": model.get_elbo(return_mean=False, seed=3),
    }


def assert_same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


# ---- the latent space --------------------------------------------------------


def test_latent_has_one_row_a_cell_and_is_the_mean(trained):
    latent = trained.get_latent_representation()
    mean, variance = trained.get_latent_representation(return_dist=True)
    assert latent.shape == variance.shape == (60, 3)
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()
    assert (variance > 0).all()
    np.testing.assert_array_equal(latent, mean)


def test_the_distribution_is_no_draw(saved, tiny):
    plain, asked = (SCVI.load(saved, tiny()) for _ in "ab")
    mean, _ = asked.get_latent_representation(give_mean=False, return_dist=True)
    np.testing.assert_array_equal(mean, plain.get_latent_representation())
    assert asked.get_elbo() == plain.get_elbo()  # no seed was taken


def test_latent_tells_cells_apart(trained):
    assert len(np.unique(trained.get_latent_representation(), axis=0)) == 60


@pytest.mark.parametrize(("indices", "rows"), INDICES.values(), ids=INDICES.keys())
def test_indices_pick_rows_of_the_latent_in_their_order(trained, indices, rows):
    everything = trained.get_latent_representation()
    picked = trained.get_latent_representation(indices=indices)
    assert picked.shape == (len(rows), 3)
    np.testing.assert_allclose(picked, everything[np.array(rows, int)], **CLOSE)


@pytest.mark.parametrize(
    ("indices", "error", "parts"),
    [
        ([60], OptionError, ("60", "60 cells")),
        ([0, -61], OptionError, ("-61", "60 cells")),
        ([True, False], OptionError, ("mask of 2", "60 cells", "one value per cell")),
        ([0.5], ArgumentTypeError, ("integers or a mask", "float64")),
        (["cell3"], ArgumentTypeError, ("integers or a mask",)),
        ([[1, 2]], ArgumentTypeError, ("one-dimensional", "(1, 2)")),
        ([[1], [2, 3]], ArgumentTypeError, ("one-dimensional",)),
        (3, ArgumentTypeError, ("one-dimensional",)),
        (slice(3), ArgumentTypeError, ("one-dimensional",)),
    ],
)
def test_indices_that_name_no_cells_are_refused(trained, refused, indices, error, parts):
    with refused(error, "indices", *parts):
        trained.get_latent_representation(indices=indices)


def test_a_draw_has_the_moments_of_its_distribution(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    draws = [trained.get_latent_representation(give_mean=False, seed=s) for s in range(20)]
    standard = (np.stack(draws) - mean) / np.sqrt(variance)
    n = standard.size  # bounds are four standard errors
    assert abs(standard.mean()) < 4 / np.sqrt(n)
    assert abs(standard.var() - 1) < 4 * np.sqrt(2 / n)


# ---- ELBO and reconstruction -------------------------------------------------


def test_elbo_is_minus_reconstruction_minus_kl(trained):
    mean, variance = (
        part.astype(float) for part in trained.get_latent_representation(return_dist=True)
    )
    kl = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(1)
    options = {"return_mean": False, "n_samples": 3, "seed": 4}
    error = trained.get_reconstruction_error(**options)["reconstruction_loss"]
    np.testing.assert_allclose(trained.get_elbo(**options), -error - kl, rtol=1e-6)


def test_means_over_cells(trained):
    each = trained.get_elbo(return_mean=False, seed=4)
    assert each.shape == (60,)
    assert each.dtype == np.float64
    assert trained.get_elbo(seed=4) == pytest.approx(each.mean(), rel=1e-12)
    error = trained.get_reconstruction_error(seed=4)
    each = trained.get_reconstruction_error(seed=4, return_mean=False)
    assert list(error) == list(each) == ["reconstruction_loss"]
    assert error["reconstruction_loss"] == pytest.approx(each["reconstruction_loss"].mean())


def test_more_samples_give_a_steadier_answer(trained):
    def spread(n_samples):
        values = [
            trained.get_elbo(return_mean=False, n_samples=n_samples, seed=s) for s in range(8)
        ]
        return np.std(values, axis=0).mean()

    assert spread(9) < 0.5 * spread(1)  # a third, were there no noise in the spread itself


def test_the_likelihood_is_that_of_the_decoded_rates(tiny, ready):
    model = ready(gene_likelihood="poisson")
    model.train(1, progress=False)
    with torch.no_grad():
        heads, k = model.module.encoder.latent, model.config.n_latent
        heads.bias[k:] = -30.0  # next to no variance: z is its mean
        heads.weight[:, k:] = 0.0
        batch = model._own_source().gather(np.arange(60))
        rates = model.module.rates(torch.from_numpy(model.get_latent_representation()), batch)
    expected = -torch.distributions.Poisson(rates.mu.double()).log_prob(
        torch.from_numpy(tiny().X.toarray()).double()
    )
    error = model.get_reconstruction_error(return_mean=False, n_samples=5, seed=0)
    np.testing.assert_allclose(error["reconstruction_loss"], expected.sum(1), rtol=0.01)


@pytest.mark.parametrize("method", ["get_elbo", "get_reconstruction_error"])
def test_a_mean_over_no_cells_is_refused(trained, refused, method):
    with refused(OptionError, "no cells", "indices"):
        getattr(trained, method)(indices=[])


# ---- randomness --------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 59, 1000])
def test_what_is_drawn_does_not_depend_on_the_batch_size(trained, batch_size):
    for size in (batch_size, np.int64(batch_size)):
        np.testing.assert_allclose(
            trained.get_latent_representation(give_mean=False, seed=3, batch_size=size),
            trained.get_latent_representation(give_mean=False, seed=3),
            **CLOSE,
        )
    options = {"return_mean": False, "n_samples": 2, "seed": 3}
    np.testing.assert_allclose(
        trained.get_elbo(batch_size=batch_size, **options), trained.get_elbo(**options), rtol=1e-5
    )


def test_an_integer_seed_repeats_and_another_differs(trained):
    first, again, other = (
        trained.get_latent_representation(give_mean=False, seed=s) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any(axis=1).all()
    elbos = [trained.get_elbo(seed=s) for s in (3, 3, 4)]
    assert elbos[0] == elbos[1] != elbos[2]


def test_without_a_seed_each_call_goes_on_in_the_models_stream(saved, tiny):
    models = [SCVI.load(saved, tiny()) for _ in "ab"]
    first, second = ([model.get_elbo() for _ in range(3)] for model in models)
    assert first == second
    assert len(set(first)) == 3


def test_a_given_seed_leaves_the_stream_where_it_is(saved, tiny):
    plain, seeded = (SCVI.load(saved, tiny()) for _ in "ab")
    seeded.get_elbo(seed=5)
    assert plain.get_elbo() == seeded.get_elbo()


def test_a_refused_call_leaves_the_stream_where_it_is(ready, refused):
    plain, troubled = ready(), ready()
    with refused(OptionError, "max_epochs"):
        troubled.train(0)
    for model in (plain, troubled):
        model.train(1, progress=False)
    assert_same_bits(numbers_of(plain), numbers_of(troubled))


def test_the_same_script_gives_the_same_bits(ready):
    first, second = ready(), ready()
    for model in (first, second):
        model.train(2, batch_size=20, progress=False)
    assert_same_bits(numbers_of(first), numbers_of(second))
    pd.testing.assert_frame_equal(
        first.history.drop(columns=["seconds", "compile_seconds"]),
        second.history.drop(columns=["seconds", "compile_seconds"]),
        check_exact=True,
    )


def test_another_package_seed_starts_another_model(ready):
    first = ready()
    vivace.settings.seed = 1
    weights = [model.module.encoder.latent.weight for model in (first, ready())]
    assert not torch.equal(*weights)


def test_another_training_seed_gives_another_split_and_model(ready):
    first, second = ready(), ready()
    first.train(1, seed=1, progress=False)
    second.train(1, seed=2, progress=False)
    assert first.train_indices.tolist() != second.train_indices.tolist()
    assert not np.allclose(first.get_latent_representation(), second.get_latent_representation())


def test_global_random_states_are_neither_read_nor_moved(ready):
    def answers(seed):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        model = ready()
        model.train(1, progress=False)
        numbers = numbers_of(model)
        assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[1])
        return numbers

    assert_same_bits(answers(0), answers(1))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1"])
def test_seeds_that_are_none_are_refused(trained, refused, seed):
    for call in (trained.train, trained.get_elbo, trained.get_reconstruction_error):
        with refused(ArgumentTypeError, "seed", str(seed)):
            call(seed=seed)
    with refused(ArgumentTypeError, "seed", str(seed)):
        trained.get_latent_representation(give_mean=False, seed=seed)


def test_a_package_seed_that_is_none_is_refused(ready, refused):
    vivace.settings.seed = -1
    with refused(ArgumentTypeError, "seed", "-1"):
        ready()


# ---- training ----------------------------------------------------------------


def test_history_has_scvi_tools_columns_and_one_row_an_epoch(trained):
    history = trained.history
    assert list(history) == [
        "train_loss",
        "elbo_train",
        "reconstruction_loss_train",
        "kl_local_train",
        "validation_loss",
        "elbo_validation",
        "reconstruction_loss_validation",
        "kl_local_validation",
        "lr",
        "kl_weight",
        "seconds",
        "compile_seconds",
    ]
    assert history.index.name == "epoch"
    assert history.index.tolist() == [0, 1]
    assert np.isfinite(history.to_numpy()).all()
    for part in ("train", "validation"):
        total = history[f"reconstruction_loss_{part}"] + history[f"kl_local_{part}"]
        np.testing.assert_allclose(history[f"elbo_{part}"], total)
    # the weight of the KL at the end of the epoch is the one that validation sees
    weighted = history["kl_weight"] * history["kl_local_validation"]
    np.testing.assert_allclose(
        history["validation_loss"], history["reconstruction_loss_validation"] + weighted, rtol=1e-6
    )


def test_the_history_is_a_copy(trained):
    history = trained.history
    history.loc[0, "lr"] = 99.0
    assert trained.history.loc[0, "lr"] != 99.0


def test_training_lowers_the_loss(tiny):
    adata = tiny(100)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    model.train(6, batch_size=30, progress=False)
    losses = model.history["reconstruction_loss_train"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_new_model_has_no_history(ready, refused):
    model = ready()
    assert not model.is_trained
    assert model.history.empty
    assert "elbo_validation" in model.history
    for question in (
        model.get_latent_representation,
        model.get_elbo,
        model.get_reconstruction_error,
    ):
        with refused(NotTrainedError, "train()"):
            question()


def test_training_again_keeps_the_split_and_appends(ready):
    model = ready()
    model.train(2, train_size=0.7, validation_size=0.2, progress=False)
    split = [
        rows.tolist()
        for rows in (model.train_indices, model.validation_indices, model.test_indices)
    ]
    first = model.history
    weights = model.module.decoder.scale.weight.detach().clone()
    model.train(1, progress=False)
    again = [model.train_indices, model.validation_indices, model.test_indices]
    assert [rows.tolist() for rows in again] == split
    assert [len(rows) for rows in split] == [42, 12, 6]
    assert model.history.index.tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(model.history[:2], first)
    assert not torch.equal(model.module.decoder.scale.weight, weights)


def test_a_second_call_of_the_fast_recipe_does_not_warm_up_again(ready):
    model = ready()
    model.train(4, progress=False)
    assert model.history["kl_weight"].iloc[0] < 1
    model.train(4, progress=False)
    assert (model.history["kl_weight"].iloc[4:] == 1).all()


def test_an_interrupted_model_can_be_shown_asked_and_saved(ready, tiny, tmp_path, monkeypatch):
    def interrupted(*arguments):
        fit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("vivace.train.run.fit", interrupted)
    model = ready()
    with pytest.raises(KeyboardInterrupt):
        model.train(2, progress=False)
    assert "2 epochs on 54 cells" in repr(model)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert_same_bits(numbers_of(model), numbers_of(loaded))


def test_training_on_every_cell(ready):
    model = ready()
    model.train(1, train_size=1.0, progress=False)
    assert model.train_indices.tolist() == list(range(60))
    assert len(model.validation_indices) == len(model.test_indices) == 0
    assert model.history["elbo_validation"].isna().all()
    assert model.history["elbo_train"].notna().all()
    assert "nan" not in repr(model)


@pytest.mark.parametrize("n_cells", [1, 2, 3, 21, 41])
def test_any_number_of_cells_trains(tiny, n_cells):
    adata = tiny(n_cells)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **SMALL)
    model.train(1, batch_size=20, train_size=1.0, progress=False)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_elbo())


def test_the_scvi_tools_recipe_keeps_its_learning_rate_and_warms_up_over_400_epochs(ready):
    model = ready()
    model.train(3, recipe="scvi-tools", progress=False)
    assert model.history["lr"].tolist() == [1e-3] * 3
    np.testing.assert_allclose(model.history["kl_weight"], [0, 1 / 400, 2 / 400])


def test_plan_kwargs_replace_numbers_of_the_recipe(ready):
    model = ready()
    plan = {"lr": 2e-4, "n_epochs_kl_warmup": 2, "max_kl_weight": 0.5}
    model.train(3, recipe="scvi-tools", plan_kwargs=plan, progress=False)
    assert model.history["lr"].tolist() == [2e-4] * 3
    assert model.history["kl_weight"].tolist() == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "poisson"},
        {"gene_likelihood": "zero_inflated_negative_binomial"},
        {"n_layers": 2, "encode_covariates": True},
        {"n_layers": 2, "deeply_inject_covariates": False},
        {"use_batch_norm": "none", "use_layer_norm": "both"},
        {"log_variational": False, "dropout_rate": 0},
        {"n_latent": np.int64(4), "dropout_rate": np.float32(0.25)},
    ],
    ids=str,
)
def test_every_option_trains_and_survives_a_save(tiny, ready, tmp_path, options):
    model = ready(**options)
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert loaded.config == model.config
    assert_same_bits(numbers_of(model), numbers_of(loaded))
    assert np.isfinite(numbers_of(model)["elbo"]).all()


def test_covariates_of_every_kind_reach_the_decoder(tiny):
    adata = tiny()
    SCVI.setup_anndata(
        adata,
        batch_key="batch",
        size_factor_key="depth",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )
    model = SCVI(adata, **SMALL)
    model.train(1, progress=False)
    before = model.get_elbo(return_mean=False, seed=0)
    for column, values in (
        ("batch", "b1"),
        ("donor", "d2"),
        ("age", 20.0),
        ("depth", 3.0),
    ):
        other = adata.copy()
        other.obs[column] = values
        after = model.get_elbo(other, return_mean=False, seed=0)
        changed = adata.obs[column].to_numpy() != values
        # a cell or two may come out the same by chance
        assert (np.abs(after - before)[changed] > 1e-4).mean() > 0.9, column
        np.testing.assert_allclose(after[~changed], before[~changed], rtol=1e-5)


# ---- new data ----------------------------------------------------------------


def test_new_data_with_shuffled_and_further_genes(trained, saved, tiny):
    new = tiny(40, 30, seed=7)
    wide = tiny(40, 50, seed=7)
    x = np.zeros((40, 50), np.float32)
    x[:, :30] = new.X.toarray()
    x[:, 30:] = 5  # genes that the model does not know
    wide.X = x
    wide.obs = new.obs
    wide = wide[:, np.random.default_rng(0).permutation(50)].copy()
    answerer = SCVI.load(saved)
    assert answerer.adata is None
    for model in (trained, answerer):
        np.testing.assert_array_equal(
            model.get_latent_representation(wide), trained.get_latent_representation(new)
        )
        assert model.get_elbo(wide, seed=2) == trained.get_elbo(new, seed=2)


def test_new_data_need_not_be_set_up_and_stay_as_they_are(trained, tiny):
    new = tiny(40, 30, seed=7)
    trained.get_latent_representation(new)
    assert not new.uns
    assert list(new.obs) == list(tiny().obs)


def test_the_models_own_data_passed_explicitly(trained):
    np.testing.assert_array_equal(
        trained.get_latent_representation(trained.adata), trained.get_latent_representation()
    )


# ---- files -------------------------------------------------------------------


@pytest.mark.parametrize("with_data", [True, False])
def test_a_loaded_model_answers_identically(trained, tiny, tmp_path, with_data):
    trained.save(tmp_path / "model", save_anndata=with_data)
    loaded = SCVI.load(tmp_path / "model", None if with_data else tiny())
    assert_same_bits(numbers_of(trained), numbers_of(loaded))
    pd.testing.assert_frame_equal(loaded.history, trained.history, check_exact=True)
    for rows in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(loaded, rows), getattr(trained, rows))
    assert loaded.schema == trained.schema
    assert repr(loaded) == repr(trained)
    assert loaded.get_elbo() == SCVI.load(tmp_path / "model", tiny()).get_elbo()


def test_a_model_loaded_without_data_says_so(saved, refused):
    model = SCVI.load(saved)
    assert model.is_trained
    assert "none attached" in repr(model)
    for question in (model.get_latent_representation, model.get_elbo, model.train):
        with refused(DataError, "without data", "adata="):
            question()


def test_a_loaded_model_trains_on_as_the_original_would(saved, tiny):
    loaded = SCVI.load(saved, tiny())
    loaded.save(saved.parent / "copy")
    other = SCVI.load(saved.parent / "copy", tiny())
    split = loaded.train_indices.tolist()
    for model in (loaded, other):
        model.train(1, progress=False)
    assert_same_bits(numbers_of(loaded), numbers_of(other))
    assert loaded.train_indices.tolist() == split
    assert loaded.history.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_cells", [20, 90])
def test_other_data_get_a_split_of_their_own(saved, tiny, n_cells):
    model = SCVI.load(saved, tiny(n_cells, seed=5))
    model.train(1, progress=False)
    rows = [*model.train_indices.tolist(), *model.validation_indices.tolist()]
    assert sorted(rows) == list(range(n_cells))
    assert len(model.history) == 3


def test_an_untrained_model_can_be_saved_and_trained_later(ready, tiny, tmp_path):
    model = ready()
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", tiny())
    assert not loaded.is_trained
    for each in (model, loaded):
        each.train(1, progress=False)
    assert_same_bits(numbers_of(model), numbers_of(loaded))


def test_paths_may_be_text(trained, tmp_path):
    trained.save(str(tmp_path / "deep" / "model"))
    assert SCVI.load(str(tmp_path / "deep" / "model")).is_trained


@pytest.mark.parametrize("call", [SCVI.load, lambda path: SCVI.save(None, path)])
def test_a_path_of_a_wrong_type_is_refused(refused, call):
    with refused(ArgumentTypeError, "dir_path", "5"):
        call(5)


# ---- what a model says of itself ---------------------------------------------


def test_repr_names_options_data_and_training(trained, ready):
    text = repr(trained)
    for part in ("zinb", "3 latent", "1 layer of 16", "60 cells x 30 genes", "obs['batch']"):
        assert part in text
    for part in ("2 epochs", "54 cells", "'fast'", "KL weight", "validation"):
        assert part in text
    assert text == trained.summary
    new = repr(ready(n_layers=2))
    assert "2 layers" in new
    assert "not trained: call train()" in new


def test_the_device_of_a_model(ready):
    model = ready()
    assert model.device == torch.device("cpu")
    model.to_device("meta")
    assert model.device == torch.device("meta")


def test_splits_are_sorted_and_apart(trained):
    assert (np.diff(trained.train_indices) > 0).all()
    assert len(trained.train_indices) == 54
    everything = [*trained.train_indices, *trained.validation_indices, *trained.test_indices]
    assert sorted(everything) == list(range(60))
