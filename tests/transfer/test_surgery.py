"""A network for a query: what it starts as, what of it is trained, and what stays bit by bit."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from vivace import SCVI, LinearSCVI, model
from vivace.data import MemorySource
from vivace.errors import MissingColumnError, ModelFileError, OptionError, VivaceWarning

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"n_hidden": 8, "n_latent": 3}
COVARIATES = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}
# The one-hot columns of the reference are b0 b1 | d0 d1 d2, those of the query
# b0 b1 x y | d0 d1 d2 n.  Before them come 30 genes and the age (encoder), 3 latent
# dimensions and the age (decoder), or 8 hidden units (deeper layers).
FIRST_ENCODER = {"encoder.linears.0.weight": [33, 34, 38]}
FIRST_DECODER = {"decoder.linears.0.weight": [6, 7, 11]}
LIBRARY_ENCODER = {"library_encoder.linears.0.weight": [33, 34, 38]}
SEEING = {"encode_covariates": True}
# class, constructor, rows of new categories
ARCHITECTURES = {
    "mapping": (SCVI, {"preset": "mapping"}, FIRST_ENCODER | FIRST_DECODER),
    "seeing": (SCVI, SEEING, FIRST_ENCODER | FIRST_DECODER),
    "blind": (SCVI, {}, FIRST_DECODER),
    "two layers, deep": (
        SCVI,
        {**SEEING, "n_layers": 2},
        {
            **FIRST_ENCODER,
            "encoder.linears.1.weight": [10, 11, 15],
            **FIRST_DECODER,
            "decoder.linears.1.weight": [10, 11, 15],
        },
    ),
    "two layers, not deep": (
        SCVI,
        {**SEEING, "n_layers": 2, "deeply_inject_covariates": False},
        FIRST_ENCODER | FIRST_DECODER,
    ),
    "embedding": (  # five columns for the batch, then d0 d1 d2 n
        SCVI,
        {**SEEING, "n_layers": 2, "batch_representation": "embedding"},
        {
            "encoder.linears.0.weight": [39],
            "encoder.linears.1.weight": [11],
            "decoder.linears.0.weight": [12],
            "decoder.linears.1.weight": [11],
            "batch_embedding.weight": [2, 3],
        },
    ),
    "gene-batch": (
        SCVI,
        {**SEEING, "dispersion": "gene-batch"},
        FIRST_ENCODER | FIRST_DECODER | {"log_theta": [2, 3]},
    ),
    "gene-label": (
        SCVI,
        {**SEEING, "dispersion": "gene-label"},
        FIRST_ENCODER | FIRST_DECODER | {"log_theta": [3]},
    ),
    "gene-cell": (SCVI, {**SEEING, "dispersion": "gene-cell"}, FIRST_ENCODER | FIRST_DECODER),
    "latent library": (
        SCVI,
        {**SEEING, "use_observed_lib_size": False},
        FIRST_ENCODER | LIBRARY_ENCODER | FIRST_DECODER,
    ),
    "linear": (
        LinearSCVI,
        {**SEEING, "gene_likelihood": "zinb"},
        {
            **FIRST_ENCODER,
            **LIBRARY_ENCODER,
            "decoder.scale.weight": [6, 7, 11],
            "decoder.dropout.weight": [6, 7, 11],
        },
    ),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _norm(*places: str) -> set[str]:
    """All that a batch norm holds."""
    return {f"{p}.batch_norm.{n}" for p in places for n in ("weight", "bias", *STATISTICS)}


DECODER_NORM = _norm(
    "decoder.activations.0", "decoder.activations.1", "decoder.scale", "decoder.dropout"
)
ENCODER_NORM = _norm(
    "encoder.activations.0", "encoder.activations.1", "library_encoder.activations.0"
)
# flags, and what is trained as a whole of what the architecture has; None for everything
FLAGS = {
    "default": ({}, DECODER_NORM),
    "freeze_dropout": ({"freeze_dropout": True}, DECODER_NORM),
    "freeze_expression": (
        {"freeze_expression": False},
        DECODER_NORM
        | {
            "encoder.linears.0.weight",
            "encoder.linears.0.bias",
            "library_encoder.linears.0.weight",
            "library_encoder.linears.0.bias",
        },
    ),
    "freeze_decoder_first_layer": (
        {"freeze_decoder_first_layer": False},
        DECODER_NORM | {"decoder.linears.0.weight", "decoder.linears.0.bias"},
    ),
    "freeze_batchnorm_encoder": (
        {"freeze_batchnorm_encoder": False},
        DECODER_NORM | ENCODER_NORM,
    ),
    "freeze_batchnorm_decoder": ({"freeze_batchnorm_decoder": True}, set()),
    "unfrozen": ({"unfrozen": True}, None),
    "unfrozen wins": ({"unfrozen": True, "freeze_batchnorm_decoder": True}, None),
}
SHORT = {"max_steps": 3, "seed": 0, "accelerator": "cpu", "progress": False}
DECAYING = {  # a recipe whose weight decay pulls at vectors too
    **SHORT,
    "recipe": "scvi-tools",
    "plan_kwargs": {"weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def reference(tiny):
    """A trained reference of an architecture, made once; nothing here may change it."""
    made = {}

    def of(name: str) -> SCVI | LinearSCVI:
        if name not in made:
            cls, options, _ = ARCHITECTURES[name]
            adata = tiny()
            cls.setup_anndata(adata, **COVARIATES)
            made[name] = cls(adata, **SMALL, **options)
            made[name].train(**SHORT)
        return made[name]

    return of


@pytest.fixture
def query(tiny):
    """New categories of batch, covariate and label beside known ones."""
    adata = tiny(seed=5)
    adata.obs["batch"] = np.array(["y", "b1", "x", "b0"])[np.arange(60) % 4]
    adata.obs["donor"] = np.array(["n", "d1"])[np.arange(60) // 4 % 2]
    adata.obs["cell_type"] = np.array(["Z", "T"])[np.arange(60) % 2]
    return adata


def mapped(query, reference, **flags):
    """A model of the query, whether or not it warns that the encoder sees nothing new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The encoder of the reference", VivaceWarning)
        return type(reference).load_query_data(query, reference, **flags)


