from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import read_h5ad
from safetensors.torch import load_file, save_file

from vivace import SCVI
from vivace.errors import (
    ModelFileError,
)
from vivace.split import hash_cells
from vivace.store import folder
from vivace.store.folder import StoredModel, read_folder, write_folder

FILES = ["history.csv", "model.json", "weights.safetensors"]


def names_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def get_contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def edit_json(path: Path, change) -> None:
    sections = json.loads((path / "model.json").read_text())
    change(sections)
    (path / "model.json").write_text(json.dumps(sections))


@pytest.fixture
def small() -> StoredModel:
    losses = np.random.default_rng(0).normal(500.0, 100.0, 50)
    history = pd.DataFrame({"elbo_train": losses}, index=pd.RangeIndex(50, name="epoch"))
    sections = {"class": "SCVI", "config": {}, "schema": {}, "training": {}, "seed": {}}
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "steps": torch.tensor(3)}
    return StoredModel(weights, sections, history)


# ---- writing -----------------------------------------------------------------


def test_what_is_written_is_read_back(small, tmp_path):
    write_folder(tmp_path / "model", small, None, overwrite=False)
    back = read_folder(tmp_path / "model")
    assert back.weights.keys() == small.weights.keys()
    for name, weight in small.weights.items():
        assert torch.equal(back.weights[name], weight)
        assert back.weights[name].dtype == weight.dtype
    pd.testing.assert_frame_equal(
        back.history, small.history, check_exact=True, check_index_type=False
    )
    assert small.sections.items() <= back.sections.items()
    assert back.sections["format_version"] == 1
    assert {"vivace", "torch"} <= back.sections["versions"].keys()


def test_the_folder_holds_the_named_files_and_no_pickle(trained, tmp_path):
    trained.save(tmp_path / "model")
    assert names_in(tmp_path) == ["model"]
    assert names_in(tmp_path / "model") == FILES
    trained.save(tmp_path / "data", save_anndata=True)
    assert names_in(tmp_path / "data") == ["adata.h5ad", *FILES]
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    hashes = weights.pop("training.name_hashes").numpy().view(np.uint64)
    np.testing.assert_array_equal(hashes, hash_cells(trained.adata, trained._own_source().library))
    assert weights.keys() == trained.module.state_dict().keys()
    sections = json.loads((tmp_path / "model" / "model.json").read_text())
    assert sections["class"] == "SCVI"
    assert sections["schema"]["genes"] == list(trained.schema.genes)
    assert sections["schema"]["batches"] == ["b0", "b1"]
    history = pd.read_csv(tmp_path / "model" / "history.csv", index_col="epoch")
    assert list(history) == list(trained.history)


def test_folders_above_are_made(small, tmp_path):
    write_folder(tmp_path / "a" / "b" / "model", small, None, overwrite=False)
    assert names_in(tmp_path / "a" / "b") == ["model"]


def test_a_relative_path_is_written(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("model"), small, None, overwrite=False)
    assert names_in(tmp_path) == ["model"]


def fail(*args, **kwargs):
    raise OSError("no space left on device")


def rename_only_to_scratch(path: Path, target: Path) -> Path:
    """A rename that moves the old folder away but fails for the new one."""
    if path.parent.name == "new":
        fail()
    return Path(path.replace(target))


@pytest.mark.parametrize(
    ("place", "name", "broken"),
    [
        (folder, "save_file", fail),
        (pd.DataFrame, "to_csv", fail),
        (Path, "rename", rename_only_to_scratch),
    ],
    ids=["weights", "history", "last step"],
)
@pytest.mark.parametrize("existed", [True, False])
def test_a_failing_save_leaves_what_was_there(
    small, tmp_path, monkeypatch, place, name, broken, existed
):
    path = tmp_path / "model"
    if existed:
        write_folder(path, small, None, overwrite=False)
    before = get_contents(path) if existed else None
    monkeypatch.setattr(place, name, broken)
    monkeypatch.setattr("vivace.store.place._exchange", lambda *_: False)
    other = StoredModel({"a": torch.zeros(1)}, small.sections, small.history)
    with pytest.raises(OSError, match="no space left"):
        write_folder(path, other, None, overwrite=True)
    assert names_in(tmp_path) == (["model"] if existed else [])
    assert (get_contents(path) if existed else None) == before


# ---- overwriting -------------------------------------------------------------


