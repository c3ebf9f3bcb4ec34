"""Gene programs: exact derivatives, central differences of ``decode``, and known markers."""

from __future__ import annotations

import copy
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import vivace
from vivace import SCVI, LinearSCVI, model
from vivace.cells import with_codes
from vivace.data.schema import Codes
from vivace.errors import ArgumentTypeError, DataError, NotTrainedError, OptionError, ShapeError
from vivace.questions.decode import observation_distribution
from vivace.questions.programs import GenePrograms

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
OBSERVED = (Codes(),)
STEP = 1e-7  # in float64; a unit of the network seldom switches within it


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    """A model of scvi-tools', on its data."""
    return model.load(GOLDEN / request.param, anndata.read_h5ad(GOLDEN / "adata.h5ad"))


@pytest.fixture(scope="module")
def covariates():
    """The one with a batch, a categorical and two continuous covariates."""
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    return model.load(GOLDEN / "nb_gene_batch_covariates", adata)


def log_rho(network, model, z, rows, codes):
    """Log of the expected expression at z (before a softmax), as ``decode`` gives it."""
    batch = with_codes(model._own_source().gather(rows), codes)
    log_library = torch.zeros(len(rows), dtype=z.dtype)
    with torch.no_grad():
        rates = network.rates(network.place(z), batch, log_library)
    observed = observation_distribution(network, rates)
    scale = observed.normal_mu if network.config.gene_likelihood == "normal" else observed.scale
    return scale.log()


def differences(model, moves, rows=None, codes=OBSERVED):
    """Mean and deviation over cells by central differences in float64, genes x moves."""
    rows = np.arange(model.adata.n_obs) if rows is None else rows
    mean, _ = model.get_latent_representation(indices=rows, return_dist=True)
    network = copy.deepcopy(model.module).double()
    z = torch.from_numpy(mean).double()
    result = []
    for move in np.asarray(moves, np.float64):
        step = STEP * torch.from_numpy(move)
        ups = [log_rho(network, model, z + step, rows, c) for c in codes]
        downs = [log_rho(network, model, z - step, rows, c) for c in codes]
        result.append(sum(ups) / len(codes) - sum(downs) / len(codes))
    change = torch.stack(result).numpy() / (2 * STEP)
    return change.mean(1).T, change.std(1).T


def assert_same(programs, expected):
    """To 1e-4 of the largest effect, which one cell at a kink of the network may take up."""
    for frame, wanted in zip((programs.effect, programs.spread), expected, strict=True):
        bound = 1e-4 * np.abs(expected[0]).max()
        np.testing.assert_allclose(frame.to_numpy(), wanted, rtol=1e-4, atol=bound)


def test_the_differences_are_of_what_decode_gives(golden):
    """The float64 network behind them agrees with the public method."""
    mean, _ = golden.get_latent_representation(return_dist=True)
    z, rows = torch.from_numpy(mean), np.arange(len(mean))
    public = golden.decode(golden.module.place(z).numpy())
    scale = public.normal_mu if golden.config.gene_likelihood == "normal" else public.scale
    exact = log_rho(copy.deepcopy(golden.module).double(), golden, z.double(), rows, Codes())
    torch.testing.assert_close(scale.log(), exact.float(), rtol=1e-4, atol=1e-5)


def test_effect_and_spread_are_derivatives_of_log_expected_expression(golden):
    """By default for a move of one standard deviation of the cells' means in each dimension."""
    mean, _ = golden.get_latent_representation(return_dist=True)
    programs = golden.get_gene_programs()
    names = [f"Z_{i}" for i in range(golden.config.n_latent)]
    for frame in (programs.effect, programs.spread):
        assert list(frame.index) == list(golden.adata.var_names)
        assert list(frame.columns) == names
    assert_same(programs, differences(golden, np.diag(mean.astype(np.float64).std(0))))