def only_batches(tiny, *batches, **options):
    """A trained reference with a batch, or without, and no other covariate."""
    adata = tiny()
    SCVI.setup_anndata(adata, batch_key="batch" if batches else None)
    trained = SCVI(adata, **SMALL, **options)
    trained.train(**SHORT)
    return trained


def of_batch(tiny, *batches, n_cells=60):
    adata = tiny(n_cells=n_cells, seed=7)
    adata.obs["batch"] = np.resize(np.array(batches), n_cells)
    return adata


def with_more_genes(adata):
    more = adata[:, :2].copy()
    more.var_names = ["more0", "more1"]
    return anndata.concat([adata.copy(), more], axis=1, merge="same")


def hashes(network) -> dict[tuple[str, int | None], str]:
    """Of every row of what has rows, and of every vector, parameters and buffers alike."""
    found = {}
    for name, tensor in network.state_dict().items():
        rows = list(enumerate(tensor)) if tensor.ndim > 1 else [(None, tensor)]
        for row, values in rows:
            found[name, row] = hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()
    return found


def changed(before, network) -> set[tuple[str, int | None]]:
    after = hashes(network)
    assert after.keys() == before.keys()
    return {at for at in after if after[at] != before[at]}


def expected_changes(name: str, flags: str, present) -> set[tuple[str, int | None]]:
    """From the tables above, and nothing else."""
    new_rows, whole = ARCHITECTURES[name][2], FLAGS[flags][1]
    if whole is None:  # all but the prior of the library, which is no parameter
        return {at for at in present if at[0] not in ("library_mean", "library_variance")}
    if name == "linear" and flags == "freeze_decoder_first_layer":  # it has no other layer
        whole = whole | {"decoder.scale.weight", "decoder.dropout.weight"}
    rows = {(weight, row) for weight, new in new_rows.items() for row in new}
    assert rows <= set(present)
    return rows | {at for at in present if at[0] in whole}