def test_a_model_is_overwritten_only_on_request(trained, saved, refused):
    before = get_contents(saved)
    with refused(ModelFileError, str(saved), "exists", "overwrite=True"):
        trained.save(saved)
    assert get_contents(saved) == before
    trained.save(saved, overwrite=True)
    assert names_in(saved) == FILES
    assert names_in(saved.parent) == ["model"]


def test_a_model_folder_with_files_of_others_is_not_overwritten(trained, saved, refused):
    (saved / "notes.txt").write_text("mine")
    before = get_contents(saved)
    with refused(ModelFileError, str(saved), "holds other files too", "choose another path"):
        trained.save(saved, overwrite=True)
    assert get_contents(saved) == before


def test_data_saved_before_do_not_stay_after_an_overwrite(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    trained.save(tmp_path / "model", overwrite=True)
    assert names_in(tmp_path / "model") == FILES


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_model_is_never_overwritten(trained, tmp_path, refused, kind, overwrite):
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    with refused(ModelFileError, str(path), "choose another path"):
        trained.save(path, overwrite=overwrite)
    kept = path if kind == "file" else path / "chapter.txt"
    assert kept.read_text() == "years of work"


def test_an_empty_folder_may_be_overwritten(trained, tmp_path):
    (tmp_path / "model").mkdir()
    trained.save(tmp_path / "model", overwrite=True)
    assert names_in(tmp_path / "model") == FILES


# ---- reading what is damaged -------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(saved, refused, file, keep):
    whole = (saved / file).read_bytes()
    (saved / file).write_bytes(whole[: int(keep * len(whole))])
    with refused(ModelFileError, str(saved / file), "damaged", "save the model again"):
        SCVI.load(saved)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_other_bytes_is_named(saved, refused, file):
    noise = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8).tobytes()
    (saved / file).write_bytes(noise)
    with refused(ModelFileError, str(saved / file), "damaged"):
        SCVI.load(saved)


def test_a_history_that_lost_whole_lines_is_refused(saved, refused):
    lines = (saved / "history.csv").read_text().splitlines(keepends=True)
    (saved / "history.csv").write_text("".join(lines[:-1]))
    with refused(ModelFileError, "history.csv has 1 epochs of 2"):
        SCVI.load(saved)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(saved, refused, file):
    (saved / file).unlink()
    with refused(ModelFileError, str(saved), file):
        SCVI.load(saved)


def test_a_missing_folder_is_named(tmp_path, refused):
    with refused(ModelFileError, str(tmp_path / "nowhere"), "check the path"):
        SCVI.load(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, refused):
    (tmp_path / "model").write_text("")
    with refused(ModelFileError, str(tmp_path / "model"), "no model folder"):
        SCVI.load(tmp_path / "model")


