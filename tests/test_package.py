from __future__ import annotations

import subprocess
import sys

import pytest

import vivace

HEAVY = {"numba", "lightning_fabric", "matplotlib", "sklearn", "typer", "rich", "umap"}


@pytest.mark.parametrize("name", vivace.__all__)
def test_exported_members_are_there(name: str) -> None:
    assert getattr(vivace, name) is not None
    assert name in dir(vivace)


def test_unknown_members_are_refused() -> None:
    with pytest.raises(AttributeError, match="SCVII"):
        _ = vivace.SCVII


@pytest.mark.parametrize("path", ["train.Callback", "transfer.GeneReport"])
def test_names_in_messages_and_docstrings_are_found_before_a_class_is_used(path: str) -> None:
    code = f"import vivace; print(vivace.{path}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == path.split(".")[1]


def test_importing_the_class_leaves_heavy_libraries_alone() -> None:
    # what torch and anndata import themselves does not count
    code = (
        "import sys, torch, anndata; before = set(sys.modules); import vivace; vivace.SCVI; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert "vivace" in new
    assert not new & HEAVY


def test_importing_leaves_the_global_random_state_alone() -> None:
    code = (
        "import torch, anndata, numpy as np; a = torch.get_rng_state(); b = np.random.get_state()[1];"
        "import vivace; x = vivace.datasets.pbmc3k()[:50].copy(); vivace.SCVI.setup_anndata(x);"
        "m = vivace.SCVI(x); m.train(1, progress=False); m.get_elbo();"
        "print(bool((a == torch.get_rng_state()).all() and (b == np.random.get_state()[1]).all()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
