"""Where new categories are put among those of several covariates, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData

from vivace import SCVI, LinearSCVI
from vivace.errors import ModelFileError, VivaceWarning

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL: dict[str, Any] = {"n_hidden": 8, "n_latent": 3}
STEPS: dict[str, Any] = {"max_epochs": 2, "batch_size": 20, "seed": 1, "progress": False}
DECAYING: dict[str, Any] = {**STEPS, "plan_kwargs": {"weight_decay": 0.1}}
NO_STEP: dict[str, Any] = {"max_steps": 1, "progress": False, "plan_kwargs": {"lr": 0.0}}
SEES: dict[str, Any] = {"encode_covariates": True}
BATCH = {"batch_key": "batch"}
COVARIATES = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["donor", "lane"],
    "continuous_covariate_keys": ["age"],
}

# The reference has batches b0 b1, donors d0 d1 d2 and lanes l0 l1; new in the query are batches
# a8 a9, donor d00 and lane k.  One-hot columns: b0 b1 (a8 a9) d0 d1 d2 (d00) l0 l1 (k).
# Before them come 30 genes or 3 latent dimensions, then the age; 8 hidden units in deeper layers.


def rows_after(start: int) -> dict[int, list[int]]:
    """Row of each new category: rows of the known ones of its covariate, in the reference."""
    batches, donors = [start, start + 1], [start + 2, start + 3, start + 4]
    lanes = [start + 5, start + 6]
    return {start + 2: batches, start + 3: batches, start + 7: donors, start + 10: lanes}


NEW: dict[str, tuple[type[SCVI] | type[LinearSCVI], dict[str, Any], dict[str, dict]]] = {
    "one layer": (
        SCVI,
        SEES,
        {"encoder.linears.0.weight": rows_after(31), "decoder.linears.0.weight": rows_after(4)},
    ),
    "deep": (
        SCVI,
        {**SEES, "n_layers": 2},
        {
            "encoder.linears.0.weight": rows_after(31),
            "encoder.linears.1.weight": rows_after(8),
            "decoder.linears.0.weight": rows_after(4),
            "decoder.linears.1.weight": rows_after(8),
        },
    ),
    "blind": (SCVI, {}, {"decoder.linears.0.weight": rows_after(4)}),
    "embedding": (  # its five columns stand between the age and d0
        SCVI,
        {**SEES, "batch_representation": "embedding"},
        {
            "batch_embedding.weight": {2: [0, 1], 3: [0, 1]},
            "encoder.linears.0.weight": {39: [36, 37, 38], 42: [39, 40]},
            "decoder.linears.0.weight": {12: [9, 10, 11], 15: [12, 13]},
        },
    ),
    "linear": (
        LinearSCVI,
        {**SEES, "gene_likelihood": "zinb", "use_observed_lib_size": True},
        {
            "encoder.linears.0.weight": rows_after(31),
            "decoder.scale.weight": rows_after(4),
            "decoder.dropout.weight": rows_after(4),
        },
    ),
}


def with_lane(adata: AnnData) -> AnnData:
    adata.obs["lane"] = np.array(["l0", "l1"])[np.arange(adata.n_obs) // 2 % 2]
    return adata


def trained_on(adata: AnnData, setup: dict[str, Any], cls: Any = SCVI, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has the one value", VivaceWarning)
        cls.setup_anndata(adata, **setup)
    model = cls(adata, **SMALL, **options)
    model.train(**STEPS)
    return model


@pytest.fixture(scope="module")
def reference_of(tiny):
    """Trained models by name; nothing here may change them."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            cls, options, _ = NEW[name]
            made[name] = trained_on(with_lane(tiny()), COVARIATES, cls, **options)
        return made[name]

    return get


@pytest.fixture
def query(tiny) -> AnnData:
    """Cells of known and of new categories, in many combinations."""
    adata = with_lane(tiny(seed=5))
    i = np.arange(60)
    adata.obs["batch"] = np.array(["b0", "a9", "b1", "a8"])[i % 4]
    adata.obs["donor"] = np.array(["d1", "d00", "d0", "d2", "d00"])[i % 5]
    adata.obs["lane"] = np.array(["k", "l1", "l0"])[i % 3]
    return adata


