"""Folders saved by scvi-tools: read without executing anything, and written back."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from vivace import SCVI, LinearSCVI, model
from vivace.errors import ModelFileError, OptionError, VivaceWarning
from vivace.store.scvi_tools.read import UNUSED, read_scvi_tools

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if (p / "model.pt").exists())


@pytest.fixture
def adata():
    return anndata.read_h5ad(GOLDEN / "adata.h5ad")


def get_contents(folder):
    return torch.load(folder / "model.pt", weights_only=False)  # our own files


@pytest.fixture
def changed(tmp_path):
    """A copy of a golden model with its contents changed by a function."""

    def make(change, name="zinb_no_batch"):
        contents = get_contents(GOLDEN / name)
        change(contents)
        torch.save(contents, tmp_path / "model.pt")
        return tmp_path

    return make


# ---- reading ----------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_constructor_and_setup_are_read(name, adata):
    said = json.loads((GOLDEN / name / "config.json").read_text())
    loaded = model.load(GOLDEN / name, adata)
    assert type(loaded).__name__ == said["class"]
    for option, value in said["constructor"].items():
        assert getattr(loaded.config, option) == value, option
    for key, value in said["setup_anndata"].items():
        result = getattr(loaded.schema.declarations, key)
        assert (list(result) if isinstance(value, list) else result) == value
    assert loaded.is_trained
    assert len(loaded.train_indices) == 270
    assert len(loaded.validation_indices) == 30
    assert "scvi-tools" in loaded.summary


@pytest.mark.parametrize("name", FOLDERS)
def test_the_posterior_is_the_one_that_scvi_tools_computed(name, adata):
    """The rest of the arrays is compared in tests/nn/test_golden.py."""
    expected = np.load(GOLDEN / name / "expected.npz")
    mean, variance = model.load(GOLDEN / name, adata).get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, expected["qz_mean"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, expected["qz_var"], rtol=1e-4, atol=1e-4)


def test_a_model_without_data_answers_about_new_data(adata):
    unloaded = SCVI.load(GOLDEN / "zinb_default")
    assert unloaded.adata is None
    result = unloaded.get_latent_representation(adata[:7].copy())
    expected = SCVI.load(GOLDEN / "zinb_default", adata).get_latent_representation(indices=range(7))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_data_beside_the_model_are_taken(adata, tmp_path):
    (tmp_path / "model.pt").write_bytes((GOLDEN / "zinb_default" / "model.pt").read_bytes())
    adata.write_h5ad(tmp_path / "adata.h5ad")
    assert SCVI.load(tmp_path).adata.n_obs == 300


def test_training_goes_on(adata):
    loaded = SCVI.load(GOLDEN / "zinb_default", adata)
    before = loaded.get_elbo(n_samples=10, seed=0)
    split = loaded.train_indices
    loaded.train(3, progress=False, plan_kwargs={"lr": 1e-3})
    assert np.array_equal(loaded.train_indices, split)
    assert len(loaded.history) == 3
    # weights from the data's moments, as a first training has them, would throw it back
    assert loaded.get_elbo(n_samples=10, seed=0) > before - 0.5


def test_a_history_of_pandas_is_left_alone(changed, adata):
    def add_history(contents):
        frame = pd.DataFrame({"elbo_train": [3.0, 2.0]}, index=pd.Index([0, 1], name="epoch"))
        contents["attr_dict"]["history_"] = {"elbo_train": frame}
        fields = contents["attr_dict"]["registry_"]["field_registries"]
        contents["attr_dict"]["registry_"]["field_registries"] = defaultdict(dict, fields)

    loaded = SCVI.load(changed(add_history), adata)
    assert len(loaded.history) == 0
    assert loaded.is_trained


# ---- what is refused --------------------------------------------------------


class Hostile:
    """Creates a file when called."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["attr_dict", "history"])
def test_a_hostile_pickle_is_named_and_not_run(place, changed, tmp_path, refused):
    trace = tmp_path / "trace"

    def add_code(contents):
        target = contents if place == "attr_dict" else contents["attr_dict"]["history_"]
        target["evil"] = Hostile(trace)

    folder = changed(add_code)
    with refused(ModelFileError, "system", "does not run"):
        SCVI.load(folder)
    assert not trace.exists()
    torch.load(folder / "model.pt", weights_only=False)  # the file is as hostile as it should be
    assert trace.exists()


def reduced(function, arguments, state=None):
    """An object that is unpickled by calling ``function`` and then setting ``state``."""

    class Made:
        def __reduce__(self):
            return (function, arguments) if state is None else (function, arguments, state)

    return Made()