def numbers_of(model, adata):
    """Latent mean and expected expression of the cells, asked of the network itself."""
    source = model._read(adata)
    batch = source.gather(np.arange(source.n_cells))
    with torch.no_grad():
        z = model.module.encode(batch).z.mean
        return z.numpy(), model.module.scale(model.module.place(z), batch).numpy()


# ---- what is trained ---------------------------------------------------------


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_changes_is_what_the_table_says_and_the_rest_stays_bit_by_bit(
    reference, query, name, flags
):
    model = mapped(query, reference(name), **FLAGS[flags][0])
    before = hashes(model.module)
    model.train(**DECAYING)
    assert changed(before, model.module) == expected_changes(name, flags, before)


@pytest.mark.parametrize("name", ["mapping", "blind", "gene-batch", "gene-label", "linear"])
def test_the_fast_recipe_leaves_what_is_frozen_too(reference, query, name):
    model = mapped(query, reference(name))
    before = hashes(model.module)
    model.train(**SHORT, plan_kwargs={"weight_decay": 0.1})
    assert changed(before, model.module) == expected_changes(name, "default", before)


@pytest.mark.parametrize("flags", ["default", "unfrozen"])
@pytest.mark.parametrize("name", ["seeing", "blind", "gene-batch", "linear"])
def test_training_starts_at_the_reference_and_not_at_the_moments_of_the_query(
    reference, query, name, flags
):
    model = mapped(query, reference(name), **FLAGS[flags][0])
    before = hashes(model.module)
    model.train(**SHORT, plan_kwargs={"lr": 0.0})
    assert {n.split(".")[-1] for n, _ in changed(before, model.module)} == set(STATISTICS)


@pytest.mark.parametrize("name", ["mapping", "blind", "embedding", "gene-batch", "linear"])
def test_what_is_frozen_stays_on_every_device(reference, query, device, name):
    model = mapped(query, reference(name))
    before = hashes(model.module)
    model.train(**DECAYING | {"accelerator": device.type})
    assert model.device.type == device.type
    assert changed(before, model.module) == expected_changes(name, "default", before)


def test_a_second_training_leaves_what_is_frozen_and_goes_on(reference, query):
    model = mapped(query, reference("seeing"))
    model.train(**DECAYING)
    before = hashes(model.module)
    rows = model.train_indices
    model.train(**DECAYING)
    assert changed(before, model.module) == expected_changes("seeing", "default", before)
    assert len(model.history) == 6
    np.testing.assert_array_equal(model.train_indices, rows)


def test_an_epoch_that_is_done_again_leaves_what_is_frozen(reference, query):
    model = mapped(query, reference("seeing"))
    before = hashes(model.module)
    calls, plain = [], MemorySource.gather

    def gather(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            with torch.no_grad():
                model.module.decoder.scale.weight.fill_(float("nan"))
        return plain(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySource, "gather", gather)
        with pytest.warns(RuntimeWarning, match="done again with half"):
            model.train(**DECAYING)
    assert len(model.history) == 3
    assert changed(before, model.module) == expected_changes("seeing", "default", before)


@pytest.mark.parametrize("flags", [{}, {"unfrozen": True}], ids=["default", "unfrozen"])
def test_the_reference_is_left_as_it_is(reference, query, flags):
    trained = reference("seeing")
    before = hashes(trained.module)
    mapped(query, trained, **flags).train(**DECAYING)
    assert changed(before, trained.module) == set()
    assert trained.module.surgery is None
    assert all(p.requires_grad for p in trained.module.parameters())


def test_training_lowers_the_loss_of_the_query(reference, query):
    model = mapped(query, reference("seeing"))
    model.train(**SHORT | {"max_steps": 30}, plan_kwargs={"min_kl_weight": 1.0})
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]


@pytest.mark.parametrize(("flags", "rate"), [({}, 0.1), ({"freeze_dropout": True}, 0.0)])
def test_dropout_is_that_of_the_reference_unless_it_is_frozen(reference, query, flags, rate):
    model = mapped(query, reference("two layers, deep"), **flags)
    assert [a.dropout for a in model.module.encoder.activations] == [rate, rate]
    assert model.config.dropout_rate == rate
    assert reference("two layers, deep").config.dropout_rate == 0.1


