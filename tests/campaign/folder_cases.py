"""Damaged and edited model folders: one sentence, or the model that was saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from campaign.outcomes import Outcome, isolated
from model_answers import get_answers
from simulated import simulate_cells
from vivace import SCVI
from vivace.errors import ModelFileError, VivaceError

Rng = np.random.Generator
_FILES = ["weights.safetensors", "model.json", "history.csv", "adata.h5ad"]
_MEMORY = 256 << 20  # bytes; the model is tiny
_ODD: list[Any] = [None, True, -1, 0, 1, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "zzz", "z" * 10**5,
                   [], {}, [[]], [None], {"a": 1}, [1, 2, 3], "0", 0.5, [{}] * 3]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """The folder of a query's model with its data, and what the model answers."""

    saved: Path
    answers: dict[str, np.ndarray]

    @classmethod
    def make(cls, folder: Path) -> Setting:
        adata = simulate_cells()
        SCVI.setup_anndata(
            adata, batch_key="batch", labels_key="cell_type",
            categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"],
        )  # fmt: skip
        reference = SCVI(adata, n_hidden=8, n_latent=2)
        reference.train(max_epochs=2, progress=False)
        model = SCVI.load_query_data(simulate_cells(20, seed=1), reference)
        model.train(max_epochs=2, progress=False)
        model.save(folder / "saved", save_anndata=True, overwrite=True)
        return cls(folder / "saved", get_answers(model))

    def run(self, rng: Rng, folder: Path) -> Outcome:
        change = [_flip, _cut, _edit_json, _edit_json, _edit_history, _edit_weights][
            rng.integers(6)
        ]
        place = folder / "model"
        shutil.copytree(self.saved, place)
        tried = f"{change.__name__[1:]} {change(rng, place)}"

        def case() -> Outcome:
            try:
                model = SCVI.load(place)
            except VivaceError as error:
                if not isinstance(error, ModelFileError):
                    return Outcome("raw", f"{tried}: {type(error).__name__}: {error}")
                raise
            repr(model), str(model.summary), model.history
            answers = get_answers(model)
            for name, expected in self.answers.items():
                if not np.isfinite(answers[name]).all():
                    return Outcome("silent", f"{tried}: {name} is not finite")
                # the data have no checksum: a count may have become another
                if "adata.h5ad" not in tried and not np.array_equal(answers[name], expected):
                    return Outcome("silent", f"{tried}: {name} differs")
            model.train(max_epochs=1, progress=False)
            model.save(folder / "again")
            return Outcome("right")

        return isolated(case, folder, tried, memory=_MEMORY)


def _flip(rng: Rng, place: Path) -> str:
    """Bits of one file."""
    path = place / str(rng.choice(_FILES))
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 10, 1000])):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path.name


def _cut(rng: Rng, place: Path) -> str:
    path = place / str(rng.choice(_FILES))
    size = int(rng.integers(path.stat().st_size))
    path.write_bytes(path.read_bytes()[:size])
    return f"{path.name} to {size} bytes"


def _places(parts: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(parts, dict | list):
        for key in parts if isinstance(parts, dict) else range(min(3, len(parts))):
            yield (*above, key)
            yield from _places(parts[key], (*above, key))


def _edit_json(rng: Rng, place: Path) -> str:
    """One key of model.json, with another value or none."""
    path = place / "model.json"
    sections = json.loads(path.read_text())
    where = list(_places(sections))
    keys = where[rng.integers(len(where))]
    parts = sections
    for key in keys[:-1]:
        parts = parts[key]
    value = _ODD[rng.integers(len(_ODD))]
    if rng.random() < 0.1:
        del parts[keys[-1]]
        value = "(deleted)"
    else:
        parts[keys[-1]] = value
    path.write_text(json.dumps(sections, indent=1))
    return f"{'.'.join(map(str, keys))} = {str(value)[:20]!r}"


def _edit_history(rng: Rng, place: Path) -> str:
    """One cell of history.csv."""
    path = place / "history.csv"
    table = [line.split(",") for line in path.read_text().splitlines()]
    row, column = int(rng.integers(len(table))), int(rng.integers(len(table[0])))
    value = str(_ODD[rng.integers(len(_ODD))])
    table[row][column] = value
    path.write_text("".join(",".join(line) + "\n" for line in table))
    return f"row {row}, column {column} = {value[:20]!r}"


def _edit_weights(rng: Rng, place: Path) -> str:
    """One tensor: another shape, type or number, or none."""
    path = place / "weights.safetensors"
    tensors = load_file(path)
    name = str(rng.choice(sorted(tensors)))
    tensor, what = tensors[name], int(rng.integers(6))
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[name] = tensor.new_zeros((*tensor.shape, 2))
    elif what == 2:
        tensors[name] = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int32)
    elif what == 3:
        tensors["more"] = torch.zeros(3)
    else:
        value = [float("nan"), float("inf"), -1e30, 1e30][rng.integers(4)]
        flat = tensor.flatten().clone()
        if flat.is_floating_point():
            flat[rng.integers(len(flat))] = value
        else:
            flat += 1
        tensors[name] = flat.reshape(tensor.shape)
    save_file(tensors, path)
    return f"{name} in way {what}"
