"""A network's numbers in flat buffers, and copies of them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vivace
from vivace.config import ModelConfig
from vivace.nn import VAE, Dimensions, Surgery, freeze_network, trained_parts
from vivace.train import Callback
from vivace.train.checkpoint import Checkpoints
from vivace.train.flat import FlatWeights, flat_weights

DIMS = Dimensions(7, n_batches=3)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VAE(ModelConfig(n_hidden=5, n_latent=2, encode_covariates=True), DIMS)


def clones(network):
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def assert_same(network, before):
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in after.items())


def test_tensors_keep_their_values_and_identity(network):
    before, parameters = clones(network), list(network.parameters())
    weights = FlatWeights(network)
    assert_same(network, before)
    assert all(p is q for p, q in zip(network.parameters(), parameters, strict=True))
    weights.release()
    assert_same(network, before)


def test_tensors_are_aligned_views_of_the_buffers(network):
    weights = FlatWeights(network)
    buffers = {torch.float32: weights.values, torch.int64: weights.counters}
    for tensor in network.state_dict().values():
        assert tensor.untyped_storage().data_ptr() == buffers[tensor.dtype].data_ptr()
        if tensor.is_floating_point():
            assert (tensor.data_ptr() - weights.values.data_ptr()) % 64 == 0
    for parameter, gradient in weights.gradient_views():
        assert gradient.shape == parameter.shape
        assert gradient.data_ptr() - weights.gradients.data_ptr() == (
            parameter.data_ptr() - weights.values.data_ptr()
        )


def test_afterwards_every_tensor_has_its_own_memory(network):
    with flat_weights(network):
        pass
    places = [t.untyped_storage().data_ptr() for t in network.state_dict().values()]
    assert len(set(places)) == len(places)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in network.state_dict().values())


def test_matrices_come_first(network):
    weights = FlatWeights(network)
    kinds = [s.is_matrix for s in weights.stretches]
    assert kinds == sorted(kinds, reverse=True)
    starts = [s.start for s in weights.stretches]
    assert starts == sorted(starts)
    named = {p: name for name, p in network.named_parameters()}
    assert {named[s.parameter] for s in weights.stretches if s.is_matrix} == {
        name for name, p in network.named_parameters() if p.ndim == 2
    }


def test_a_table_of_dispersions_is_no_matrix():
    network = VAE(ModelConfig(n_hidden=5, n_latent=2, dispersion="gene-batch"), DIMS)
    (table,) = [s for s in FlatWeights(network).stretches if s.parameter is network.log_theta]
    assert not table.is_matrix


def test_stretches_are_the_trained_rows(network):
    freeze_network(network, Surgery(n_batches=2, n_categories=(), n_labels=1))
    weights = FlatWeights(network)
    before = clones(network)
    for stretch in weights.stretches:
        weights.values[stretch.start : stretch.stop] = 9.0
    trained = {}
    for part in trained_parts(network):
        mask = trained.setdefault(part.name, torch.zeros(part.parameter.shape, dtype=torch.bool))
        mask[slice(None) if part.rows is None else part.rows] = True
    assert any(part.rows is not None for part in trained_parts(network))
    for name, tensor in network.state_dict().items():
        mask = trained.get(name, torch.zeros(tensor.shape, dtype=torch.bool))
        assert (tensor[mask] == 9.0).all()
        assert torch.equal(tensor[~mask], before[name][~mask])


def test_frozen_parameters_have_no_gradients(network):
    network.decoder.requires_grad_(False)
    weights = FlatWeights(network)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for p, _ in weights.gradient_views()} == trained
    assert {id(s.parameter) for s in weights.stretches} == trained


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_found_anywhere(network, bad):
    weights = FlatWeights(network)
    assert weights.all_finite()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            value = tensor.flatten()[-1].item()
            tensor.view(-1)[-1] = bad
            assert not weights.all_finite()
            tensor.view(-1)[-1] = value
    assert weights.all_finite()


def test_flat_networks_can_be_copied_pickled_loaded_and_saved(network, tmp_path):
    before = clones(network)
    weights = FlatWeights(network)
    copied, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    save_file(dict(network.state_dict()), tmp_path / "weights")
    weights.values.zero_()
    assert_same(copied, before)
    assert_same(pickled, before)
    network.load_state_dict(load_file(tmp_path / "weights"))
    assert_same(network, before)
    assert weights.values.any()
    network.to("cpu").float()
    weights.values.zero_()
    assert not network.decoder.scale.weight.any()


# ---- copies --------------------------------------------------------------------


def change(network, value):
    for tensor in network.state_dict().values():
        tensor.fill_(value)


def values(network):
    (value,) = {v for t in network.state_dict().values() for v in t.flatten().tolist()}
    return value


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_network_goes_back_to_the_best_copy_or_to_the_last(network, keep_best):
    change(network, 1)
    checkpoints = Checkpoints(FlatWeights(network), keep_best=keep_best)
    change(network, 2)
    checkpoints.restore_last()
    assert values(network) == 1
    for value in (3, 4, 5):
        change(network, value)
        checkpoints.save()
        if value == 4:
            checkpoints.mark_best()
    change(network, 6)
    checkpoints.restore_interrupted()
    assert values(network) == (4 if keep_best else 5)
    change(network, 6)
    checkpoints.restore_best()
    assert values(network) == (4 if keep_best else 6)


def test_the_last_epoch_needs_no_restoring_if_it_is_the_best(network):
    """Changes that a callback made to the weights afterwards are kept."""
    change(network, 1)
    checkpoints = Checkpoints(FlatWeights(network), keep_best=True)
    checkpoints.save()
    checkpoints.mark_best()
    change(network, 2)
    checkpoints.restore_best()
    assert values(network) == 2


# ---- a model, during training and afterwards -------------------------------------


def test_a_model_can_be_copied_and_pickled_in_a_callback_and_trained_again(tiny):
    adata = tiny()
    vivace.SCVI.setup_anndata(adata)
    model = vivace.SCVI(adata, n_hidden=8, n_latent=2)
    latents = []

    class Copy(Callback):
        def on_epoch_end(self, model, row):
            own = model.get_latent_representation()
            for module in (
                copy.deepcopy(model.module),
                pickle.loads(pickle.dumps(model.module)),
            ):
                model.module, module = module, model.module
                latents.append(np.array_equal(model.get_latent_representation(), own))
                model.module = module

    model.train(2, callbacks=Copy(), progress=False)
    model.train(1, progress=False)
    assert latents == [True] * 4
    assert len(model.history) == 3
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in model.module.state_dict().values())
