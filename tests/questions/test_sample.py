"""Posterior predictive samples, the parameters of their distribution, and the library."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import sparse
import torch
import zarr
from anndata import AnnData
from anndata.io import sparse_dataset
from scipy import stats

from vivace import SCVI, LinearSCVI
from vivace.errors import (
    ArgumentTypeError,
    DataError,
    MissingColumnError,
    MissingExtraError,
    OptionError,
    ShapeError,
)
from vivace.model import load as load_model
from vivace.nn import VAE
from vivace.questions.sample import sparse_counts

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())
OF_COUNTS = [f for f in FOLDERS if f != "normal"]
LATENT = ["linear", "zinb_latent_library"]  # libraries
GENES = ["gene7", "gene2", "gene29", "gene7"]
SIX = 6.0  # standard errors; of some thousand comparisons with fixed seeds none may be beyond


class Golden(NamedTuple):
    """A model saved by scvi-tools, its data, and scvi-tools' results."""

    model: SCVI
    adata: AnnData
    expected: dict[str, np.ndarray]

    @property
    def likelihood(self):
        return self.model.config.gene_likelihood

    def large_cells(self):
        """The two cells of which the model expects most."""
        library = self.model.get_likelihood_parameters(give_mean=True)["mean"].sum(1)
        return np.argsort(library)[-2:]


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    """As saved by scvi-tools; with ", full" the latent library of a cell is log-normal(5, 0.3)."""
    name, *full = request.param.split(", ")
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    loaded, expected = (
        load_model(GOLDEN / name, adata),
        dict(np.load(GOLDEN / name / "expected.npz")),
    )
    if full:
        expected |= {"ql_mean": np.full((300, 1), 5.0), "ql_var": np.full((300, 1), 0.3)}
        heads = loaded.module.library_encoder.latent
        with torch.no_grad():
            heads.weight.zero_()
            heads.bias.copy_(torch.tensor([5.0, np.log(0.3)]))
    return Golden(loaded, adata, expected)


