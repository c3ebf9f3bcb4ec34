"""What a model prints."""

from __future__ import annotations

from vivace import SCVI


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


def test_one_epoch_and_covariates_without_categories(tiny, tmp_path):
    adata = tiny()
    SCVI.setup_anndata(adata, continuous_covariate_keys=["age"], size_factor_key="depth")
    model = SCVI(adata, n_hidden=16, n_latent=3)
    model.train(max_epochs=1, progress=False)
    assert "trained: 1 epoch on" in model.summary
    age = adata.obs["age"]
    scale = f"mean {age.mean():.4g}, sd {age.std(ddof=0):.4g}"
    assert (
        f"; continuous covariate obs['age'] ({scale}); size factor obs['depth']\n" in model.summary
    )
    model.save(tmp_path / "model")
    assert "\nno data attached; 30 genes; " in SCVI.load(tmp_path / "model").summary
