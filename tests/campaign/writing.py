"""What the parts that interrupt writing share: writers, their targets, and what is complete there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import anndata
import numpy as np

from campaign.outcomes import Child, fork, run_command
from simulated import simulate_cells
from vivace import SCVI
from vivace.errors import VivaceError

WRITERS = ("save", "train", "express", "express zarr", "embed", "de", "map")
_OUTPUTS = {
    "save": "m", "train": "m", "express": "x.h5ad", "express zarr": "x.zarr", "embed": "e.h5ad",
    "de": "de.csv", "map": "q.h5ad",
}  # fmt: skip
Contents = dict[str, Any]


@dataclass(frozen=True)
class Writing:
    """Everything that writes, with the target and what it holds when it is complete.

    Parameters
    ----------
    inputs
        Folder with ``cells.h5ad`` and the model ``model``.
    models
        Two models to save.
    complete
        What each writer's result holds, by writer and version (0 or 1).
    sizes
        Bytes of the largest file of each writer.
    """

    inputs: Path
    models: tuple[SCVI, SCVI]
    complete: dict[tuple[str, int], Contents]
    sizes: dict[str, int]

    @classmethod
    def make(cls, folder: Path) -> Writing:
        """The one of this process; it is made when it is first asked for."""
        if not _MADE:
            _MADE.append(cls._make(folder))
        return _MADE[0]

    @classmethod
    def _make(cls, folder: Path) -> Writing:
        inputs = folder / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        adata = simulate_cells()
        adata.write_h5ad(inputs / "cells.h5ad")
        SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
        models = SCVI(adata, n_hidden=16, n_latent=3), SCVI(adata, n_hidden=8, n_latent=2)
        for model in models:
            model.train(max_epochs=2, seed=1, progress=False)
        models[0].save(inputs / "model", save_anndata=True)
        made = cls(inputs, models, {}, {})
        for writer in WRITERS:
            for version in (0, 1):
                answer = made.start(writer, version, folder / "made").wait(120)
                assert answer == (0, ""), (writer, answer)
                target = folder / "made" / _OUTPUTS[writer]
                made.complete[writer, version] = read_contents(target)
                files = target.rglob("*") if target.is_dir() else [target]
                made.sizes[writer] = max(f.stat().st_size for f in files if f.is_file())
        return made

    def target(self, writer: str, folder: Path) -> Path:
        return folder / _OUTPUTS[writer]

    def left(self, writer: str, folder: Path) -> list[str]:
        """What is in the folder beside the target."""
        target = self.target(writer, folder)
        return [path.name for path in folder.iterdir() if path != target]

    def start(self, writer: str, version: int, folder: Path, **limits: Any) -> Child:
        """A process that writes; its answer is an exit code and what it said in an error."""
        return fork(lambda: self._write(writer, version, folder), folder, **limits)

    def _write(self, writer: str, version: int, folder: Path) -> tuple[int, str]:
        output = self.target(writer, folder)
        if writer == "save":
            try:
                self.models[version].save(output, overwrite=True, save_anndata=True)
            except VivaceError as error:
                return 2, f"vivace: {error}\n"
            return 0, ""
        common = [self.inputs / "cells.h5ad", "-o", output, "--overwrite", "--threads", 1]
        seed = ["--seed", version]
        short = [*seed, "--max-epochs", 2, "--quiet"]
        options = {
            "train": ["--n-hidden", 8, "--n-latent", 2 + version, *short],
            "express": ["--n-samples", 2, "--quiet", *seed],
            "embed": ["--key-added", f"X_{version}"],
            "de": ["--groupby", "cell_type", "--quiet", *seed],
            "map": ["--key-added", f"X_{version}", *short],
        }[command := writer.split()[0]]
        model = [] if command == "train" else [self.inputs / "model"]
        return run_command([command, *model, *common, *options])

    def judge_target(self, writer: str, folder: Path, versions: tuple[int, ...]) -> str:
        """Empty if the target holds one of these versions in full; otherwise what is there."""
        target = self.target(writer, folder)
        if not target.exists():
            return "" if -1 in versions else "nothing is there"
        try:
            contents = read_contents(target)
        except Exception as error:
            return f"cannot be read: {type(error).__name__}: {error}"
        known = [v for v in versions if v >= 0]
        if any(same_contents(contents, self.complete[writer, v]) for v in known):
            return ""
        return f"holds neither of the versions {versions}"

    def put(self, writer: str, version: int, folder: Path) -> None:
        """A complete result, written before the case begins."""
        answer = self.start(writer, version, folder).wait(120)
        assert answer == (0, ""), (writer, answer)


_MADE: list[Writing] = []


@dataclass(frozen=True)
class WritingSetting:
    """What writes."""

    writing: Writing

    @classmethod
    def make(cls, folder: Path) -> Self:
        return cls(Writing.make(folder))

    def begin(self, rng: np.random.Generator, folder: Path) -> tuple[str, bool]:
        """A random writer, and whether there is an earlier result, which is then put there."""
        writer, existed = str(rng.choice(WRITERS)), bool(rng.integers(2))
        if existed:
            self.writing.put(writer, 0, folder)
        return writer, existed


def read_contents(path: Path) -> Contents:
    """Everything in a result, to be compared."""
    if path.suffix == ".csv":
        return {"text": path.read_text()}
    if path.suffix in (".h5ad", ".zarr"):
        adata = (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)
        x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
        return {"X": x, **{f"obsm {k}": np.asarray(v) for k, v in adata.obsm.items()}}
    model = SCVI.load(path)
    cells = model.adata if model.adata is not None else simulate_cells()
    return {"latent": model.get_latent_representation(cells), "data": np.array(model.adata is None)}


def same_contents(one: Contents, other: Contents) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