RECONSTRUCT = np.empty(0).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]


def get_array(dtype, data, shape=(1,)):
    return reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


# objects whose pointers would come from the file: NumPy's own unpickling believes it
FORGED = reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
ODD = {
    "pointers from bytes": get_array(FORGED, b"A" * 8),
    "pointers from an honest type": get_array(np.dtype(object), b"A" * 8),
    "bytes that do not fill the shape": get_array(np.dtype("f8"), b"A" * 8, (100,)),
    "a shape that is none": get_array(np.dtype("f8"), b"A" * 8, "wide"),
    "a type that is none": reduced(np.dtype, ("nonsense",)),
    "a record": reduced(np.dtype, ([("a", "i4")],)),
    "odd arguments": reduced(RECONSTRUCT, (1, 2, 3)),
    "an endless scalar": reduced(SCALAR, (np.dtype("f8"), b"")),
    "a dict of a number": reduced(dict, (1,)),
    "much memory": reduced(bytes, (2**46,)),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_allowed_names_with_odd_arguments_are_refused(odd, changed, refused):
    folder = changed(lambda contents: contents.update(var_names=odd))
    with refused(ModelFileError, "model.pt"):
        SCVI.load(folder)


def doubled(kind):
    """A container that holds itself twice, 60 times over: a small file that unfolds into 2**60."""
    value = kind(["a"])
    for _ in range(60):
        value = kind([value, value])
    return value


@pytest.mark.parametrize("kind", [list, tuple], ids=["lists", "tuples"])
@pytest.mark.parametrize("place", ["var_names", "attr_dict", "an array"])
def test_a_small_file_that_unfolds_into_any_size_is_refused(changed, refused, kind, place):
    def change(contents):
        if place == "an array":
            contents["var_names"] = np.empty(1, object)
            contents["var_names"][0] = doubled(kind)
        else:
            contents[place] = {"x": doubled(kind)} if place == "attr_dict" else doubled(kind)

    with refused(ModelFileError, "cannot be read"):
        SCVI.load(changed(change))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path, refused):
    os.mkfifo(tmp_path / "model.pt")
    with refused(ModelFileError, "not a vivace model folder"):
        SCVI.load(tmp_path)


def test_a_list_that_holds_itself_is_refused(changed, refused):
    def change(contents):
        contents["var_names"] = names = ["a"]
        names.append(names)

    with refused(ModelFileError, "cannot be read"):
        SCVI.load(changed(change))


@pytest.mark.parametrize("missing", ["registry_", "init_params_", "is_trained_"])
def test_parts_that_are_none_are_refused_if_needed(missing, changed, refused):
    folder = changed(lambda contents: contents["attr_dict"].update({missing: None}))
    if missing == "is_trained_":
        assert not SCVI.load(folder).is_trained
    else:
        with refused(ModelFileError, "model.pt"):
            SCVI.load(folder)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint32", "float32", ">i4", "bool"])
def test_categories_of_any_type_are_read(dtype, changed):
    values = np.array([0, 1], dtype)

    def typed(contents):
        fields = contents["attr_dict"]["registry_"]["field_registries"]
        fields["batch"]["state_registry"]["categorical_mapping"] = values

    loaded = SCVI.load(changed(typed, "zinb_default"))
    assert list(loaded.schema.batches) == values.tolist()


def test_options_that_are_numpy_numbers_are_read(changed):
    loaded = SCVI.load(changed(set_option("non_kwargs", "n_latent", np.int64(10))))
    assert loaded.config.n_latent == 10


def test_softplus_is_read_by_its_name(changed):
    softplus = torch.nn.functional.softplus

    def set_softplus(contents):
        contents["attr_dict"]["init_params_"]["kwargs"]["kwargs"]["var_activation"] = softplus

    assert SCVI.load(changed(set_softplus)).config.var_activation == "softplus"


def test_options_that_their_linear_model_ignores(changed):
    def set_ignored(contents):
        extra = contents["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"]
        extra.update(use_layer_norm="both", encode_covariates=True)

    loaded = LinearSCVI.load(changed(set_ignored, "linear"))
    assert loaded.config.use_layer_norm == "none"
    assert not loaded.config.encode_covariates


def test_a_prefix_is_named(tmp_path, refused):
    (tmp_path / "my_model.pt").write_bytes((GOLDEN / "linear" / "model.pt").read_bytes())
    with refused(ModelFileError, "my_model.pt", "rename it"):
        LinearSCVI.load(tmp_path)


