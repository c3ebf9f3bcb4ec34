from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData

import vivace
from vivace.data import CountBatch, MemorySource
from vivace.errors import DataError, TrainingError
from vivace.train.initialise import initialise_from_data

ACCELERATORS = [pytest.param("cpu")]
if torch.cuda.is_available():
    ACCELERATORS.append(pytest.param("cuda", marks=pytest.mark.gpu))
if torch.backends.mps.is_available():
    ACCELERATORS.append(pytest.param("mps", marks=pytest.mark.gpu))


def counts(n_cells: int, n_genes: int = 12, seed: int = 0) -> AnnData:
    x = np.random.default_rng(seed).poisson(2.0, (n_cells, n_genes)) + 1
    adata = AnnData(x.astype(np.float32))
    vivace.SCVI.setup_anndata(adata)
    return adata


def get_model(adata: AnnData, **options: object) -> vivace.SCVI:
    return vivace.SCVI(adata, n_hidden=8, n_latent=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_training_on_every_device_lowers_the_loss(accelerator: str, likelihood: str) -> None:
    adata = vivace.datasets.pbmc3k()[:400].copy()
    vivace.SCVI.setup_anndata(adata)
    model = vivace.SCVI(adata, gene_likelihood=likelihood)  # type: ignore[arg-type]
    model.train(6, accelerator=accelerator, progress=False)
    history = model.history
    assert model.device.type == accelerator
    assert history["elbo_train"].iloc[-1] < 0.98 * history["elbo_train"].iloc[0]
    assert np.isfinite(history.to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("n_cells", [1, 2, 3, 128, 129, 130, 142, 143, 144, 257])
@pytest.mark.parametrize("train_size", [0.9, 1.0])
def test_every_number_of_cells_trains(n_cells: int, train_size: float) -> None:
    model = get_model(counts(n_cells))
    model.train(2, train_size=train_size, progress=False)
    assert np.isfinite(model.history["train_loss"]).all()
    assert np.isfinite(model.get_elbo())
    used = len(model.train_indices) + len(model.validation_indices)
    assert used == n_cells


def test_history_adds_up() -> None:
    model = get_model(counts(200))
    model.train(4, progress=False)
    h = model.history
    assert list(h.index) == [0, 1, 2, 3]
    for part in ("train", "validation"):
        recon, kl = h[f"reconstruction_loss_{part}"], h[f"kl_local_{part}"]
        np.testing.assert_allclose(h[f"elbo_{part}"], recon + kl, rtol=1e-5)
    np.testing.assert_allclose(
        h["validation_loss"],
        h["reconstruction_loss_validation"] + h["kl_weight"] * h["kl_local_validation"],
        rtol=1e-5,
    )
    assert h["kl_weight"].iloc[-1] == 1.0


def test_without_validation_cells_the_columns_are_empty() -> None:
    model = get_model(counts(40))
    model.train(1, train_size=1.0, progress=False)
    assert model.history["elbo_validation"].isna().all()
    assert len(model.validation_indices) == 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    latents = []
    for seed in (1, 1, 2):
        model = get_model(counts(150))
        model.train(3, seed=seed, progress=False)
        latents.append(model.get_latent_representation())
    assert np.array_equal(latents[0], latents[1])
    assert not np.array_equal(latents[0], latents[2])


def test_training_again_goes_on() -> None:
    model = get_model(counts(150))
    model.train(3, progress=False)
    rows = model.train_indices.copy()
    first = model.history
    model.train(2, progress=False)
    assert np.array_equal(model.train_indices, rows)
    assert len(model.history) == 5
    np.testing.assert_array_equal(model.history.iloc[:3].to_numpy(), first.to_numpy())
    assert (model.history["kl_weight"].iloc[3:] == 1.0).all()
    assert model.history["lr"].iloc[3] > 0
    assert model.history["elbo_train"].iloc[3] < first["elbo_train"].iloc[0]


def test_a_loss_that_is_not_finite_is_an_error_not_a_result() -> None:
    model = get_model(counts(50))
    with torch.no_grad():
        model.module.decoder.scale.weight[0, 0] = float("nan")
    with (
        pytest.warns(RuntimeWarning, match="in epoch 1; the epoch is repeated with half"),
        pytest.raises(TrainingError, match=r"in epoch 1, .* train a new model with a lower learn"),
    ):
        model.train(1, recipe="scvi-tools", progress=False)
    assert not model.is_trained


def test_an_epoch_that_went_wrong_is_done_again_with_smaller_steps() -> None:
    model = get_model(counts(150))
    model.train(2, progress=False)
    weight = model.module.decoder.scale.weight
    broken = []

    class Break(vivace.train.Callback):
        def on_epoch_end(self, model: vivace.SCVI, row: dict[str, float]) -> None:
            if not broken:  # the next epoch's first loss is not finite, but its start is
                broken.append(weight.detach().clone())

    plain = MemorySource.gather

    def gather(self: MemorySource, rows: np.ndarray) -> CountBatch:
        if len(broken) == 1:
            broken.append(weight.detach().clone())
            with torch.no_grad():
                weight.fill_(float("nan"))
        return plain(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySource, "gather", gather)
        with pytest.warns(RuntimeWarning, match="in epoch 2; the epoch is repeated with half"):
            model.train(3, callbacks=Break(), progress=False)
    assert len(model.history) == 5
    assert np.isfinite(model.history.to_numpy()).all()
    lr = model.history["lr"].to_numpy()
    assert lr[3] < 0.51 * lr[2]


def test_after_a_failure_the_last_finite_weights_answer() -> None:
    model = get_model(counts(150))
    model.train(2, progress=False)
    before = model.get_elbo(seed=0)
    with (
        pytest.warns(RuntimeWarning, match="epoch is repeated"),
        pytest.raises(TrainingError, match="weights are those from before it"),
    ):
        model.train(3, plan_kwargs={"lr": 1e38}, progress=False)
    assert np.isfinite(model.get_latent_representation()).all()
    if len(model.history) == 2:
        assert model.get_elbo(seed=0) == before


def test_counts_changed_in_place_are_noticed() -> None:
    adata = vivace.datasets.pbmc3k()[:100].copy()
    vivace.SCVI.setup_anndata(adata)
    model = get_model(adata)
    model.train(1, progress=False)
    np.log1p(adata.X.data, out=adata.X.data)
    for question in (model.train, model.get_elbo, model.get_latent_representation):
        with pytest.raises(DataError, match=r"changed in place .* keep them in a layer"):
            question()


def test_training_needs_data(tmp_path: object) -> None:
    model = get_model(counts(50))
    model.train(1, progress=False)
    model.save(f"{tmp_path}/m")
    with pytest.raises(DataError, match="loaded without data"):
        vivace.SCVI.load(f"{tmp_path}/m").train(1)


def test_initial_bias_and_dispersion_are_the_moments_of_the_data() -> None:
    generator = np.random.default_rng(0)
    theta, rho = 2.0, np.array([0.5, 0.3, 0.2])
    library = generator.integers(50, 200, 20_000)
    mu = library[:, None] * rho
    x = generator.poisson(mu * generator.gamma(theta, 1 / theta, mu.shape)).astype(np.float32)
    adata = AnnData(x)
    adata.obs["size"] = library.astype(np.float32)
    keep = x.sum(1) > 0
    adata = adata[keep].copy()
    vivace.SCVI.setup_anndata(adata, size_factor_key="size")
    model = vivace.SCVI(adata, gene_likelihood="nb")
    initialise_from_data(model.module, model._own_source(), np.arange(adata.n_obs), generator)
    softplus_of_bias = np.log1p(np.exp(model.module.decoder.scale.bias.detach().numpy()))
    np.testing.assert_allclose(softplus_of_bias, rho, rtol=0.03)
    np.testing.assert_allclose(model.module.log_theta.detach().exp().numpy(), theta, rtol=0.1)