def mapped(adata: AnnData, reference: Any, **flags: Any) -> Any:
    """A query's model, with or without the warning that no cell will move."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The encoder of the reference", VivaceWarning)
        return type(reference).load_query_data(adata, reference, **flags)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in model.module.state_dict().items()}


def sha(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def without(values: torch.Tensor, rows: Any) -> np.ndarray:
    return np.delete(values.numpy(), list(rows), axis=0) if len(rows) else values.numpy()


def frozen_hashes(model: Any, new: dict[str, Any]) -> dict[str, str]:
    """Of all but the new rows and the decoder's batch norm."""
    return {
        name: sha(without(value, new.get(name, ())))
        for name, value in state_of(model).items()
        if not (name.startswith("decoder") and "batch_norm" in name)
    }


def answers(model: Any, adata: AnnData) -> dict[str, np.ndarray]:
    """What a model says about cells: encoder, decoder, dispersions and library."""
    mean, variance = model.get_latent_representation(adata, return_dist=True)
    return {
        "mean": mean,
        "variance": variance,
        "expression": model.get_normalized_expression(adata, return_numpy=True, seed=0),
        "elbo": np.array([model.get_elbo(adata, n_samples=2, seed=0)]),
    }


def assert_same_answers(one: Any, other: Any, adata: AnnData) -> None:
    expected = answers(other, adata)
    for name, value in answers(one, adata).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# ---- blocks of several covariates ----------------------------------------------


def test_categories_are_the_references_and_then_the_new_ones(reference_of, query):
    schema = mapped(query, reference_of("one layer")).schema
    assert schema.batches == ("b0", "b1", "a8", "a9")
    assert schema.categories == (("d0", "d1", "d2", "d00"), ("l0", "l1", "k"))


@pytest.mark.parametrize("name", NEW)
def test_new_rows_stand_in_the_block_of_their_covariate(reference_of, query, name):
    new = NEW[name][2]
    reference = reference_of(name)
    model = mapped(query, reference)
    old, now = state_of(reference), state_of(model)
    for entry, value in now.items():
        rows = new.get(entry, {})
        np.testing.assert_array_equal(without(value, rows), old[entry].numpy(), err_msg=entry)
        for row, known in rows.items():
            mean = old[entry][known].double().mean(0).numpy()
            np.testing.assert_allclose(value[row].numpy(), mean, rtol=1e-6, atol=1e-7)
    before = frozen_hashes(model, new)
    model.train(**DECAYING)
    assert frozen_hashes(model, new) == before
    trained = state_of(model)
    for entry, rows in new.items():
        for row in rows:
            assert (trained[entry][row] != now[entry][row]).any(), (entry, row)


@pytest.mark.parametrize("name", NEW)
def test_no_step_leaves_the_references_numbers_for_all_combinations(reference_of, query, name):
    reference = reference_of(name)
    model = mapped(query, reference, freeze_batchnorm_decoder=True)
    model.train(**NO_STEP)  # a model that was not trained answers nothing
    others = reference.adata.copy()
    rng = np.random.default_rng(1)
    for column in ("batch", "donor", "lane"):
        others.obs[column] = rng.permutation(others.obs[column].to_numpy())
    assert_same_answers(model, reference, reference.adata)
    assert_same_answers(model, reference, others)