@pytest.fixture(scope="module")
def normal(tiny):
    """A model of values that are not counts."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch")
    fitted = SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="normal")
    fitted.train(2, seed=0, progress=False)
    return fitted


@pytest.fixture(scope="module")
def opposite(tiny):
    """Poisson counts of the first 15 genes in batch b0, and of the last 15 in batch b1."""
    adata = tiny()
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fitted = LinearSCVI(
        adata,
        n_hidden=8,
        n_latent=2,
        gene_likelihood="poisson",
        use_observed_lib_size=True,
        use_batch_norm="none",
    )
    fitted.train(1, progress=False)
    with torch.no_grad():
        weight = fitted.module.decoder.scale.weight
        weight.zero_()
        weight[-2, :15] = weight[-1, 15:] = 30.0
    return fitted


def placed(model, z):
    """Points as the decoder takes them."""
    z = torch.as_tensor(z)
    return z.softmax(-1) if model.config.latent_distribution == "ln" else z


def decoded_samples(golden, rows, n, batch=None):
    """The observation distribution at n samples of q(z, l|x) of each row, by NumPy."""
    copy, rng = golden.model, np.random.default_rng(7)
    mean, variance = copy.get_latent_representation(indices=rows, return_dist=True)
    z = mean + np.sqrt(variance) * rng.standard_normal((n, *mean.shape))
    size = None
    if "ql_mean" in golden.expected:
        mean, variance = (golden.expected[name][rows] for name in ("ql_mean", "ql_var"))
        size = np.exp(mean + np.sqrt(variance) * rng.standard_normal((n, len(rows), 1))).reshape(-1)
    place = placed(copy, z.reshape(-1, z.shape[-1]))
    return copy.decode(place, indices=np.tile(rows, n), transform_batch=batch, library_size=size)


def dense(result):
    """A sample as an array of shape (n, g, samples)."""
    if not isinstance(result, np.ndarray):
        result = result.todense() if isinstance(result, sparse.GCXS) else result.toarray()
    return result if result.ndim == 3 else result[..., None]


def assert_close(result, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted)
    assert result.shape == wanted.shape
    bound = tolerance * (np.abs(wanted) + 1e-3 * np.abs(wanted).max())
    assert (np.abs(result - wanted) <= bound).all()


# ---- what is sampled ---------------------------------------------------------


@pytest.mark.parametrize("golden", OF_COUNTS, indirect=True)
def test_counts_are_a_sparse_matrix_of_integers(golden):
    result = golden.model.posterior_predictive_sample(seed=0)
    assert result.shape == golden.adata.shape
    assert isinstance(result, sp.csr_matrix)
    assert result.dtype == np.int32
    assert result.data.min() > 0
    assert result.has_canonical_format


@pytest.mark.parametrize("golden", ["normal"], indirect=True)
def test_values_that_are_no_counts_are_dense(golden):
    result = golden.model.posterior_predictive_sample(seed=0)
    assert result.shape == golden.adata.shape
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32
    assert (result != result.round()).any()


def test_several_samples_are_a_third_dimension(golden):
    large = golden.large_cells()
    rows = [large[0], large[1], large[0]]
    result = golden.model.posterior_predictive_sample(indices=rows, n_samples=4, seed=0)
    assert result.shape == (3, 150, 4)
    if golden.likelihood == "normal":
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float32
    else:
        assert isinstance(result, sparse.GCXS)
        assert result.dtype == np.int32
    samples = dense(result)
    one = golden.model.posterior_predictive_sample(indices=rows, seed=0)
    np.testing.assert_array_equal(
        samples[..., :1], dense(one)
    )  # more samples leave the first as it is
    for i, j in ((0, 1), (1, 2), (2, 3)):
        assert (samples[..., i] != samples[..., j]).any()
    assert (samples[0] != samples[2]).any()  # a cell that is named twice is sampled twice


MOMENTS = [
    "nb_gene_batch_covariates",
    "nb_gene_label_size_factor",
    "normal",
    "poisson_logistic_normal",
    "zinb_default",
    "zinb_gene_cell",
    "zinb_latent_library, full",
]


@pytest.mark.parametrize(
    ("golden", "batch"),
    [*((f, None) for f in MOMENTS), ("zinb_default", "stim"), ("nb_gene_batch_covariates", "ctrl")],
    indirect=["golden"],
)
def test_samples_have_the_moments_of_the_mixture_over_the_posterior(golden, batch):
    """Mean, variance and zeros of each gene, from independent samples of z and l."""
    rows, repeats, n_samples = golden.large_cells(), 200, 8
    result = golden.model.posterior_predictive_sample(
        indices=np.tile(rows, repeats), n_samples=n_samples, transform_batch=batch, seed=1
    )
    n = repeats * n_samples
    samples = np.moveaxis(dense(result), 1, 2).reshape(repeats, 2, n_samples, -1)
    samples = samples.swapaxes(1, 2).reshape(n, 2, -1).astype(np.float64)
    mixture = decoded_samples(golden, rows, n, batch)
    mean, variance = (t.numpy().reshape(n, 2, -1) for t in (mixture.mean, mixture.variance))
    total = variance.mean(0) + mean.var(0)
    error = np.sqrt((total + mean.var(0)) / n)
    assert (np.abs(samples.mean(0) - mean.mean(0)) <= SIX * error).all()
    fourth = ((samples - samples.mean(0)) ** 4).mean(0)
    second = (mean - mean.mean(0)) ** 2 + variance
    error = np.sqrt((fourth - total**2).clip(min=0) / n + second.var(0) / n)
    often = total > 0.05  # samples of a few counts do not tell their fourth moment
    assert often.mean() > 0.9
    assert (np.abs(samples.var(0) - total) <= SIX * error)[often].all()
    if golden.likelihood != "normal":
        zero = mixture.log_prob(torch.zeros(())).exp().numpy().reshape(n, 2, -1)
        error = np.sqrt((zero.mean(0) * (1 - zero.mean(0)) + zero.var(0)) / n)
        assert (np.abs((samples == 0).mean(0) - zero.mean(0)) <= SIX * error).all()


@pytest.mark.parametrize("golden", OF_COUNTS, indirect=True)
def test_genes_of_a_cell_are_sampled_with_one_z(golden):
    """Totals vary more than they would if every gene had its own."""
    result = golden.model.posterior_predictive_sample(indices=[8] * 1_500, seed=2)
    mixture = decoded_samples(golden, np.array([8]), 1_500)
    mean = mixture.mean.sum(1).double().numpy()
    wanted = mixture.variance.sum(1).double().mean().item() + mean.var()
    total = np.asarray(result.sum(1), np.float64)[:, 0]
    fourth = ((total - total.mean()) ** 4).mean()
    assert abs(total.var() - wanted) <= SIX * np.sqrt(2 * (fourth - wanted**2) / 1_500)


# ---- other batches -----------------------------------------------------------


def test_of_two_batches_each_cell_takes_one_in_each_sample(opposite):
    """Whole counts of one batch or the other, not of a mean of both."""
    result = dense(
        opposite.posterior_predictive_sample(transform_batch=["b0", "b1"], n_samples=100, seed=0)
    )
    first, last = (result[:, half].sum(1) > 0 for half in (slice(15), slice(15, 30)))
    assert not (first & last).any()
    assert (first | last).mean() > 0.95  # few cells are sampled without a molecule
    share = first.sum() / (first | last).sum()
    assert abs(share - 0.5) <= SIX * 0.5 / np.sqrt(first.size)
    for axis in (0, 1):  # cells of a sample, samples of a cell
        assert np.abs(first.mean(axis) - 0.5).max() <= SIX * 0.5 / np.sqrt(first.shape[axis])
    pairs = np.corrcoef(first.T)[np.triu_indices(100, 1)]
    assert np.abs(pairs).max() <= SIX / np.sqrt(60)


def test_one_batch_is_that_of_every_cell(opposite):
    observed = dense(opposite.posterior_predictive_sample(seed=0))[..., 0]
    batch = (opposite.adata.obs["batch"] == "b1").to_numpy()
    for code, name in enumerate(["b0", "b1"]):
        result = dense(opposite.posterior_predictive_sample(transform_batch=name, seed=0))[..., 0]
        other = result[:, slice(15, 30) if code == 0 else slice(15)]
        assert not other.any()
        np.testing.assert_array_equal(result[batch == code], observed[batch == code])
        assert (result[batch != code] != observed[batch != code]).any(1).mean() > 0.9


def test_categories_of_several_columns_are_combined(tiny):
    """One combination in each sample, that of the data with these columns."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    fitted = SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="poisson")
    fitted.train(2, seed=0, progress=False)
    mapping = {"donor": ["d0", "d2"], "batch": ["b0", "b1"]}
    n = 4_000
    result = dense(
        fitted.posterior_predictive_sample(indices=[4] * n, transform_batch=mapping, seed=3)
    )
    mean, variance = fitted.get_latent_representation(indices=[4] * n, return_dist=True)
    z = mean + np.sqrt(variance) * np.random.default_rng(0).standard_normal(mean.shape)
    rates = []
    for donor in mapping["donor"]:
        for batch in mapping["batch"]:
            changed = adata.copy()
            changed.obs["donor"], changed.obs["batch"] = donor, batch
            rates.append(fitted.decode(z, changed, indices=[4] * n).rate.numpy())
    rate = np.concatenate(rates)
    error = np.sqrt((rate.mean(0) + 2 * rate.var(0)) / n)
    assert (np.abs(result[..., 0].mean(0) - rate.mean(0)) <= SIX * error).all()