def test_data_in_the_folder_that_are_damaged_are_named(trained, tmp_path, refused):
    path = tmp_path / "model"
    trained.save(path, save_anndata=True)
    whole = (path / "adata.h5ad").read_bytes()
    (path / "adata.h5ad").write_bytes(whole[: len(whole) // 2])
    with refused(ModelFileError, str(path / "adata.h5ad"), "cut off"):
        SCVI.load(path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(saved, refused, version):
    edit_json(saved, lambda sections: sections.update(format_version=version))
    with refused(ModelFileError, repr(version), "reads 1", "version of vivace that wrote it"):
        SCVI.load(saved)


def test_a_model_of_another_class_is_refused(saved, refused):
    edit_json(saved, lambda sections: sections.update({"class": "LinearSCVI"}))
    with refused(ModelFileError, "a model of class LinearSCVI, not SCVI"):
        SCVI.load(saved)


def test_json_that_is_no_object_is_refused(saved, refused):
    (saved / "model.json").write_text("[1, 2]")
    with refused(ModelFileError, "model.json", "not a JSON object"):
        SCVI.load(saved)


@pytest.mark.parametrize("section", ["class", "config", "schema", "training", "seed"])
def test_a_missing_section_is_named(saved, refused, section):
    edit_json(saved, lambda sections: sections.pop(section))
    with refused(ModelFileError, "model.json", f"no {section}"):
        SCVI.load(saved)


@pytest.mark.parametrize(
    "change",
    {
        "a config entry that does not exist": lambda s: s["config"].update(colour="red"),
        "a config value out of range": lambda s: s["config"].update(n_latent=0),
        "another size": lambda s: s["config"].update(n_latent=7),
        "a likelihood with other weights": lambda s: s["config"].update(gene_likelihood="nb"),
        "config a list": lambda s: s.update(config=[1]),
        "genes fewer than weights": lambda s: s["schema"]["genes"].pop(),
        "schema without genes": lambda s: s["schema"].pop("genes"),
        "schema with more": lambda s: s["schema"].update(colour="red"),
        "schema null": lambda s: s.update(schema=None),
        "no seed": lambda s: s["seed"].pop("root"),
        "a seed below zero": lambda s: s["seed"].update(root=-1),
        "rows that are text": lambda s: s["training"].update(train_rows=["a"]),
        "rows beyond the data": lambda s: s["training"]["train_rows"].append(60),
        "rows below zero": lambda s: s["training"]["validation_rows"].append(-1),
        "training null": lambda s: s.update(training=None),
        "summary a list": lambda s: s["training"].update(summary=[]),
        "summary empty": lambda s: s["training"].update(summary={}),
    }.items(),
    ids=lambda item: item[0],
)
def test_contents_that_do_not_fit_each_other_are_refused(saved, refused, change):
    edit_json(saved, change[1])
    with refused(ModelFileError, str(saved / "model.json"), "damaged", "save the model again"):
        SCVI.load(saved)


def test_weights_of_another_model_are_refused(saved, refused, tiny):
    adata = tiny(60, 12)
    SCVI.setup_anndata(adata)
    SCVI(adata, n_hidden=16, n_latent=3).save(saved.parent / "other")
    (saved.parent / "other" / "weights.safetensors").replace(saved / "weights.safetensors")
    with refused(ModelFileError, "damaged", "the shape of"):
        SCVI.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("encoder.linears.0.weight", float("nan"), "not finite"),
        ("decoder.scale.bias", float("inf"), "not finite"),
        ("encoder.activations.0.batch_norm.running_var", -1.0, "negative variances"),
    ],
)
def test_weights_that_no_training_gives_are_refused(saved, refused, name, value, named):
    weights = load_file(saved / "weights.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, saved / "weights.safetensors")
    with refused(ModelFileError, "damaged", name, named):
        SCVI.load(saved)


@pytest.mark.parametrize("size", ["n_layers", "n_hidden", "n_latent"])
def test_sizes_that_no_machine_holds_are_held_against_the_weights(saved, refused, size):
    edit_json(saved, lambda sections: sections["config"].update({size: 10**9}))
    with refused(ModelFileError, "damaged"):
        SCVI.load(saved)


def test_the_names_of_the_cells_must_be_as_many_as_the_cells(saved, refused):
    weights = load_file(saved / "weights.safetensors")
    weights["training.name_hashes"] = weights["training.name_hashes"][1:]
    save_file(weights, saved / "weights.safetensors")
    with refused(ModelFileError, "damaged", "the names are not those of the data"):
        SCVI.load(saved)


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("folder", "array"), [("folder_069d3a8", "latent"), ("folder_069d3a8_query", "query")]
)
def test_a_folder_of_the_first_release_loads(folder, array):
    adata = read_h5ad(GOLDEN / "adata.h5ad")
    if array == "query":
        adata = adata[:60].copy()
        adata.obs["batch"] = ["new"] * 30 + ["ctrl"] * 30
    model = SCVI.load(GOLDEN / folder, adata)
    expected = np.load(GOLDEN / "folder_069d3a8.npz")[array]
    np.testing.assert_allclose(model.get_latent_representation(), expected, rtol=1e-4, atol=1e-5)
    assert len(model.train_indices) == round(0.9 * adata.n_obs)
    assert len(model.history) == {"latent": 4, "query": 2}[array]
    model.train(max_epochs=1, progress=False)


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json", "history.csv"])
@pytest.mark.parametrize("damage", ["cut in half", "other bytes"])
def test_a_damaged_model_folder_is_refused(saved, refused, file, damage):
    whole = (saved / file).read_bytes()
    (saved / file).write_bytes(
        whole[: len(whole) // 2] if damage == "cut in half" else b"\xff" * len(whole)
    )
    with refused(ModelFileError, str(saved / file), "damaged", "save the model again"):
        SCVI.load(saved)


# ---- odd parts of model.json and history.csv ------------------------------------


ODD_PARTS = {
    "genes that are dicts": lambda j: j["schema"].update(genes=[{"a": 1}] * 30),
    "genes that are numbers": lambda j: j["schema"].update(genes=list(range(30))),
    "categories that are lists": lambda j: j["schema"].update(batches=[["b0"], ["b1"]]),
    "no genes": lambda j: j["schema"].pop("genes"),
    "a summary without seconds": lambda j: j["training"]["summary"].pop("seconds"),
    "a summary without cells": lambda j: j["training"]["summary"].pop("train_cells"),
    "seconds that are text": lambda j: j["training"]["summary"].update(seconds="x"),
    "a summary that is a list": lambda j: j["training"].update(summary=[1]),
    "a huge row number": lambda j: j["training"].update(train_rows=[10**30]),
    "rows that are text": lambda j: j["training"].update(train_rows="abc"),
    "a huge number of layers": lambda j: j["config"].update(n_layers=10**9),
    "a huge layer": lambda j: j["config"].update(n_hidden=10**8),
    "a seed that is text": lambda j: j["seed"].update(root="x"),
    "a schema that is a list": lambda j: j.update(schema=[1]),
    "a config that is text": lambda j: j.update(config="x"),
}


@pytest.mark.parametrize("part", ODD_PARTS)
def test_odd_parts_are_refused_by_the_name_of_the_file(saved, refused, part):
    edit_json(saved, ODD_PARTS[part])
    with refused(ModelFileError, str(saved / "model.json"), "is damaged"):
        SCVI.load(saved)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "\0", '{"format_version": 1}', "null"]
)
def test_json_that_cannot_be_read_is_refused(saved, refused, text):
    (saved / "model.json").write_text(text)
    with refused(ModelFileError, str(saved), "model.json"):
        SCVI.load(saved)