# ---- references of one category ---------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("options", [SEES, {}], ids=["encoder sees", "encoder blind"])
def test_one_batch_gets_its_zeros_in_every_layer(tiny, query, n_layers, options):
    adata = tiny()
    adata.obs["batch"] = "b0"
    reference = trained_on(adata, BATCH, n_layers=n_layers, **options)
    query.obs["batch"] = np.where(np.arange(60) % 2, "b0", "a9")
    model = mapped(query, reference, freeze_batchnorm_decoder=True)
    starts = {"decoder.linears.0.weight": 3, "decoder.linears.1.weight": 8}
    if options:
        starts |= {"encoder.linears.0.weight": 30, "encoder.linears.1.weight": 8}
    old, now = state_of(reference), state_of(model)
    new = {}
    for entry, value in now.items():
        if entry in starts:
            assert len(value) == starts[entry] + 2
            assert (value[starts[entry] :] == 0).all()
            value, new[entry] = value[: starts[entry]], [starts[entry] + 1]
        np.testing.assert_array_equal(value.numpy(), old[entry].numpy(), err_msg=entry)
    before = frozen_hashes(model, new)
    model.train(**DECAYING)
    assert frozen_hashes(model, new) == before
    assert_same_answers(model, reference, adata)


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ({"batch_representation": "embedding"}, "batch_embedding.weight"),
        ({"dispersion": "gene-batch"}, "log_theta"),
    ],
)
def test_tables_of_one_batch_repeat_its_row(tiny, query, option, table):
    adata = tiny()
    adata.obs["batch"] = "b0"
    reference = trained_on(adata, BATCH, **SEES, **option)
    query.obs["batch"] = np.where(np.arange(60) % 2, "b0", "a9")
    row = state_of(reference)[table]
    assert len(row) == 1
    assert torch.equal(state_of(mapped(query, reference))[table], torch.cat([row, row]))


def test_a_covariate_of_one_category_gets_columns_between_the_others(tiny, query):
    adata = with_lane(tiny())
    adata.obs["donor"] = "d1"
    reference = trained_on(adata, COVARIATES, **SEES)
    query.obs["donor"] = np.where(np.arange(60) % 2, "d1", "d00")
    model = mapped(query, reference, freeze_batchnorm_decoder=True)
    for entry, start in (("encoder.linears.0.weight", 31), ("decoder.linears.0.weight", 4)):
        old, new = state_of(reference)[entry], state_of(model)[entry]
        # b0 b1 l0 l1 become b0 b1 (a8 a9) d1 (d00) l0 l1 (k)
        kept = [*range(start + 2), start + 6, start + 7]
        assert torch.equal(new[kept], old)
        assert (new[[start + 4, start + 5]] == 0).all()
        torch.testing.assert_close(new[start + 8], old[start + 2 :].mean(0))
    model.train(**DECAYING)
    assert_same_answers(model, reference, adata)


# ---- further doors, devices and steps ------------------------------------------------

# 150 genes, 10 latent dimensions, 32 hidden units; two continuous covariates, batches
# ctrl stim (pilot), donors d101 d1015 d107 d1244 (d9)
GOLDEN_NEW: dict[str, dict[int, list[int]]] = {
    "encoder.linears.0.weight": {154: [152, 153], 159: [154, 155, 156, 157]},
    "encoder.linears.1.weight": {34: [32, 33], 39: [34, 35, 36, 37]},
    "decoder.linears.0.weight": {14: [12, 13], 19: [14, 15, 16, 17]},
    "decoder.linears.1.weight": {34: [32, 33], 39: [34, 35, 36, 37]},
    "log_theta": {2: [0, 1]},
}


@pytest.mark.parametrize("door", ["memory", "vivace folder", "scvi-tools folder"])
def test_every_door_leads_to_the_same_rows(tmp_path, door):
    folder = GOLDEN / "nb_gene_batch_covariates"
    adata = anndata.read_h5ad(GOLDEN / "adata.h5ad")
    query = adata[:80].copy()
    for column, new in (("batch", "pilot"), ("donor", "d9")):
        query.obs[column] = query.obs[column].astype(str)
        query.obs.loc[query.obs_names[::3], column] = new
    reference: Any = SCVI.load(folder)
    old = state_of(reference)
    if door == "vivace folder":
        reference.save(tmp_path / "reference")
        reference = tmp_path / "reference"
    elif door == "scvi-tools folder":
        reference = folder
    model = SCVI.load_query_data(query, reference)
    for entry, value in state_of(model).items():
        rows = GOLDEN_NEW.get(entry, {})
        np.testing.assert_array_equal(without(value, rows), old[entry].numpy(), err_msg=entry)
        for row, known in rows.items():
            torch.testing.assert_close(value[row], old[entry][known].mean(0))
    before = frozen_hashes(model, GOLDEN_NEW)
    model.train(**DECAYING)
    assert frozen_hashes(model, GOLDEN_NEW) == before
    expected = np.load(folder / "expected.npz")["qz_mean"]
    found = model.get_latent_representation(adata)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["deep", "embedding", "linear"])