def test_unfrozen_leaves_dropout_to_training(reference, query):
    model = mapped(query, reference("seeing"), unfrozen=True, freeze_dropout=True)
    assert model.module.encoder.activations[0].dropout == 0.1


# ---- frozen batch norm -------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_of_the_encoder_does_not_see_the_other_cells(reference, query, frozen):
    model = mapped(query, reference("seeing"), freeze_dropout=True, freeze_batchnorm_encoder=frozen)
    source = model._own_source()
    network = model.module.train()
    with torch.no_grad():
        one = network.encode(source.gather(np.array([3, 4, 5]))).z.mean[0]
        other = network.encode(source.gather(np.array([3, 40, 50]))).z.mean[0]
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6) is frozen


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["seeing", "linear"])
def test_frozen_batch_norm_of_the_decoder_does_not_see_the_other_cells(
    reference, query, name, frozen
):
    model = mapped(query, reference(name), freeze_batchnorm_decoder=frozen)
    source = model._own_source()
    network = model.module.train()
    z = torch.linspace(-2, 2, 12).view(4, 3)
    with torch.no_grad():
        one = network.scale(z[[0, 1, 2]], source.gather(np.array([3, 4, 5])))[0]
        other = network.scale(z[[0, 3, 3]], source.gather(np.array([3, 40, 50])))[0]
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-7) is frozen


