"""How training ended, as saved and as text."""

from __future__ import annotations

import json
from typing import get_args

import pytest

import vivace
from vivace.errors import ModelFileError
from vivace.state import Convergence, Status, verdict


@pytest.mark.parametrize("status", get_args(Status))
def test_every_status_has_a_sentence_and_survives_json(status):
    convergence = Convergence(
        status, epochs=8, best_epoch=6, gain=0.25, gain_epochs=2, level_epoch=4, kl_weight=0.5
    )
    number = {"levelled off": "epoch 4", "best at first": "epoch 6", "converged": "6 epochs"}
    assert number.get(status, "8 ") in convergence.describe()
    assert not convergence.describe().endswith(".")
    saved = json.loads(json.dumps(convergence.as_dict(), allow_nan=False))
    assert Convergence.from_dict(saved) == convergence
    assert verdict({"convergence": saved}) == convergence.describe()


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="unknown training status"):
        Convergence("done", epochs=1)


def test_the_sentence_of_an_older_model_is_shown_as_it_is():
    assert verdict({"verdict": "converged after 3 epochs"}) == "converged after 3 epochs"
    assert verdict({"epochs": 3}) is None


def edit(path, change):
    sections = json.loads((path / "model.json").read_text())
    sections.pop("checksums", None)  # older folders have none
    change(sections["training"]["summary"])
    (path / "model.json").write_text(json.dumps(sections))


def test_a_saved_model_keeps_it_as_plain_values(trained, tmp_path):
    path = tmp_path / "model"
    trained.save(path)
    summary = json.loads((path / "model.json").read_text())["training"]["summary"]
    assert "verdict" not in summary
    sentence = Convergence(**summary["convergence"]).describe()
    assert vivace.SCVI.load(path).summary.endswith(f"verdict: {sentence}")


def test_a_folder_of_an_older_vivace_shows_its_sentence(trained, tmp_path):
    path = tmp_path / "model"
    trained.save(path)
    edit(path, lambda s: (s.pop("convergence"), s.update(verdict="stopped by the budget")))
    assert vivace.SCVI.load(path).summary.endswith("verdict: stopped by the budget")
    edit(path, lambda s: s.pop("verdict"))
    assert "verdict" not in vivace.SCVI.load(path).summary


@pytest.mark.parametrize("broken", [{}, {"status": "done", "epochs": 1}, "converged", None])
def test_a_damaged_convergence_is_refused(trained, tmp_path, broken):
    path = tmp_path / "model"
    trained.save(path)
    edit(path, lambda s: s.update(convergence=broken))
    with pytest.raises(ModelFileError, match="damaged"):
        vivace.SCVI.load(path)