def test_directions_may_be_given(golden):
    """As a mapping, as an array and as one vector; effects are those of the vectors' length."""
    k = golden.config.n_latent
    moves = np.random.default_rng(0).normal(size=(2, k)) * [[0.5], [3.0]]
    mean, spread = differences(golden, moves)
    named = golden.get_gene_programs(directions={"up": moves[0], 7: list(moves[1])})
    assert list(named.effect) == list(named.spread) == ["up", "7"]
    assert_same(named, (mean, spread))
    array = golden.get_gene_programs(directions=moves)
    assert list(array.effect) == ["direction_0", "direction_1"]
    assert_same(array, (mean, spread))
    one = golden.get_gene_programs(directions=torch.from_numpy(moves[1]))
    assert list(one.effect) == ["direction_0"]
    assert_same(one, (mean[:, 1:], spread[:, 1:]))


def test_some_cells_may_be_chosen(golden):
    rows = np.array([250, 3, 3, 117, 40, -1]) % golden.adata.n_obs
    moves = np.eye(golden.config.n_latent)[:2]
    result = golden.get_gene_programs(indices=rows, directions=moves, batch_size=4)
    assert_same(result, differences(golden, moves, rows))
    passed = golden.get_gene_programs(golden.adata[rows[3:]].copy(), directions=moves)
    assert_same(passed, differences(golden, moves, rows[3:]))


def test_one_cell_has_no_spread(golden):
    largest = np.abs(differences(golden, np.eye(golden.config.n_latent), np.array([5]))[0]).max()
    moved = golden.get_gene_programs(indices=[5], directions=np.eye(golden.config.n_latent))
    assert np.abs(moved.effect.to_numpy()).max() == pytest.approx(largest, rel=1e-3)
    assert moved.spread.to_numpy().max() < 1e-6 * largest


@pytest.mark.parametrize("indices", [[5], [5, 5]])
def test_cells_in_one_place_have_no_standard_deviation_to_move_by(trained, refused, indices):
    with refused(OptionError, "one point", "directions"):
        trained.get_gene_programs(indices=indices)


def test_several_batches_are_the_mean_over_them(covariates):
    moves = np.eye(covariates.config.n_latent)[:3]
    batches = covariates.schema.batches
    each = [differences(covariates, moves, codes=[Codes(i)]) for i in range(len(batches))]
    assert np.abs(each[0][0] - each[1][0]).max() > 1e-3 * np.abs(each[0][0]).max()
    last = covariates.get_gene_programs(directions=moves, transform_batch=batches[-1])
    assert_same(last, each[-1])
    both = covariates.get_gene_programs(directions=moves, transform_batch=list(batches))
    every = [Codes(i) for i in range(len(batches))]
    assert_same(both, differences(covariates, moves, codes=every))
    np.testing.assert_allclose(both.effect, np.mean([e[0] for e in each], axis=0), atol=1e-6)


def test_another_category_of_a_covariate(covariates):
    moves = np.eye(covariates.config.n_latent)[:2]
    donors = covariates.schema.categories[0]
    result = covariates.get_gene_programs(
        directions=moves, transform_batch={"donor": [donors[2], donors[0]], "batch": "stim"}
    )
    stim = covariates.schema.batches.index("stim")
    codes = [Codes(stim, ((0, donor),)) for donor in (2, 0)]
    assert_same(result, differences(covariates, moves, codes=codes))


@pytest.mark.parametrize("use_batch_norm", ["both", "none"])
def test_a_linear_decoder_shows_its_loadings(tiny, use_batch_norm):
    """Less a number that all genes share, the mean of the loadings under a cell's expression."""
    adata = tiny()
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fitted = LinearSCVI(adata, n_hidden=8, n_latent=3, use_batch_norm=use_batch_norm)
    fitted.train(5, seed=0, progress=False)
    programs = fitted.get_gene_programs(directions=np.eye(3))
    loadings = fitted.get_loadings().to_numpy()
    shared = programs.effect.to_numpy() - loadings
    largest = np.abs(loadings).max()
    assert np.ptp(loadings, axis=0).min() > 0.1 * largest
    assert np.ptp(shared, axis=0).max() < 1e-5 * largest
    mean, _ = fitted.get_latent_representation(return_dist=True)
    rho = fitted.decode(mean).scale.double().numpy()
    np.testing.assert_allclose(shared[0], -(rho @ loadings).mean(0), atol=1e-5 * largest)
    spread = np.broadcast_to((rho @ loadings).std(0), (30, 3))
    np.testing.assert_allclose(programs.spread, spread, atol=1e-4 * largest)