# ---- weights before training -------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_rows_are_those_of_the_reference_and_new_ones_their_mean(reference, query, name):
    model = mapped(query, reference(name))
    old, new = (m.module.state_dict() for m in (reference(name), model))
    injected = ARCHITECTURES[name][2]
    for weight in new:
        if weight in ("library_mean", "library_variance"):
            assert torch.equal(new[weight][:2], old[weight])
        elif weight not in injected:
            assert torch.equal(new[weight], old[weight]), weight
        elif weight in ("log_theta", "batch_embedding.weight"):
            n_new = len(injected[weight])
            mean = old[weight].mean(0).expand(n_new, -1)
            torch.testing.assert_close(new[weight], torch.cat([old[weight], mean]))
        else:
            batches, donors = old[weight][-5:-3], old[weight][-3:]
            top = old[weight][:-5]
            blocks = [batches, batches.mean(0).expand(2, -1)]
            if name == "embedding":
                top, blocks = old[weight][:-3], []
            blocks += [donors, donors.mean(0)[None]]
            torch.testing.assert_close(new[weight], torch.cat([top, *blocks]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_before_training_reference_cells_have_the_numbers_of_the_reference(reference, query, name):
    """Blocks of several covariates that were mixed up would show here."""
    trained = reference(name)
    for found, known in zip(
        numbers_of(mapped(query, trained), trained.adata),
        numbers_of(trained, trained.adata),
        strict=True,
    ):
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["seeing", "two layers, deep", "linear"])
def test_a_new_category_starts_half_way_between_the_known_ones(reference, query, name):
    """In the first linear map of the encoder: the mean over b0 and b1 of the same cell."""
    model = mapped(query, reference(name))
    first = []
    for batch in ("b0", "b1", "x"):
        query.obs["batch"] = batch
        cells = model._read(query).gather(np.arange(5))
        covariates = model.module._covariates(cells)
        with torch.no_grad():
            first.append(model.module.encoder._first(cells.counts, *covariates, "auto"))
    torch.testing.assert_close(first[2], (first[0] + first[1]) / 2, rtol=1e-5, atol=1e-5)


def test_the_one_batch_of_a_reference_gets_a_row_of_zeros(tiny):
    adata = of_batch(tiny, "only")
    with pytest.warns(VivaceWarning, match="one value 'only'"):
        SCVI.setup_anndata(adata, batch_key="batch")
    trained = SCVI(adata, **SMALL, encode_covariates=True)
    trained.train(**SHORT)
    model = SCVI.load_query_data(of_batch(tiny, "x"), trained)
    for side, n_before in (("encoder", 30), ("decoder", 3)):
        old = trained.module.state_dict()[f"{side}.linears.0.weight"]
        new = model.module.state_dict()[f"{side}.linears.0.weight"]
        assert old.shape == (n_before, 8)
        torch.testing.assert_close(new, torch.cat([old, torch.zeros(2, 8)]), rtol=0, atol=0)
    before = hashes(model.module)
    model.train(**DECAYING)
    moved = changed(before, model.module)
    assert {at for at in moved if ".linears." in at[0]} == {
        ("encoder.linears.0.weight", 31),
        ("decoder.linears.0.weight", 4),
    }
    np.testing.assert_allclose(
        model.get_latent_representation(adata),
        trained.get_latent_representation(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_library_prior_of_a_new_batch_is_that_of_its_cells(reference, query):
    model = mapped(query, reference("latent library"))
    library = np.log(query.X.toarray().sum(1))
    found = model.module.state_dict()
    for code, batch in ((2, "x"), (3, "y")):
        cells = library[(query.obs["batch"] == batch).to_numpy()]
        np.testing.assert_allclose(found["library_mean"][code], cells.mean(), rtol=1e-5)
        np.testing.assert_allclose(found["library_variance"][code], cells.var(), rtol=1e-4)


@pytest.mark.parametrize("batches", [("x",), ("b1", "x"), ("b1",)], ids=str)
def test_a_latent_library_takes_a_query_without_cells_of_every_known_batch(
    tiny, reference, batches
):
    query = of_batch(tiny, *batches)
    model = mapped(query, reference("latent library"))
    known = reference("latent library").module.state_dict()
    for name in ("library_mean", "library_variance"):
        found = model.module.state_dict()[name]
        assert torch.equal(found[:2], known[name])
        assert torch.isfinite(found).all()
    model.train(**DECAYING)
    assert np.isfinite(model.get_elbo(seed=0))


# ---- the latent space --------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reference_cells_stay_where_they_are(reference, query, name):
    trained = reference(name)
    model = mapped(query, trained)
    model.train(**DECAYING)
    np.testing.assert_allclose(
        model.get_latent_representation(trained.adata),
        trained.get_latent_representation(),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["seeing", "blind", "linear"])
def test_reference_cells_move_once_the_expression_is_trained(reference, query, name):
    trained = reference(name)
    model = mapped(query, trained, freeze_expression=False)
    model.train(**DECAYING)
    moved = model.get_latent_representation(trained.adata) - trained.get_latent_representation()
    assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize(("name", "moves"), [("seeing", True), ("mapping", True), ("blind", False)])
def test_cells_of_a_new_batch_move_where_the_encoder_sees_it(reference, query, name, moves):
    model = mapped(query, reference(name))
    before, _ = numbers_of(model, query)
    model.train(**DECAYING)
    new = query.obs["batch"].isin(["x", "y"]) | (query.obs["donor"] == "n")
    moved = np.abs(model.get_latent_representation() - before).max(1)
    assert bool(moved[new].min() > 1e-5) is moves
    assert moved[~new].max() < 1e-5


# ---- files -------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["default", "freeze_expression", "freeze_batchnorm_decoder"])
@pytest.mark.parametrize("trained_before", [True, False])
def test_what_is_frozen_outlives_a_file(reference, query, tmp_path, flags, trained_before):
    model = mapped(query, reference("two layers, deep"), **FLAGS[flags][0])
    if trained_before:
        model.train(**DECAYING)
    model.save(tmp_path / "mapped")
    loaded = SCVI.load(tmp_path / "mapped", query)
    before = hashes(model.module)
    assert changed(before, loaded.module) == set()
    assert loaded.module.surgery == model.module.surgery
    loaded.train(**DECAYING)
    moved = changed(before, loaded.module)
    assert moved == expected_changes("two layers, deep", flags, before)


def test_no_dropout_outlives_a_file(reference, query, tmp_path):
    mapped(query, reference("seeing"), freeze_dropout=True).save(tmp_path / "mapped")
    loaded = SCVI.load(tmp_path / "mapped")
    assert loaded.module.encoder.activations[0].dropout == 0.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: 3,
        lambda s: [],
        lambda s: {},
        lambda s: None,
        lambda s: s | {"freeze_everything": True},
        lambda s: s | {"n_categories": 3},
        lambda s: s | {"n_categories": []},
        lambda s: s | {"n_categories": ["three"]},
        lambda s: s | {"n_batches": "two"},
        lambda s: s | {"n_batches": 99},
        lambda s: s | {"n_batches": -1},
        lambda s: s | {"freeze_expression": "no"},
        lambda s: {k: v for k, v in s.items() if k != "n_batches"},
    ],
    ids=[
        "a number",
        "a list",
        "empty",
        "null",
        "unknown flag",
        "categories are a number",
        "too few covariates",
        "categories are text",
        "batches are text",
        "more batches than there are",
        "fewer than no batches",
        "flag is text",
        "no batches",
    ],
)
def test_a_damaged_surgery_section_is_refused(reference, query, tmp_path, refused, spoil):
    mapped(query, reference("seeing")).save(tmp_path / "mapped")
    file = tmp_path / "mapped" / "model.json"
    sections = json.loads(file.read_text())
    sections["surgery"] = spoil(sections["surgery"])
    file.write_text(json.dumps(sections))
    with refused(ModelFileError, "model.json", "is damaged", "save the model again"):
        SCVI.load(tmp_path / "mapped")


@pytest.mark.parametrize("kind", [Path, str])
def test_a_folder_is_as_good_as_the_model(reference, query, tmp_path, kind):
    trained = reference("seeing")
    trained.save(tmp_path / "reference")
    from_memory = mapped(query, trained)
    from_folder = SCVI.load_query_data(query, kind(tmp_path / "reference"))
    assert changed(hashes(from_memory.module), from_folder.module) == set()
    assert from_folder.schema == from_memory.schema
    from_folder.train(**DECAYING)
    from_memory.train(**DECAYING)
    assert changed(hashes(from_memory.module), from_folder.module) == set()


GOLDEN_NEW = {  # folders of scvi-tools' models, and whether their encoder sees the batch
    "linear": False,
    "nb_batch_embedding": True,
    "nb_gene_batch_covariates": True,
    "nb_gene_label_size_factor": False,
    "poisson_logistic_normal": False,
    "zinb_default": False,
    "zinb_gene_cell": False,
    "zinb_latent_library": False,
}


@pytest.mark.parametrize("name", GOLDEN_NEW)
def test_a_query_is_mapped_onto_a_model_of_scvi_tools(name):
    """What scvi-tools found for the reference's cells is found by the mapped model still."""
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    cls = LinearSCVI if name == "linear" else SCVI
    query = adata[::4].copy()
    query.obs["batch"] = query.obs["batch"].astype(object)
    query.obs.iloc[::2, query.obs.columns.get_loc("batch")] = "new"
    if GOLDEN_NEW[name]:
        model = cls.load_query_data(query, GOLDEN / name)
    else:
        with pytest.warns(VivaceWarning, match="does not see"):
            model = cls.load_query_data(query, GOLDEN / name)
    assert model.schema.batches[-1] == "new"
    assert not model.is_trained
    model.train(**DECAYING)
    expected = np.load(GOLDEN / name / "expected.npz")
    mean, variance = model.get_latent_representation(adata, return_dist=True)
    np.testing.assert_allclose(mean, expected["qz_mean"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, expected["qz_var"], rtol=1e-4, atol=1e-4)


# ---- one query after another -------------------------------------------------


def test_a_second_query_leaves_the_rows_of_the_first(reference, query, tiny):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    later = tiny(seed=9)
    later.obs["batch"] = np.array(["z", "x"])[np.arange(60) % 2]
    later.obs["donor"] = "m"
    second = SCVI.load_query_data(later, first)
    assert second.schema.batches == ("b0", "b1", "x", "y", "z")
    assert second.schema.categories == (("d0", "d1", "d2", "n", "m"),)
    before = hashes(second.module)
    second.train(**DECAYING)
    old, new = (m.module.state_dict() for m in (first, second))
    for weight, start in (("encoder.linears.0.weight", 31), ("decoder.linears.0.weight", 4)):
        batches, donors = old[weight][start : start + 4], old[weight][start + 4 :]
        assert torch.equal(new[weight][:start], old[weight][:start])
        assert torch.equal(new[weight][start : start + 4], batches)
        assert torch.equal(new[weight][start + 5 : start + 9], donors)
        moved = {row for name, row in changed(before, second.module) if name == weight}
        assert moved == {start + 4, start + 9}
    for adata in (reference("seeing").adata, query):
        np.testing.assert_allclose(
            second.get_latent_representation(adata),
            first.get_latent_representation(adata),
            rtol=1e-5,
            atol=1e-6,
        )


def test_new_rows_of_a_second_query_are_the_mean_of_all_that_were_there(reference, query, tiny):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    second = SCVI.load_query_data(of_batch(tiny, "z"), first)
    old, new = (m.module.state_dict()["decoder.linears.0.weight"] for m in (first, second))
    torch.testing.assert_close(new[8], old[4:8].mean(0))


def test_the_same_query_mapped_again_has_no_new_rows(reference, query):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    again = SCVI.load_query_data(query.copy(), first)
    before = hashes(first.module)
    assert changed(before, again.module) == set()
    again.train(**DECAYING)
    assert {name for name, _ in changed(before, again.module)} == _norm("decoder.activations.0")


def test_a_query_without_a_known_batch_is_mapped(tiny, reference):
    model = SCVI.load_query_data(of_batch(tiny, "p", "q", "r"), reference("seeing"))
    assert model.schema.batches == ("b0", "b1", "p", "q", "r")
    model.train(**DECAYING)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_normalized_expression(n_samples=1).to_numpy()).all()


@pytest.mark.parametrize("seeing", [True, False])
def test_a_model_with_nothing_to_train_counts_as_trained(tiny, seeing):
    trained = only_batches(tiny, "b0", "b1", encode_covariates=seeing)
    query = of_batch(tiny, "b0", "b1")
    model = SCVI.load_query_data(query, trained, freeze_batchnorm_decoder=True)
    before = hashes(model.module)
    assert model.is_trained
    assert "knew every category" in model.summary
    latent = model.get_latent_representation()
    np.testing.assert_array_equal(latent, trained.get_latent_representation(query))
    with pytest.warns(VivaceWarning, match="nothing to train"):
        model.train(progress=False)
    assert changed(before, model.module) == set()
    assert model.is_trained
    assert len(model.history) == 0


def test_a_model_with_nothing_to_train_is_saved_and_loaded(tiny, tmp_path):
    trained = only_batches(tiny, "b0", "b1", preset="mapping")
    query = of_batch(tiny, "b1")
    model = SCVI.load_query_data(query, trained)
    model.save(tmp_path / "mapped")
    loaded = SCVI.load(tmp_path / "mapped", query)
    assert loaded.is_trained
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), trained.get_latent_representation(query)
    )
    third = SCVI.load_query_data(of_batch(tiny, "x"), loaded)
    third.train(**DECAYING)
    assert len(third.history) == 3


