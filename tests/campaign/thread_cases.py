"""Several threads: each gets what it would get alone, or one sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from campaign.outcomes import Outcome, check_sentence, isolated
from simulated import simulate_cells
from vivace import SCVI
from vivace.errors import VivaceError


def _make(seed: int) -> Any:
    adata = simulate_cells(seed=seed)
    SCVI.setup_anndata(adata, batch_key="batch")
    network = SCVI(adata, n_hidden=8, n_latent=2).module
    return np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])


def _train(seed: int) -> Any:
    adata = simulate_cells(seed=seed)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=2, seed=seed, progress=False)
    return model.get_latent_representation()


@dataclass(frozen=True)
class Setting:
    """A shared trained model."""

    model: SCVI

    @classmethod
    def make(cls, folder: Path) -> Setting:
        adata = simulate_cells()
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata, n_hidden=16, n_latent=3)
        model.train(max_epochs=2, seed=1, progress=False)
        return cls(model)

    def run(self, rng: np.random.Generator, folder: Path) -> Outcome:
        model, n = self.model, int(rng.integers(2, 6))
        tasks: dict[str, Callable[[int], Any]] = {
            "make": _make,
            "train": _train,
            "latent": lambda seed: model.get_latent_representation(give_mean=False, seed=seed),
            "elbo": lambda seed: model.get_elbo(return_mean=False, seed=seed),
            "sample": lambda seed: model.posterior_predictive_sample(seed=seed).toarray(),
            "expression": lambda seed: model.get_normalized_expression(
                n_samples=2, seed=seed, return_numpy=True
            ),
            "save": lambda seed: model.save(folder / f"model{seed}"),
        }
        names = [str(name) for name in rng.choice(list(tasks), n)]
        tried = f"{names} in {n} threads"

        def case() -> Outcome:
            state = torch.random.get_rng_state()
            alone = [tasks[name](i + 10) for i, name in enumerate(names) if name != "save"]
            barrier = threading.Barrier(n)

            def work(i: int, name: str) -> Any:
                barrier.wait()
                return tasks[name](i + 10)

            with ThreadPoolExecutor(n) as pool:
                together = list(pool.map(work, range(n), names))
            together = [a for a, name in zip(together, names, strict=True) if name != "save"]
            if not all(map(np.array_equal, alone, together)):
                return Outcome("silent", f"{tried}: other answers than alone")
            if not torch.equal(state, torch.random.get_rng_state()):
                return Outcome("silent", f"{tried}: the random state of torch changed")
            return Outcome("right")

        def train_one() -> Outcome:
            """All threads train the same model."""

            def work(_: int) -> Outcome:
                try:
                    model.train(max_epochs=3, progress=False)
                except VivaceError as error:
                    return check_sentence(str(error), "training in threads")
                return Outcome("right")

            before = len(model.history)
            with ThreadPoolExecutor(n) as pool:
                outcomes = list(pool.map(work, range(n)))
            done = sum(o.kind == "right" for o in outcomes)
            if not done or len(model.history) != before + 3 * done:
                return Outcome("silent", f"{done} trainings, {len(model.history)} epochs")
            worst = next((o for o in outcomes if o.kind == "raw"), None)
            return worst or next((o for o in outcomes if o.kind == "sentence"), Outcome("right"))

        if rng.random() < 0.2:
            return isolated(train_one, folder, f"{n} threads train one model")
        return isolated(case, folder, tried)