# ---- what the samples do not depend on ---------------------------------------

SAMPLING_OPTIONS = [{}, {"n_samples": 3}, {"n_samples": 2, "transform_batch": ["b0", "b1"]}]


@pytest.fixture(params=["counts", "normal"])
def model(request, trained, normal):
    return trained if request.param == "counts" else normal


@pytest.mark.parametrize("options", SAMPLING_OPTIONS, ids=str)
def test_samples_do_not_depend_on_the_batch_size(model, options):
    large, small = (
        dense(model.posterior_predictive_sample(**options, batch_size=size, seed=4))
        for size in (512, 7)
    )
    if model.config.gene_likelihood == "normal":
        # a sample is a mean and a deviation, which may cancel: rounding is of their size, a gene's
        size = np.abs(large).reshape(*large.shape[:2], -1).max(axis=(0, 2))
        error = np.abs(small - large).reshape(*large.shape[:2], -1).max(axis=(0, 2))
        assert (error <= 1e-5 * size).all()
    else:
        np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("options", SAMPLING_OPTIONS, ids=str)
def test_samples_do_not_depend_on_the_gene_list(model, options):
    whole = dense(model.posterior_predictive_sample(**options, seed=4))
    some = dense(model.posterior_predictive_sample(**options, gene_list=GENES, seed=4))
    np.testing.assert_array_equal(some, whole[:, [7, 2, 29, 7]])