@pytest.mark.parametrize("name", ["mapping", "seeing", "linear", "latent library", "gene-batch"])
def test_a_query_of_one_cell_is_mapped(tiny, reference, name):
    query = of_batch(tiny, "x", n_cells=1)
    query.obs["donor"] = "n"
    model = mapped(query, reference(name))
    before = hashes(model.module)
    model.train(**DECAYING)
    assert ("encoder.linears.0.weight", 33) in changed(before, model.module)
    assert not {n for n, _ in changed(before, model.module) if n.split(".")[-1] in STATISTICS}
    assert np.isfinite(model.get_latent_representation()).all()


# ---- columns -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["seeing", "gene-batch", "linear"])
def test_a_query_needs_no_labels(reference, query, name):
    del query.obs["cell_type"]
    model = mapped(query, reference(name))
    model.train(**DECAYING)
    assert model.get_latent_representation().shape == (60, 3)


def test_a_query_needs_labels_where_each_has_its_dispersion(reference, query, refused):
    del query.obs["cell_type"]
    with refused(MissingColumnError, "'cell_type'", "query.obs['cell_type'] = 'Unknown'"):
        SCVI.load_query_data(query, reference("gene-label"))


def test_labels_of_the_query_are_taken_where_each_has_its_dispersion(reference, query):
    query.obs["cell_type"] = "Unknown"
    model = SCVI.load_query_data(query, reference("gene-label"))
    assert model.schema.labels == ("B", "NK", "T", "Unknown")


