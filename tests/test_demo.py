from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import vivace
from vivace import cli

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_demo_writes_a_latent_space_that_tells_cell_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["vivace", "demo", "-o", str(folder), "--quiet"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for part in ("2,638 cells x 2,005 genes", "epochs", " s (", "Held-out ELBO: -"):
        assert part in said

    adata = anndata.read_h5ad(folder / "pbmc3k.h5ad")
    latent = adata.obsm["X_scVI"]
    assert latent.shape == (2638, 10)
    accuracy = cross_val_score(KNeighborsClassifier(15), latent, adata.obs["cell_type"], cv=5)
    assert accuracy.mean() > 0.85
    model = vivace.SCVI.load(folder / "model")
    np.testing.assert_array_equal(model.get_latent_representation(adata), latent)
    assert (folder / "overview.png").read_bytes()[:8] == PNG


def test_the_demo_data_are_counts_small_and_labelled() -> None:
    adata = vivace.datasets.pbmc3k()
    assert (adata.X.data % 1 == 0).all()
    assert adata.obs["cell_type"].nunique() == 8
    assert (Path(vivace.datasets.__file__).parent / "pbmc3k.h5ad").stat().st_size < 1_500_000