@pytest.mark.parametrize("options", SAMPLING_OPTIONS, ids=str)
def test_samples_follow_from_the_seed(model, options):
    def result(seed):
        return dense(model.posterior_predictive_sample(**options, seed=seed))

    first = result(11)
    np.testing.assert_array_equal(result(11), first)
    others = [result(12), result(None), result(None)]
    for one, other in ((first, others[0]), (first, others[1]), (others[1], others[2])):
        assert (one != other).mean() > 0.1


def test_without_data_of_its_own_the_model_answers_about_those_it_is_given(trained, saved, refused):
    loaded = SCVI.load(saved)
    with refused(DataError, "without data"):
        loaded.posterior_predictive_sample()
    result = loaded.posterior_predictive_sample(trained.adata.copy(), indices=[4, 2], seed=1)
    wanted = trained.posterior_predictive_sample(indices=[4, 2], seed=1)
    np.testing.assert_array_equal(result.toarray(), wanted.toarray())


def test_no_cells_give_no_rows(trained, normal):
    empty = {"indices": [], "gene_list": GENES}
    assert trained.posterior_predictive_sample(**empty).shape == (0, 4)
    assert trained.posterior_predictive_sample(**empty).dtype == np.int32
    assert trained.posterior_predictive_sample(**empty, n_samples=3).shape == (0, 4, 3)
    assert normal.posterior_predictive_sample(**empty).shape == (0, 4)
    assert normal.posterior_predictive_sample(**empty, n_samples=3).shape == (0, 4, 3)


# ---- places to write to ------------------------------------------------------


@pytest.fixture(params=[1 << 22, 400], ids=["one write", "many writes"])
def entries(request, monkeypatch):
    """How many entries are written in one go."""
    monkeypatch.setattr("vivace.store.arrays._ENTRIES", request.param)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("asks", [{}, {"gene_list": GENES}, {"indices": [5, 0, 5]}], ids=str)
def test_a_path_becomes_a_sparse_matrix_that_anndata_reads(trained, tmp_path, asks):
    wanted = trained.posterior_predictive_sample(**asks, seed=2)
    place = tmp_path / "new" / "sample"
    result = trained.posterior_predictive_sample(**asks, batch_size=7, out=place, seed=2)
    back = sparse_dataset(zarr.open(str(place), mode="r"))
    for dataset in (result, back):
        matrix = dataset.to_memory()
        assert isinstance(matrix, sp.csr_matrix | sp.csr_array)
        assert matrix.dtype == np.int32
        assert matrix.shape == wanted.shape
        np.testing.assert_array_equal(matrix.toarray(), wanted.toarray())
    np.testing.assert_array_equal(back[1:3].toarray(), wanted[1:3].toarray())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sample"]


@pytest.mark.usefixtures("entries")
def test_several_samples_become_a_group_each(trained, tmp_path):
    wanted = dense(trained.posterior_predictive_sample(n_samples=3, seed=2))
    place = str(tmp_path / "samples")
    result = trained.posterior_predictive_sample(n_samples=3, batch_size=7, out=place, seed=2)
    assert len(result) == 3
    group = zarr.open(place, mode="r")
    assert sorted(group.group_keys()) == ["0", "1", "2"]
    assert sum(p.is_file() for p in Path(place).rglob("*")) < 40  # not one an entry
    for i in range(3):
        for dataset in (result[i], sparse_dataset(group[str(i)])):
            np.testing.assert_array_equal(dataset.to_memory().toarray(), wanted[..., i])