@pytest.mark.parametrize("recipe", ["fast", "scvi-tools"])
def test_frozen_rows_stay_on_every_device(reference_of, query, name, recipe, device):
    model = mapped(query, reference_of(name))
    before = frozen_hashes(model, NEW[name][2])
    model.train(**DECAYING, recipe=recipe, accelerator=device.type)
    assert model.device.type == device.type
    assert frozen_hashes(model, NEW[name][2]) == before


def test_numbers_too_small_to_matter_stay_in_frozen_rows(tiny, query):
    """The optimiser clears such numbers every hundred steps, where it trains."""
    reference = trained_on(tiny(), BATCH, **SEES)
    weights = dict(reference.module.named_parameters())
    with torch.no_grad():
        for entry in ("encoder.linears.0.weight", "decoder.linears.0.weight", "decoder.scale.bias"):
            weights[entry][0] = 1e-36
        weights["encoder.linears.0.weight"][30] = 1e-36  # of b0
    model = mapped(query, reference)
    new = {"encoder.linears.0.weight": [32, 33], "decoder.linears.0.weight": [5, 6]}
    before = frozen_hashes(model, new)
    model.train(max_steps=110, batch_size=20, progress=False)
    assert frozen_hashes(model, new) == before
    assert (model.module.encoder.linears[0].weight[30] == 1e-36).all()


def test_training_of_all_starts_from_the_reference_not_from_moments(reference_of, query):
    """The recipe sets biases of the output from the data, but of a new model only."""
    model = mapped(query, reference_of("blind"), unfrozen=True)
    before = frozen_hashes(model, {})
    model.train(**NO_STEP)
    found = frozen_hashes(model, {})
    assert {n for n in found if found[n] != before[n]} == {
        f"encoder.activations.0.batch_norm.{part}"
        for part in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_the_first_layer_of_the_decoder_trains_without_its_batch_norm(reference_of, query):
    """Batch norm that trains would take away whatever the bias adds."""
    model = mapped(
        query,
        reference_of("blind"),
        freeze_decoder_first_layer=False,
        freeze_batchnorm_decoder=True,
    )
    before = state_of(model)
    model.train(**DECAYING)
    moved = {name for name, value in state_of(model).items() if (value != before[name]).any()}
    assert moved == {"decoder.linears.0.weight", "decoder.linears.0.bias"}
    first = "decoder.linears.0.weight"
    assert (state_of(model)[first] != before[first]).any(1).all()


@pytest.mark.parametrize(
    ("side", "flag"),
    [("encoder", "freeze_expression"), ("decoder", "freeze_decoder_first_layer")],
)
def test_a_first_step_moves_new_rows_as_if_their_whole_layer_were_trained(
    reference_of, query, side, flag
):
    """Adam takes each number by itself, so that the gradients of the rows must be their own."""
    entry, rows = f"{side}.linears.0.weight", list(NEW["one layer"][2][f"{side}.linears.0.weight"])
    first_step = {"max_steps": 1, "batch_size": 60, "seed": 1, "progress": False}
    moved = []
    for flags in ({}, {flag: False}):
        model = mapped(query, reference_of("one layer"), **flags)
        before = state_of(model)[entry]
        model.train(**first_step, plan_kwargs={"eps": 0.1})
        moved.append((state_of(model)[entry] - before)[rows])
    assert (moved[0] != 0).any(1).all()
    assert not torch.allclose(moved[0][0], moved[0][1], rtol=1e-2)  # the rows differ
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-7)


def test_in_scvi_tools_format_a_mapped_model_gives_the_same_numbers(reference_of, query, tmp_path):
    model = mapped(query, reference_of("deep"))
    model.train(**STEPS)
    with pytest.warns(VivaceWarning, match="does not say what of this model of a query is frozen"):
        model.save(tmp_path / "mapped", format="scvi-tools")
    assert_same_answers(SCVI.load(tmp_path / "mapped"), model, query)