def test_top_names_what_rises_and_what_falls():
    genes = ["A", "B", "C", "D", "E"]
    effect = pd.DataFrame({"x": [0.1, -2.0, 3.0, 0.0, 1.0], "y": [1.0, 2, 3, 4, 5]}, index=genes)
    top = GenePrograms(effect, effect.abs() / 10).top(2)
    assert list(top) == ["direction", "sign", "gene", "effect", "spread"]
    assert top[["direction", "sign", "gene", "effect"]].to_numpy().tolist() == [
        ["x", "+", "C", 3.0],
        ["x", "+", "E", 1.0],
        ["x", "-", "B", -2.0],  # no other gene falls
        ["y", "+", "E", 5.0],
        ["y", "+", "D", 4.0],
    ]
    np.testing.assert_allclose(top["spread"], top["effect"].abs() / 10)


def test_top_takes_ten_genes_unless_told(golden):
    top = golden.get_gene_programs(directions=np.eye(golden.config.n_latent)[0]).top()
    assert top.groupby("sign").size().to_dict() == {"+": 10, "-": 10}
    assert (top.loc[top["sign"] == "+", "effect"].diff().dropna() <= 0).all()
    assert (top.loc[top["sign"] == "-", "effect"].diff().dropna() >= 0).all()


@pytest.fixture(scope="module")
def pbmc():
    """PBMC 3k with the default model, trained by default, and z."""
    adata = vivace.datasets.pbmc3k()
    SCVI.setup_anndata(adata)
    fitted = SCVI(adata)
    fitted.train(seed=0, progress=False)
    return fitted, fitted.get_latent_representation()


@pytest.mark.parametrize(
    ("cell_type", "markers"),
    [
        ("B cells", {"MS4A1", "CD79A", "HLA-DQA1"}),
        ("NK cells", {"NKG7", "GNLY", "PRF1"}),
        ("CD14+ Monocytes", {"S100A8", "S100A9", "LYZ"}),
    ],
)
def test_markers_rise_towards_the_cells_they_mark(pbmc, cell_type, markers):
    """Of the 2,005 genes, in the 20 that rise most towards a cell type from the others."""
    fitted, z = pbmc
    in_type = (fitted.adata.obs["cell_type"] == cell_type).to_numpy()
    move = z[in_type].mean(0) - z[~in_type].mean(0)
    top = fitted.get_gene_programs(directions={cell_type: move}).top(20)
    assert set(top["direction"]) == {cell_type}
    assert markers & set(top.loc[top["sign"] == "+", "gene"])
    assert not markers & set(top.loc[top["sign"] == "-", "gene"])


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"directions": np.ones(2)}, ShapeError, ["(1, 2)", "(d, 3)"]),
        ({"directions": np.ones((2, 4))}, ShapeError, ["(2, 4)", "(d, 3)"]),
        ({"directions": np.ones((1, 1, 3))}, ShapeError, ["(1, 1, 3)", "(d, 3)"]),
        ({"directions": {}}, ShapeError, ["(0, 3)"]),
        ({"directions": {"up": [1.0, 2.0]}}, ShapeError, ["(1, 2)"]),
        ({"directions": {"up": [1, 2, 3], "on": [1, 2]}}, ArgumentTypeError, ["directions"]),
        ({"directions": "Z_0"}, ArgumentTypeError, ["directions", "'Z_0'"]),
        ({"directions": [0.0, np.nan, 0.0]}, OptionError, ["directions", "not finite"]),
        ({"indices": []}, OptionError, ["indices"]),
        ({"transform_batch": "b7"}, DataError, ["batch", "'b7'"]),
        ({"batch_size": 0}, OptionError, ["batch_size"]),
    ],
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.get_gene_programs(**arguments)


def test_an_untrained_model_has_no_programs(tiny, refused):
    adata = tiny()
    SCVI.setup_anndata(adata)
    with refused(NotTrainedError, "train()"):
        SCVI(adata, n_hidden=8).get_gene_programs()
