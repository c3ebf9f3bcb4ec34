"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vivace

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    adata = vivace.datasets.pbmc3k()[:300].copy()
    adata.obs["donor"] = ["a", "b", "c"] * 100
    adata.write_h5ad("cells.h5ad")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["adata"].obsm["X_scVI"].shape == (300, 10)  # type: ignore[attr-defined]
    assert (tmp_path / "model" / "weights.safetensors").is_file()