def test_pandas_code_is_not_run_either(changed, tmp_path, refused):
    """A substitute accepts the arguments of any pandas function that the file names."""

    class Evil:
        def __reduce__(self):
            return pd.read_pickle, (str(tmp_path / "nowhere.pkl"),)

    folder = changed(lambda contents: contents["attr_dict"]["history_"].update(evil=Evil()))
    assert SCVI.load(folder).is_trained
    with pytest.raises(FileNotFoundError):
        torch.load(folder / "model.pt", weights_only=False)


def set_option(group, name, value):
    def change(contents):
        contents["attr_dict"]["init_params_"][group][name] = value

    return change


CHANGES = {
    "no registry": (lambda c: c["attr_dict"].pop("registry_"), "legacy"),
    "the old setup": (
        lambda c: c.update(attr_dict={"scvi_setup_dict_": {}}),
        "scvi_setup_dict_",
    ),
    "no names of genes": (lambda c: c.pop("var_names"), "legacy"),
    "another class": (
        lambda c: c["attr_dict"]["registry_"].update(model_name="TOTALVI"),
        "TOTALVI",
    ),
    "minified": (
        lambda c: c["attr_dict"]["registry_"]["field_registries"].update(latent_qzm={}),
        "minify_adata",
    ),
    "a data module": (
        lambda c: c["attr_dict"]["registry_"].update(setup_method_name="setup_datamodule"),
        "setup_datamodule",
    ),
    "an unknown option": (set_option("non_kwargs", "n_wonders", 3), "n_wonders"),
    "no option at all": (lambda c: c["attr_dict"].pop("init_params_"), "init_params_"),
    "a tensor too few": (lambda c: c["model_state_dict"].pop("px_r"), "px_r"),
    "an unknown column": (
        lambda c: c["attr_dict"]["registry_"]["setup_args"].update(moon_key="phase"),
        "moon_key",
    ),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_read_is_named(change, named, changed, refused):
    with refused(ModelFileError, named):
        SCVI.load(changed(change))


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(kept, tmp_path, refused):
    whole = (GOLDEN / "zinb_no_batch" / "model.pt").read_bytes()
    size = kept if isinstance(kept, int) else int(kept * len(whole))
    (tmp_path / "model.pt").write_bytes(whole[:size])
    with refused(ModelFileError, "model.pt"):
        SCVI.load(tmp_path)


def test_the_wrong_class_is_named(refused):
    with refused(ModelFileError, "LinearSCVI", "SCVI"):
        SCVI.load(GOLDEN / "linear")
    with refused(ModelFileError, "LinearSCVI", "SCVI"):
        LinearSCVI.load(GOLDEN / "zinb_default")


# ---- writing ----------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_written_is_what_was_read(name, adata, tmp_path):
    """Every tensor, used or not, bit for bit; through our own format too."""
    model.load(GOLDEN / name, adata).save(tmp_path / "ours")
    model.load(tmp_path / "ours", adata).save(tmp_path / "theirs", format="scvi-tools")
    expected, result = get_contents(GOLDEN / name), get_contents(tmp_path / "theirs")
    state = result["model_state_dict"]
    assert set(state) == set(expected["model_state_dict"])
    for tensor, value in expected["model_state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert state[tensor].dtype == value.dtype
            assert torch.equal(state[tensor], value), tensor
    assert list(result["var_names"]) == list(expected["var_names"])
    converted, original = (c["attr_dict"]["registry_"] for c in (result, expected))
    assert converted["setup_args"] == original["setup_args"]
    assert converted["field_registries"].keys() == original["field_registries"].keys()
    for field, parts in original["field_registries"].items():
        assert str(converted["field_registries"][field]) == str(parts), field
    assert result["attr_dict"].keys() == expected["attr_dict"].keys()


def test_a_model_of_ours_gets_the_tensors_that_scvi_tools_expects(trained, tmp_path):
    trained.save(tmp_path / "theirs", format="scvi-tools")
    names = set(get_contents(tmp_path / "theirs")["model_state_dict"])
    assert names == set(get_contents(GOLDEN / "zinb_default")["model_state_dict"])
    stored = read_scvi_tools(tmp_path / "theirs")
    for name, value in trained.module.state_dict().items():
        assert torch.equal(stored.weights[name], value), name
    assert UNUSED + "l_encoder.mean_encoder.bias" in stored.weights
    again = SCVI.load(tmp_path / "theirs", trained.adata)
    assert np.array_equal(again.get_latent_representation(), trained.get_latent_representation())
    assert again.get_elbo(seed=0) == trained.get_elbo(seed=0)


def test_data_are_written_in_the_models_order(adata, tmp_path):
    """scvi-tools does not align genes."""
    turned = adata[:, ::-1].copy()
    loaded = SCVI.load(GOLDEN / "zinb_default", turned)
    loaded.save(tmp_path / "theirs", format="scvi-tools", save_anndata=True)
    written = anndata.read_h5ad(tmp_path / "theirs" / "adata.h5ad")
    assert list(written.var_names) == list(get_contents(tmp_path / "theirs")["var_names"])
    again = SCVI.load(tmp_path / "theirs")
    assert np.array_equal(again.get_latent_representation(), loaded.get_latent_representation())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encode_covariates": True, "n_layers": 2},
        {"encode_covariates": True, "use_observed_lib_size": False, "use_batch_norm": "none"},
        {"encode_covariates": True, "batch_representation": "embedding"},
    ],
    ids=lambda options: ", ".join(options) or "default",
)
def test_their_weights_are_for_covariates_in_their_own_unit(options, tiny, tmp_path):
    adata = tiny()
    adata.obs["day"], adata.obs["flat"] = np.arange(60.0) * 100, 7.0
    with pytest.warns(VivaceWarning, match="flat"):
        SCVI.setup_anndata(
            adata, batch_key="batch", continuous_covariate_keys=["day", "flat", "age"]
        )
    ours = SCVI(adata, n_hidden=16, n_latent=3, **options)
    ours.train(5, progress=False)
    ours.save(tmp_path / "m", format="scvi-tools")
    theirs = SCVI.load(tmp_path / "m", adata)
    means = adata.obs[["day", "flat", "age"]].to_numpy(np.float32)
    np.testing.assert_array_equal(theirs._source.continuous, means)
    for question in ("get_latent_representation", "get_normalized_expression"):
        answers = [np.asarray(getattr(model, question)()) for model in (ours, theirs)]
        np.testing.assert_allclose(*answers, rtol=2e-4, atol=2e-5)


