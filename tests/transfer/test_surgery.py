"""Which parameters of a query's model are trained; all others are unchanged bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mapping_cases import (
    ARCHITECTURES,
    DECAYING,
    SHORT,
    changed,
    hashes,
    mapped,
    new_rows,
    of_batch,
    trained_on,
)

from vivace import SCVI
from vivace.data import MemorySource
from vivace.errors import ModelFileError, VivaceWarning

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
FIRST_ENCODER = {
    f"{encoder}.linears.0.{part}"
    for encoder in ("encoder", "library_encoder")
    for part in ("weight", "bias")
}
FIRST_DECODER = {"decoder.linears.0.weight", "decoder.linears.0.bias"}
LINEAR_DECODER = {"decoder.scale.weight", "decoder.dropout.weight"}  # it has no other layer
# flags, and what is trained as a whole of what the architecture has; None for everything
FLAGS = {
    "default": ({}, DECODER_NORM),
    "freeze_dropout": ({"freeze_dropout": True}, DECODER_NORM),
    "freeze_expression": ({"freeze_expression": False}, DECODER_NORM | FIRST_ENCODER),
    "freeze_decoder_first_layer": (
        {"freeze_decoder_first_layer": False},
        DECODER_NORM | FIRST_DECODER,
    ),
    "freeze_batchnorm_encoder": (
        {"freeze_batchnorm_encoder": False},
        DECODER_NORM | ENCODER_NORM,
    ),
    "freeze_batchnorm_decoder": ({"freeze_batchnorm_decoder": True}, set()),
    "decoder's first layer without its norm": (
        {"freeze_decoder_first_layer": False, "freeze_batchnorm_decoder": True},
        FIRST_DECODER,
    ),
    "unfrozen": ({"unfrozen": True}, None),
    "unfrozen wins": ({"unfrozen": True, "freeze_batchnorm_decoder": True}, None),
}


def expected_changes(name: str, flags: str, present) -> set[tuple[str, int | None]]:
    """From the tables of architectures and of flags, and nothing else."""
    given, whole = FLAGS[flags]
    if whole is None:  # all but the prior of the library, which is no parameter
        return {at for at in present if at[0] not in ("library_mean", "library_variance")}
    if name == "linear" and not given.get("freeze_decoder_first_layer", True):
        whole = whole | LINEAR_DECODER
    assert new_rows(name) <= set(present)
    return new_rows(name) | {at for at in present if at[0] in whole}


# ---- what is trained ---------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fast", "scvi-tools"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_new_rows_and_the_norm_of_the_decoder_change(reference, query, device, name, recipe):
    model = mapped(query, reference(name))
    before = hashes(model)
    model.train(**DECAYING | {"accelerator": device.type, "recipe": recipe, "batch_size": 20})
    assert model.device.type == device.type
    assert changed(before, model) == expected_changes(name, "default", before)


@pytest.mark.parametrize("flags", [f for f in FLAGS if f != "default"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_changes_under_a_flag_is_what_the_table_says(reference, query, name, flags):
    model = mapped(query, reference(name), **FLAGS[flags][0])
    before = hashes(model)
    model.train(**DECAYING)
    assert changed(before, model) == expected_changes(name, flags, before)


@pytest.mark.parametrize("flags", ["default", "unfrozen"])
@pytest.mark.parametrize("name", ["seeing", "blind", "gene-batch", "linear"])
def test_training_starts_at_the_reference_and_not_at_the_moments_of_the_query(
    reference, query, name, flags
):
    """The recipe sets biases of the output from the data, but of a new model only."""
    model = mapped(query, reference(name), **FLAGS[flags][0])
    before = hashes(model)
    model.train(**SHORT, plan_kwargs={"lr": 0.0})
    statistics = {at for at in before if at[0].split(".")[-1] in STATISTICS}
    assert changed(before, model) == statistics & expected_changes(name, flags, before)


def test_a_second_training_leaves_what_is_frozen_and_goes_on(reference, query):
    model = mapped(query, reference("seeing"))
    model.train(**DECAYING)
    before = hashes(model)
    rows = model.train_indices
    model.train(**DECAYING)
    assert changed(before, model) == expected_changes("seeing", "default", before)
    assert len(model.history) == 6
    np.testing.assert_array_equal(model.train_indices, rows)


def test_an_epoch_that_is_done_again_leaves_what_is_frozen(reference, query):
    model = mapped(query, reference("seeing"))
    before = hashes(model)
    calls, plain = [], MemorySource.gather

    def gather(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            with torch.no_grad():
                model.module.decoder.scale.weight.fill_(float("nan"))
        return plain(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySource, "gather", gather)
        with pytest.warns(RuntimeWarning, match="repeated with half"):
            model.train(**DECAYING)
    assert len(model.history) == 3
    assert changed(before, model) == expected_changes("seeing", "default", before)


def test_numbers_too_small_to_matter_stay_in_frozen_rows(tiny, query):
    """The optimiser clears such numbers every hundred steps in trained rows."""
    trained = trained_on(tiny(), batch_key="batch")
    weights = dict(trained.module.named_parameters())
    with torch.no_grad():
        for entry in ("encoder.linears.0.weight", "decoder.linears.0.weight", "decoder.scale.bias"):
            weights[entry][0] = 1e-36
        weights["encoder.linears.0.weight"][30] = 1e-36  # of b0
    model = mapped(query, trained, freeze_batchnorm_decoder=True)
    before = hashes(model)
    model.train(max_steps=110, batch_size=20, progress=False)
    rows = {"encoder.linears.0.weight": (32, 33), "decoder.linears.0.weight": (5, 6)}
    assert changed(before, model) == {(entry, row) for entry in rows for row in rows[entry]}
    assert (model.module.encoder.linears[0].weight[30] == 1e-36).all()


@pytest.mark.parametrize("flags", [{}, {"unfrozen": True}], ids=["default", "unfrozen"])
def test_the_reference_is_left_as_it_is(reference, query, flags):
    trained = reference("seeing")
    before = hashes(trained)
    mapped(query, trained, **flags).train(**DECAYING)
    assert changed(before, trained) == set()
    assert trained.module.surgery is None
    assert all(p.requires_grad for p in trained.module.parameters())


def test_a_reference_without_covariates_may_be_trained_as_a_whole(tiny):
    free = SCVI.load_query_data(tiny(seed=3), trained_on(tiny()), unfrozen=True)
    before = hashes(free)
    free.train(**DECAYING)
    assert changed(before, free) == set(before)


# ---- how it is trained -------------------------------------------------------


def test_training_lowers_the_loss_of_the_query(reference, query):
    model = mapped(query, reference("seeing"))
    model.train(**SHORT | {"max_steps": 30}, plan_kwargs={"min_kl_weight": 1.0})
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]


@pytest.mark.parametrize(
    ("side", "flag"),
    [("encoder", "freeze_expression"), ("decoder", "freeze_decoder_first_layer")],
)
def test_a_first_step_moves_new_rows_as_if_their_whole_layer_were_trained(
    reference, query, side, flag
):
    """Adam treats each number separately, so the rows must get their own gradients."""
    entry = f"{side}.linears.0.weight"
    rows = list(ARCHITECTURES["seeing"].new[entry])
    moved = []
    for flags in ({}, {flag: False}):
        model = mapped(query, reference("seeing"), **flags)
        before = model.module.state_dict()[entry].clone()
        model.train(**SHORT | {"max_steps": 1, "batch_size": 60}, plan_kwargs={"eps": 0.1})
        moved.append((model.module.state_dict()[entry] - before)[rows])
    assert (moved[0] != 0).any(1).all()
    assert not torch.allclose(moved[0][0], moved[0][1], rtol=1e-2)  # the rows differ
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("flags", "rate"), [({}, 0.1), ({"freeze_dropout": True}, 0.0)])
def test_dropout_is_that_of_the_reference_unless_it_is_frozen(reference, query, flags, rate):
    model = mapped(query, reference("two layers, deep"), **flags)
    assert [a.dropout for a in model.module.encoder.activations] == [rate, rate]
    assert model.config.dropout_rate == rate
    assert reference("two layers, deep").config.dropout_rate == 0.1


def test_unfrozen_leaves_dropout_to_training(reference, query):
    model = mapped(query, reference("seeing"), unfrozen=True, freeze_dropout=True)
    assert model.module.encoder.activations[0].dropout == 0.1


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


@pytest.mark.parametrize("name", ["mapping", "seeing", "linear", "latent library", "gene-batch"])
def test_a_query_of_one_cell_is_mapped(tiny, reference, name):
    query = of_batch(tiny, "x", n_cells=1)
    query.obs["donor"] = "n"
    model = mapped(query, reference(name))
    before = hashes(model)
    model.train(**DECAYING)
    assert ("encoder.linears.0.weight", 33) in changed(before, model)
    assert not {n for n, _ in changed(before, model) if n.split(".")[-1] in STATISTICS}
    assert np.isfinite(model.get_latent_representation()).all()


# ---- nothing to train --------------------------------------------------------


@pytest.mark.parametrize("seeing", [True, False])
def test_a_model_with_nothing_to_train_counts_as_trained(tiny, seeing):
    trained = trained_on(tiny(), options={"encode_covariates": seeing}, batch_key="batch")
    query = of_batch(tiny, "b0", "b1")
    model = SCVI.load_query_data(query, trained, freeze_batchnorm_decoder=True)
    before = hashes(model)
    assert model.is_trained
    assert "knew every category" in model.summary
    latent = model.get_latent_representation()
    np.testing.assert_array_equal(latent, trained.get_latent_representation(query))
    with pytest.warns(VivaceWarning, match="nothing to train"):
        model.train(progress=False)
    assert changed(before, model) == set()
    assert model.is_trained
    assert len(model.history) == 0


def test_a_model_with_nothing_to_train_is_saved_and_loaded(tiny, tmp_path):
    trained = trained_on(tiny(), options={"preset": "mapping"}, batch_key="batch")
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


# ---- one query after another -------------------------------------------------


def test_the_same_query_mapped_again_has_no_new_rows(reference, query):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    again = SCVI.load_query_data(query.copy(), first)
    before = hashes(first)
    assert changed(before, again) == set()
    again.train(**DECAYING)
    assert {name for name, _ in changed(before, again)} == _norm("decoder.activations.0")


def test_a_second_query_trains_no_rows_of_the_first(reference, query, tiny):
    first = mapped(query, reference("seeing"))
    first.train(**DECAYING)
    later = of_batch(tiny, "z", "a8")
    later.obs["donor"] = "m"
    second = SCVI.load_query_data(later, first)
    before = hashes(second)
    second.train(**DECAYING)
    rows = {  # of z after b0 b1 a8 a9, and of m after d0 d1 d2 d00
        (f"{side}.linears.0.weight", row)
        for side, start in (("encoder", 31), ("decoder", 4))
        for row in (start + 4, start + 9)
    }
    assert {at for at in changed(before, second) if ".linears." in at[0]} == rows


# ---- files -------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["default", "freeze_expression", "freeze_batchnorm_decoder"])
@pytest.mark.parametrize("trained_by", [None, "fast", "scvi-tools"])
def test_what_is_frozen_outlives_a_file(reference, query, tmp_path, flags, trained_by):
    steps = DECAYING | {"recipe": trained_by or "fast"}
    model = mapped(query, reference("two layers, deep"), **FLAGS[flags][0])
    if trained_by:
        model.train(**steps)
    model.save(tmp_path / "mapped", save_anndata=True)
    loaded = SCVI.load(tmp_path / "mapped")
    before = hashes(model)
    assert changed(before, loaded) == set()
    assert loaded.module.surgery == model.module.surgery
    assert loaded.is_trained is bool(trained_by)
    loaded.train(**steps)
    assert changed(before, loaded) == expected_changes("two layers, deep", flags, before)
    assert len(loaded.history) == (6 if trained_by else 3)
    if trained_by:
        np.testing.assert_array_equal(loaded.train_indices, model.train_indices)


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
        lambda s: s | {"n_categories": ["three", 2]},
        lambda s: s | {"n_batches": "two"},
        lambda s: s | {"n_batches": 99},
        lambda s: s | {"n_batches": 0},  # rows of the reference would be trained
        lambda s: s | {"n_batches": -1},
        lambda s: s | {"n_batches": 1.5},
        lambda s: s | {"n_batches": True},
        lambda s: s | {"n_labels": "x"},
        lambda s: s | {"unfrozen": 1},
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
        "no known batch",
        "fewer than no batches",
        "batches are a fraction",
        "batches are a boolean",
        "labels are text",
        "flag is a number",
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