def test_the_order_of_genes_and_further_genes_do_not_matter(reference, query):
    shuffled = query[:, np.random.default_rng(0).permutation(30)].copy()
    for adata in (shuffled, with_more_genes(shuffled)):
        model = SCVI.load_query_data(adata, reference("seeing"))
        np.testing.assert_array_equal(model._own_source().counts.toarray(), query.X.toarray())


def test_only_the_genes_of_the_reference_are_left_if_that_is_asked_for(reference, query):
    wider = with_more_genes(query[:, ::-1])
    model = SCVI.load_query_data(wider, reference("seeing"), inplace_subset_query_vars=True)
    assert list(wider.var_names) == [f"gene{i}" for i in range(30)]
    np.testing.assert_array_equal(wider.X.toarray(), query.X.toarray())
    model.train(**DECAYING)
    assert model.get_latent_representation().shape == (60, 3)


def test_of_a_view_only_the_genes_of_the_reference_are_left_and_its_parent_stays(reference, query):
    parent = with_more_genes(query)
    view = parent[:20]
    model = SCVI.load_query_data(view, reference("seeing"), inplace_subset_query_vars=True)
    model.train(**DECAYING)
    assert view.shape == (20, 30)
    assert parent.shape == (60, 32)


def test_a_mapped_model_answers_without_counts_and_across_old_and_new_batches(reference, query):
    model = mapped(query, reference("seeing"))
    model.train(**DECAYING)
    expected = model.get_latent_representation()
    shown = [
        model.get_normalized_expression(transform_batch=b, n_samples=1, seed=0, return_numpy=True)
        for b in ("b0", "x")
    ]
    assert np.abs(shown[0] - shown[1]).max() > 1e-6
    model.minify_adata()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