def test_values_that_are_not_integers_come_back(tiny, tmp_path):
    data = tiny()
    data.X = data.X * 1.5
    SCVI.setup_anndata(data, allow_non_integer=True)
    fitted = SCVI(data, n_hidden=8, n_latent=2, gene_likelihood="normal")
    fitted.train(1, progress=False)
    fitted.save(tmp_path / "theirs", format="scvi-tools", save_anndata=True)
    again = SCVI.load(tmp_path / "theirs")
    assert np.array_equal(again.get_latent_representation(), fitted.get_latent_representation())


def test_only_a_model_folder_is_overwritten(trained, tmp_path, refused):
    trained.save(tmp_path / "theirs", format="scvi-tools")
    with refused(ModelFileError, "exists"):
        trained.save(tmp_path / "theirs", format="scvi-tools")
    trained.save(tmp_path / "theirs", format="scvi-tools", overwrite=True)
    trained.save(tmp_path / "theirs", overwrite=True)
    assert SCVI.load(tmp_path / "theirs").is_trained


@pytest.mark.parametrize(
    ("cls", "setup", "options", "named"),
    [
        (SCVI, {}, {"var_activation": "softplus"}, "var_activation"),
        (LinearSCVI, {"categorical_covariate_keys": ["donor"]}, {}, "covariates"),
        (LinearSCVI, {"size_factor_key": "depth"}, {}, "size factor"),
        (LinearSCVI, {}, {"encode_covariates": True}, "encode_covariates"),
        (LinearSCVI, {}, {"dispersion": "gene-cell"}, "gene-cell"),
        (LinearSCVI, {"labels_key": "donor"}, {"dispersion": "gene-label"}, "gene-label"),
        (LinearSCVI, {}, {"use_layer_norm": "encoder"}, "use_layer_norm"),
        (LinearSCVI, {}, {"use_batch_norm": "decoder"}, "use_batch_norm"),
    ],
)
def test_what_their_format_cannot_hold_is_refused(
    cls, setup, options, named, tiny, tmp_path, refused
):
    data = tiny()
    cls.setup_anndata(data, batch_key="batch", **setup)
    untrained = cls(data, n_hidden=8, **options)
    with refused(OptionError, "cannot hold", named):
        untrained.save(tmp_path / "theirs", format="scvi-tools")
    assert not (tmp_path / "theirs").exists()


def test_an_unknown_format_is_refused(trained, tmp_path, refused):
    with refused(OptionError, "format", "'onnx'"):
        trained.save(tmp_path / "theirs", format="onnx")