@pytest.mark.parametrize("n_samples", [1, 2])
def test_no_cells_are_written_too(trained, tmp_path, n_samples):
    place = tmp_path / "sample"
    trained.posterior_predictive_sample(indices=[], n_samples=n_samples, out=place)
    group = zarr.open(str(place), mode="r")
    for part in [group] if n_samples == 1 else [group["0"], group["1"]]:
        assert sparse_dataset(part).to_memory().shape == (0, 30)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_values_that_are_no_counts_fill_an_array(normal, tmp_path, n_samples):
    asks = {"n_samples": n_samples, "seed": 2, "batch_size": 7, "gene_list": GENES}
    wanted = normal.posterior_predictive_sample(**asks)
    assert wanted.shape == ((60, 4) if n_samples == 1 else (60, 4, 3))
    result = normal.posterior_predictive_sample(**asks, out=tmp_path / "sample")
    np.testing.assert_array_equal(result[:], wanted)
    assert result.chunks[0] == 7
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "sample"), mode="r")[:], wanted)
    array = np.empty_like(wanted)
    assert normal.posterior_predictive_sample(**asks, out=array) is array
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_nothing_is_left_where_it_fails_midway(model, monkeypatch, tmp_path, n_samples):
    calls, rates = [], VAE.rates

    def fails_later(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return rates(*arguments)

    monkeypatch.setattr(VAE, "rates", fails_later)
    monkeypatch.setattr("vivace.store.arrays._ENTRIES", 1)
    with pytest.raises(KeyboardInterrupt):
        model.posterior_predictive_sample(
            n_samples=n_samples, batch_size=10, out=tmp_path / "sample"
        )
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_to_are_refused(trained, normal, refused, tmp_path):
    with refused(ArgumentTypeError, "out", "path", "ndarray"):
        trained.posterior_predictive_sample(out=np.zeros((60, 30), np.int32))
    with refused(ShapeError, "out", "(60, 30)", "(60, 30, 2)"):
        normal.posterior_predictive_sample(n_samples=2, out=np.zeros((60, 30), np.float32))
    place = tmp_path / "there"
    place.write_text("mine")
    for each in (trained, normal):
        with refused(OptionError, str(place), "exists"):
            each.posterior_predictive_sample(out=place)
    assert place.read_text() == "mine"


def test_packages_that_are_missing_are_named(trained, refused, monkeypatch, tmp_path):
    monkeypatch.setattr("vivace.errors.find_spec", lambda name: None)
    with refused(MissingExtraError, "zarr", "pip install"):
        trained.posterior_predictive_sample(out=tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("vivace.errors.find_spec", lambda name: None)
    with refused(MissingExtraError, "sparse", "pip install"):
        trained.posterior_predictive_sample(n_samples=2)
    assert trained.posterior_predictive_sample().shape == (60, 30)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"transform_batch": "b7"}, DataError, ("'b7'", "'b0', 'b1'")),
        ({"transform_batch": ["b0", "c"]}, DataError, ("'c'",)),
        ({"transform_batch": {"bach": "b0"}}, DataError, ("'bach'", "did you mean 'batch'")),
        ({"gene_list": ["gen2"]}, MissingColumnError, ("'gen2'", "did you mean", "'gene2'")),
        ({"n_samples": 0}, OptionError, ("n_samples", "0")),
        ({"n_samples": 1.5}, ArgumentTypeError, ("n_samples", "1.5")),
        ({"indices": [60]}, OptionError, ("indices", "60")),
        ({"seed": 0.5}, ArgumentTypeError, ("seed", "0.5")),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_input_is_refused(trained, refused, arguments, error, parts):
    with refused(error, *parts):
        trained.posterior_predictive_sample(**arguments)


# ---- the parameters of the likelihood ----------------------------------------