def test_new_categories_come_after_the_known_ones_in_their_own_order(reference, query):
    query.obs["batch"] = (
        query.obs["batch"].astype("category").cat.set_categories(["y", "x", "b1", "b0", "unused"])
    )
    model = SCVI.load_query_data(query, reference("seeing"))
    assert model.schema.batches == ("b0", "b1", "y", "x")


# ---- warnings ----------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [{}, {"freeze_decoder_first_layer": False}, {"freeze_batchnorm_decoder": True}]
)
def test_an_encoder_that_sees_nothing_new_is_warned_of(reference, query, flags):
    with pytest.warns(VivaceWarning, match="moves no cell.*preset='mapping'") as caught:
        SCVI.load_query_data(query, reference("blind"), **flags)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "batches", "flags"),
    [
        ({"preset": "mapping"}, ("x",), {}),
        ({"encode_covariates": True}, ("x",), {}),
        ({"encode_covariates": True, "batch_representation": "embedding"}, ("x",), {}),
        ({}, ("b0", "b1"), {}),
        ({}, ("b1",), {}),
        ({}, ("x",), {"unfrozen": True}),
        ({}, ("x",), {"freeze_expression": False}),
    ],
    ids=str,
)
def test_no_warning_where_cells_move_or_nothing_is_new(tiny, options, batches, flags):
    trained = only_batches(tiny, "b0", "b1", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SCVI.load_query_data(of_batch(tiny, *batches), trained, **flags)
    assert [str(w.message) for w in caught] == []


def test_a_reference_without_covariates_is_trained_as_a_whole_or_not_at_all(tiny, refused):
    trained = only_batches(tiny)
    with refused(OptionError, "no batch and no categorical covariates", "adata=query"):
        SCVI.load_query_data(tiny(seed=3), trained)
    free = SCVI.load_query_data(tiny(seed=3), trained, unfrozen=True)
    before = hashes(free.module)
    free.train(**DECAYING)
    assert changed(before, free.module) == set(before)


def test_a_model_read_by_its_class_maps_as_one_read_by_name(reference, query, tmp_path):
    reference("linear").save(tmp_path / "reference")
    found = mapped(query, model.load(tmp_path / "reference"))
    assert type(found) is LinearSCVI
    assert changed(hashes(mapped(query, reference("linear")).module), found.module) == set()