def test_a_history_without_its_columns_is_refused(saved, refused):
    (saved / "history.csv").write_text("epoch,a\n0,1\n1,2\n")
    with refused(ModelFileError, "history.csv has no column 'elbo_train'"):
        SCVI.load(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "history.csv"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(saved, refused, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with refused(ModelFileError, str(saved / name), "not a file"):
        SCVI.load(saved)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_file_of_a_model_in_place_of_its_folder(saved, refused, name):
    with refused(ModelFileError, str(saved / name), "is a file", "the folder that holds it"):
        SCVI.load(saved / name)


# ---- folders that can be read, but are not as they were saved ----------------------------


def change_a_weight(path):
    weights = load_file(path / "weights.safetensors")
    next(t for t in weights.values() if t.is_floating_point()).view(-1)[0] += 1e-6
    save_file(weights, path / "weights.safetensors")


def change_a_loss(path):
    lines = (path / "history.csv").read_text().splitlines(keepends=True)
    epoch, loss, rest = lines[1].split(",", 2)
    lines[1] = f"{epoch},{float(loss) + 1e-6!r},{rest}"
    (path / "history.csv").write_text("".join(lines))


CHANGES = {
    "weights.safetensors": change_a_weight,
    "history.csv": change_a_loss,
    "model.json": lambda path: edit_json(path, lambda s: s["config"].update(dropout_rate=0.2)),
}


@pytest.mark.parametrize("file", CHANGES)
def test_a_file_that_is_not_as_it_was_saved_is_named(saved, refused, file):
    CHANGES[file](saved)
    with refused(ModelFileError, str(saved / file), "not as it was saved", "'checksums'"):
        SCVI.load(saved)
    edit_json(saved, lambda sections: sections.pop("checksums"))  # as the message says
    SCVI.load(saved)


@pytest.mark.parametrize("sums", [None, [], {}, {"model.json": 1}, "zzz"])
def test_odd_checksums_are_refused_or_none(saved, refused, sums):
    edit_json(saved, lambda sections: sections.update(checksums=sums))
    if sums is None:
        SCVI.load(saved)
        return
    with refused(ModelFileError, "model.json", "not as it was saved"):
        SCVI.load(saved)


def test_white_space_of_the_json_does_not_matter(saved):
    edit_json(saved, lambda sections: None)  # writes it without line breaks
    SCVI.load(saved)


def test_data_in_the_folder_that_are_no_counts_any_more_are_named(trained, tmp_path, refused):
    path = tmp_path / "model"
    trained.save(path, save_anndata=True)
    with h5py.File(path / "adata.h5ad", "r+") as file:
        file["X/data"][3] = 0.5
    with refused(ModelFileError, str(path / "adata.h5ad"), "is damaged", "0.5"):
        SCVI.load(path)