def test_a_view_is_cut_to_the_references_genes_and_its_parent_stays(reference_of, query):
    further = AnnData(np.ones((60, 2), np.float32), obs=query.obs[[]])
    parent = anndata.concat([query[:, ::-1], further], axis=1)
    parent.obs = query.obs
    parent.layers["twice"] = parent.X * 2
    view, counts = parent[10:], parent[10:].to_df()
    model = mapped(view, reference_of("one layer"), inplace_subset_query_vars=True)
    assert model.adata is view
    assert parent.shape == (60, 32)
    assert view.var_names.tolist() == [f"gene{i}" for i in range(30)]
    np.testing.assert_array_equal(view.to_df(), counts[view.var_names])
    np.testing.assert_array_equal(view.to_df("twice"), 2 * counts[view.var_names])
    model.train(**STEPS)
    assert model.get_latent_representation().shape == (50, 3)


# ---- the warning that no cell will move ------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "mapping"},
        SEES,
        {},
        {**SEES, "batch_representation": "embedding"},
        {"batch_representation": "embedding"},
        {"n_layers": 2},
        {**SEES, "n_layers": 2, "deeply_inject_covariates": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"freeze_expression": False},
        {"freeze_decoder_first_layer": False},
        {"freeze_batchnorm_decoder": True},
    ],
    ids=str,
)
def test_there_is_a_warning_exactly_where_no_cell_moves(tiny, query, options, flags):
    reference = trained_on(tiny(), BATCH, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SCVI.load_query_data(query, reference, **flags)
    still = mapped(query, reference)
    still.train(**NO_STEP)
    model.train(**DECAYING)
    distance = np.abs(model.get_latent_representation() - still.get_latent_representation()).max()
    assert distance == 0 or distance > 1e-3
    assert [str(w.message)[:27] for w in caught] == (
        ["The encoder of the referenc"] if distance == 0 else []
    )


def test_labels_that_are_not_read_are_nothing_new(tiny):
    reference = trained_on(tiny(), {**BATCH, "labels_key": "cell_type"})
    model = SCVI.load_query_data(tiny(seed=6), reference)
    assert model.schema.batches == ("b0", "b1")


def test_labels_that_are_not_read_may_be_missing_for_some_cells(tiny, query):
    reference = trained_on(tiny(), {**BATCH, "labels_key": "cell_type"}, **SEES)
    query.obs["cell_type"] = np.nan
    model = SCVI.load_query_data(query, reference)
    model.train(**STEPS)
    assert np.isfinite(model.get_latent_representation()).all()


# ---- files -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fast", "scvi-tools"])
def test_a_mapped_model_goes_on_from_its_folder_with_its_history(
    reference_of, query, tmp_path, recipe
):
    model = mapped(query, reference_of("deep"))
    model.train(**DECAYING, recipe=recipe)
    model.save(tmp_path / "mapped", save_anndata=True)
    loaded = SCVI.load(tmp_path / "mapped")
    assert loaded.is_trained
    assert_same_answers(loaded, model, query)
    before = frozen_hashes(loaded, NEW["deep"][2])
    loaded.train(**DECAYING, recipe=recipe)
    assert frozen_hashes(loaded, NEW["deep"][2]) == before
    assert len(loaded.history) == 4
    np.testing.assert_array_equal(loaded.train_indices, model.train_indices)


@pytest.mark.parametrize(
    "wrong",
    [{"n_batches": 0}, {"n_batches": 1.5}, {"n_batches": True}, {"n_labels": "x"}, {"unfrozen": 1}],
    ids=str,
)
def test_a_surgery_of_wrong_numbers_is_refused(reference_of, query, tmp_path, refused, wrong):
    """With no known batch, say, rows of the reference would be trained."""
    mapped(query, reference_of("one layer")).save(tmp_path / "mapped")
    file = tmp_path / "mapped" / "model.json"
    sections = json.loads(file.read_text())
    sections["surgery"] |= wrong
    file.write_text(json.dumps(sections))
    with refused(ModelFileError, "model.json", "is damaged"):
        SCVI.load(tmp_path / "mapped")
