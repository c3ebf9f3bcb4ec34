"""Surgery asks the layers, so it also extends and freezes a decoder that it does not know."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from network_cases import DIMS, G, network
from torch import nn

from vivace.nn import Dimensions, Role, Surgery, freeze_network, grow_weights, trained_parts
from vivace.nn.freeze import trains_encoder
from vivace.nn.layers import BatchNorm, CategoryLinear

SURGERY = {"n_batches": 2, "n_categories": (1, 2), "n_labels": 2}
BEFORE = Dimensions(n_genes=G, n_batches=2, n_categories=(1, 2), n_continuous=2, n_labels=2)
INPUTS = 4 + 2  # latent dimensions and continuous covariates


class NewDecoder(nn.Module):
    """Two parallel maps, which no decoder of vivace has."""

    def __init__(self, one_hot_sizes):
        super().__init__()
        self.left = CategoryLinear(INPUTS, 7, one_hot_sizes, role=Role.DECODER_INPUT)
        self.right = CategoryLinear(INPUTS, 7, one_hot_sizes)
        self.norm = BatchNorm(7, Role.DECODER_NORM)
        self.lone_norm = BatchNorm(7)
        self.out = nn.Linear(7, G)


def query_network(**options):
    net = network(**options)
    net.decoder = NewDecoder(net.one_hot_sizes)
    return net


def get_parts(net, prefix="decoder."):
    return {
        (p.name.removeprefix(prefix), None if p.rows is None else (p.rows.start, p.rows.stop))
        for p in trained_parts(net)
        if p.name.startswith(prefix)
    }


NEW_ROW = (INPUTS + 2, INPUTS + 3)  # of the third batch
NORM = {("norm.weight", None), ("norm.bias", None)}


def test_a_new_decoder_is_frozen_except_for_rows_of_new_categories():
    net = query_network()
    freeze_network(net, Surgery(**SURGERY))
    assert get_parts(net) == NORM | {("left.weight", NEW_ROW), ("right.weight", NEW_ROW)}
    assert not net.decoder.norm.frozen
    assert net.decoder.lone_norm.frozen
    trainable = {n for n, p in net.decoder.named_parameters() if p.requires_grad}
    assert trainable == {"norm.weight", "norm.bias", "left.weight", "right.weight"}


def test_flags_reach_a_new_decoder_by_the_roles_of_its_layers():
    net = query_network()
    flags = {"freeze_decoder_first_layer": False, "freeze_batchnorm_decoder": True}
    freeze_network(net, Surgery(**SURGERY, **flags))
    whole = {("left.weight", None), ("left.bias", None)}
    assert get_parts(net) == whole | {("right.weight", NEW_ROW)}
    assert net.decoder.norm.frozen


def test_a_new_decoder_grows():
    reference, net = network(BEFORE, seed=1), query_network()
    reference.decoder = NewDecoder(reference.one_hot_sizes)
    known = {name: value.clone() for name, value in reference.state_dict().items()}
    grown = grow_weights(known, net, Surgery(**SURGERY))
    for side in ("left", "right"):
        weight, old = grown[f"decoder.{side}.weight"], known[f"decoder.{side}.weight"]
        start = NEW_ROW[0]
        assert torch.equal(weight[:start], old[:start])
        torch.testing.assert_close(weight[start], old[start - 2 : start].mean(0))
        assert torch.equal(weight[start + 1 :], old[start:])
    assert torch.equal(grown["decoder.out.weight"], known["decoder.out.weight"])
    net.load_state_dict(grown)


def test_everything_is_trained_without_surgery_and_unfrozen():
    net = query_network()
    everything = [(name, None) for name, _ in net.named_parameters()]
    assert [(p.name, p.rows) for p in trained_parts(net)] == everything
    freeze_network(net, Surgery(**SURGERY, unfrozen=True, freeze_dropout=True))
    assert [(p.name, p.rows) for p in trained_parts(net)] == everything
    assert not net.decoder.lone_norm.frozen
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_dropout_is_off(frozen, unfrozen):
    net = network(dropout_rate=0.3)
    freeze_network(net, Surgery(**SURGERY, freeze_dropout=frozen, unfrozen=unfrozen))
    assert net.encoder.activations[0].dropout == (0.0 if frozen and not unfrozen else 0.3)


@pytest.mark.parametrize(
    ("options", "flags", "moves"),
    [
        ({}, {}, False),
        ({"encode_covariates": True}, {}, True),
        ({}, {"freeze_expression": False}, True),
        ({}, {"freeze_batchnorm_encoder": False}, True),
        ({"batch_representation": "embedding"}, {}, False),
        ({"batch_representation": "embedding", "encode_covariates": True}, {}, True),
        ({"dispersion": "gene-batch"}, {}, False),
    ],
    ids=str,
)
def test_whether_training_moves_cells(options, flags, moves):
    net = network(**options)
    freeze_network(net, Surgery(**SURGERY, **flags))
    assert trains_encoder(net) is moves


@pytest.mark.parametrize(
    "numbers",
    [{"n_batches": 4}, {"n_categories": (1, 3)}, {"n_categories": (1,)}],
    ids=["batches", "categories", "covariates"],
)
def test_more_categories_than_the_network_has_are_refused(numbers):
    assert DIMS.n_batches == 3
    with pytest.raises(ValueError, match="the reference has"):
        freeze_network(network(), Surgery(**SURGERY | numbers))


def test_the_flags_survive_json():
    names = [f.name for f in fields(Surgery)]
    surgery = Surgery(**SURGERY, freeze_dropout=True)
    section = surgery.as_dict()
    assert list(section) == names
    assert section["n_categories"] == [1, 2]
    assert Surgery.from_dict(section) == surgery
