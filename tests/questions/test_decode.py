"""``model.decode``: the observation distribution at any point."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from vivace import SCVI, LinearSCVI, model
from vivace.errors import ArgumentTypeError, DataError, OptionError, ShapeError

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())


@pytest.fixture(params=FOLDERS)
def golden(request):
    """A model of scvi-tools', its data, and points for them."""
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    loaded = model.load(GOLDEN / request.param, adata)
    expected = np.load(GOLDEN / request.param / "expected.npz")
    z = torch.from_numpy(expected["z"])
    z = z.softmax(-1) if loaded.config.latent_distribution == "ln" else z
    return loaded, adata, z.float().numpy(), expected


def test_log_prob_is_what_scvi_tools_computed(golden):
    """Through vivace.distributions, which shares no formula with the kernel."""
    loaded, adata, z, expected = golden
    x = torch.from_numpy(adata.X.toarray().astype(np.float32))
    result = -loaded.decode(z).log_prob(x).sum(-1).double().numpy()
    wanted = expected["neg_log_likelihood"].reshape(-1)
    bound = 1e-5 * (np.abs(wanted) + 1e-3 * np.abs(wanted).max())
    assert (np.abs(result - wanted) <= bound).all()


@pytest.mark.parametrize("golden", [f for f in FOLDERS if f != "zinb_no_batch"], indirect=True)
def test_another_batch_decodes_as_scvi_tools_does(golden):
    loaded, _, z, expected = golden
    last = loaded.schema.batches[-1]
    result = loaded.decode(z[:24], indices=range(24), transform_batch=last)
    scale = result.normal_mu if loaded.config.gene_likelihood == "normal" else result.scale
    wanted = expected["px_scale_transform_last_batch"]
    bound = 1e-4 * (np.abs(wanted) + 1e-3 * np.abs(wanted).max())
    assert (np.abs(scale.numpy() - wanted) <= bound).all()


def test_the_mean_scales_with_the_library_size(trained):
    z = np.zeros((3, 3))
    one = trained.decode(z, indices=[0, 1, 2], library_size=1.0)
    torch.testing.assert_close(one.mu, one.scale)
    each = trained.decode(z, indices=[0, 1, 2], library_size=np.array([1.0, 10.0, 100.0]))
    torch.testing.assert_close(each.mu, one.mu * torch.tensor([[1.0], [10.0], [100.0]]))
    observed = trained.decode(z, indices=[0, 1, 2])
    total = torch.from_numpy(np.asarray(trained.adata.X[:3].sum(1)))
    torch.testing.assert_close(observed.mu.sum(1, keepdim=True), total.float())


def test_size_factor_scales_it(tiny):
    adata = tiny()
    SCVI.setup_anndata(adata, size_factor_key="depth")
    fitted = SCVI(adata, n_hidden=8, n_latent=2)
    fitted.train(1, progress=False)
    result = fitted.decode(np.zeros((60, 2)))
    depth = torch.from_numpy(adata.obs["depth"].to_numpy(np.float32))[:, None]
    torch.testing.assert_close(result.mu, result.scale * depth)


def test_samples_are_counts_with_the_generator_that_is_passed(trained):
    result = trained.decode(np.zeros((4, 3)), indices=range(4))
    first, again = (result.sample(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, first.round())
    assert first.shape == (4, 30)


def test_cells_of_other_data_can_be_decoded(trained, tiny):
    other = tiny(n_cells=10, seed=5)
    z = trained.get_latent_representation(other)
    x = torch.from_numpy(other.X.toarray())
    nll = -trained.decode(z, other).log_prob(x).sum(1)
    assert nll.shape == (10,)
    assert nll.isfinite().all()


def test_points_far_away_stay_finite(tiny):
    adata = tiny()
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fitted = LinearSCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="zinb")
    fitted.train(1, progress=False)
    result = fitted.decode(np.full((60, 2), 50.0))
    assert result.log_prob(torch.zeros(60, 30)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"z": np.zeros((60, 2))}, ShapeError, "(60, 3)"),
        ({"z": np.zeros((5, 3))}, ShapeError, "indices"),
        ({"z": "origin"}, ArgumentTypeError, "z must be an array"),
        ({"z": np.full((60, 3), np.nan)}, OptionError, "not finite"),
        ({"transform_batch": "b7"}, DataError, "b7"),
        ({"library_size": 0.0}, OptionError, "above 0"),
        ({"library_size": np.ones(7)}, ShapeError, "library_size"),
    ],
)
def test_bad_input_is_refused(trained, arguments, error, named, refused):
    with refused(error, named):
        trained.decode(**({"z": np.zeros((60, 3))} | arguments))