def named(observation):
    """Parameters under scvi-tools' names, of the shape of the distribution."""
    result = {}
    for name, attributes in (
        ("mean", ("rate", "mu")),
        ("dispersions", ("theta", "scale")),
        ("dropout", ("zi_logits",)),
    ):
        has_it = [a for a in attributes if hasattr(observation, a)]
        if has_it and not (name == "dispersions" and hasattr(observation, "rate")):
            result[name] = getattr(observation, has_it[0]).expand(observation.batch_shape)
    if "dropout" in result:
        result["dropout"] = 1 / (1 + (-result["dropout"]).exp())
    return {name: value.numpy() for name, value in result.items()}


def test_parameters_are_those_decoded_at_the_mean_of_z(golden):
    result = golden.model.get_likelihood_parameters(give_mean=True)
    mean = golden.model.get_latent_representation(return_dist=True)[0]
    wanted = named(golden.model.decode(placed(golden.model, mean)))
    names = {
        "poisson": {"mean"},
        "nb": {"mean", "dispersions"},
        "normal": {"mean", "dispersions"},
        "zinb": {"mean", "dispersions", "dropout"},
    }
    assert result.keys() == wanted.keys() == names[golden.likelihood]
    for name, values in result.items():
        assert values.dtype == np.float32
        assert_close(values, wanted[name])


def test_dispersions_are_those_of_scvi_tools(golden):
    """Those of gene-cell depend on scvi-tools' sample of z."""
    result = golden.model.get_likelihood_parameters(indices=range(24), seed=0)
    if golden.likelihood == "poisson":
        assert "dispersions" not in result
    elif golden.model.config.dispersion == "gene-cell":
        assert (result["dispersions"][0] != result["dispersions"][1]).all()
    else:
        name = "px_sigma" if golden.likelihood == "normal" else "px_theta"
        assert_close(result["dispersions"], golden.expected[name], 1e-4)


@pytest.mark.parametrize(
    "golden",
    ["zinb_gene_cell", "zinb_latent_library, full", "poisson_logistic_normal"],
    indirect=True,
)
def test_parameters_of_samples_are_those_of_the_posterior(golden):
    rows, n = np.array([8, 250]), 250
    asks = {"indices": rows, "n_samples": n}
    mean = golden.model.get_likelihood_parameters(**asks, give_mean=True, seed=1)
    samples = golden.model.get_likelihood_parameters(**asks, seed=2)
    wanted = named(decoded_samples(golden, rows, n))
    assert mean.keys() == samples.keys() == wanted.keys()
    for name, values in wanted.items():
        each, sampled = values.reshape(n, 2, -1), samples[name].astype(np.float64)
        assert sampled.shape == each.shape
        assert mean[name].shape == each.shape[1:]
        # the same in all samples where it does not depend on z, but for the rounding of sums
        error = np.sqrt((each.var(0, dtype=np.float64) + sampled.var(0)) / n) + 1e-5 * each.mean(0)
        assert (np.abs(mean[name] - each.mean(0)) <= SIX * error).all()
        assert (np.abs(sampled.mean(0) - each.mean(0)) <= SIX * error).all()
        ratio = sampled.std(0) / (each.std(0, dtype=np.float64) + 1e-30)
        if name != "dispersions" or golden.model.config.dispersion == "gene-cell":
            assert np.median(ratio) == pytest.approx(1.0, abs=0.1)


def test_parameters_have_a_dimension_for_samples_unless_their_mean_is_asked_for(trained):
    def result(n_samples, give_mean):
        return trained.get_likelihood_parameters(
            n_samples=n_samples, give_mean=give_mean, seed=3, batch_size=7
        )

    samples, mean, one, centre = (
        result(4, False),
        result(4, True),
        result(1, False),
        result(1, True),
    )
    for name in ("mean", "dispersions", "dropout"):
        assert samples[name].shape == (4, 60, 30)
        assert mean[name].shape == one[name].shape == centre[name].shape == (60, 30)
        assert_close(mean[name], samples[name].mean(0, dtype=np.float64))
        assert_close(one[name], samples[name][0])  # more samples leave the first as it is
    for name in ("mean", "dropout"):
        assert (np.abs(one[name] / centre[name] - 1) > 1e-4).mean() > 0.9
        assert (samples[name][0] != samples[name][1]).mean() > 0.9


@pytest.mark.parametrize("asks", [{}, {"n_samples": 3}, {"n_samples": 3, "give_mean": True}])
def test_parameters_follow_from_the_seed_and_not_from_the_batch_size(trained, asks):
    first, again, small, other = (
        trained.get_likelihood_parameters(**asks, seed=seed, batch_size=size)["mean"]
        for seed, size in ((1, 512), (1, 512), (1, 7), (2, 512))
    )
    np.testing.assert_array_equal(first, again)
    assert_close(small, first)
    assert (first != other).mean() > 0.9


def test_parameters_are_of_the_indices_in_their_order(trained, saved):
    whole = trained.get_likelihood_parameters(give_mean=True)
    rows = [40, 3, 3, -1]
    result = trained.get_likelihood_parameters(indices=rows, give_mean=True)
    given = SCVI.load(saved).get_likelihood_parameters(trained.adata, rows, give_mean=True)
    for name, values in whole.items():
        assert_close(result[name], values[rows])
        np.testing.assert_array_equal(given[name], result[name])


def test_parameters_of_no_samples_are_refused(trained, refused):
    with refused(OptionError, "n_samples", "0"):
        trained.get_likelihood_parameters(n_samples=0)


# ---- the library -------------------------------------------------------------


@pytest.mark.parametrize("give_mean", [True, False])
@pytest.mark.parametrize("golden", [f for f in FOLDERS if f not in LATENT], indirect=True)
def test_an_observed_library_is_the_molecules_of_the_cell(golden, give_mean):
    """Where there are size factors, too."""
    result = golden.model.get_latent_library_size(give_mean=give_mean)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, golden.adata.X.toarray().sum(1, keepdims=True))


@pytest.mark.parametrize("golden", LATENT, indirect=True)
def test_a_latent_library_has_the_mean_of_a_log_normal(golden):
    result = golden.model.get_latent_library_size()
    mean, variance = golden.expected["ql_mean"], golden.expected["ql_var"]
    assert result.shape == (300, 1)
    np.testing.assert_allclose(result, np.exp(mean + variance / 2), rtol=1e-4)
    normal = np.random.default_rng(0).standard_normal((100_000, 1))
    samples = np.exp(mean[:1] + np.sqrt(variance[:1]) * normal)
    assert abs(samples.mean() - result[0, 0]) <= SIX * samples.std() / np.sqrt(len(samples))


@pytest.mark.parametrize("golden", LATENT, indirect=True)
def test_samples_of_a_latent_library_are_log_normal(golden):
    first, again, other, small = (
        golden.model.get_latent_library_size(give_mean=False, seed=seed, batch_size=size)
        for seed, size in ((1, None), (1, None), (2, None), (1, 7))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(small, first, rtol=1e-4)
    standard = [
        (np.log(result) - golden.expected["ql_mean"]) / np.sqrt(golden.expected["ql_var"])
        for result in (first, other)
    ]
    assert abs(np.corrcoef(*(s[:, 0] for s in standard))[0, 1]) < 0.3
    assert stats.kstest(np.concatenate(standard)[:, 0], "norm").pvalue > 1e-3


@pytest.mark.parametrize("golden", ["zinb_latent_library"], indirect=True)
def test_libraries_are_of_the_indices_in_their_order(golden):
    whole = golden.model.get_latent_library_size()
    rows = [40, 3, 3, -1]
    np.testing.assert_allclose(
        golden.model.get_latent_library_size(indices=rows), whole[rows], 1e-5
    )
    np.testing.assert_array_equal(golden.model.get_latent_library_size(golden.adata.copy()), whole)


def test_counts_beyond_int32_are_refused(refused):
    x_ng = torch.tensor([[0.0, 3e9], [1.0, 2.0]])
    with refused(DataError, "A sampled count is 3e+09", "library"):
        sparse_counts(x_ng, None)
    assert sparse_counts(x_ng, np.array([0])).toarray().tolist() == [[0], [1]]
    largest = torch.tensor([[2.0**31 - 128]])  # of the float32 numbers below 2**31
    assert sparse_counts(largest, None).toarray().item() == 2**31 - 128
