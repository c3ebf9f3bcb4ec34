"""Imports go one way: no room imports anything above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vivace
from source_tree import SourceTree

SOURCE = Path(vivace.__file__).parent
# From the bottom to the top; rooms on one line may not import each other.
FLOORS = [
    ["errors", "types"],
    ["seeds", "config", "validate", "distributions"],
    ["ops"],
    ["progress"],
    ["data", "datasets"],
    ["nn"],
    ["state"],
    ["cells", "summary"],
    ["core"],
    ["train", "store", "pl"],
    ["questions"],
    ["de", "transfer", "report"],
    ["model"],
    ["demo"],
    ["cli"],
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}


def get_room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "vivace":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vivace.")
            }
    return rooms


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = get_room(path)
    if room == "__init__":
        return
    above = {r for r in imported_rooms(path) - {room} if FLOOR[r] >= FLOOR[room]}
    assert not above, f"{room} imports {above}"


def test_every_room_has_a_floor() -> None:
    rooms = {get_room(p) for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


# What a user should be able to run without, or without waiting for: ``import vivace; vivace.SCVI``
# leaves these alone (test_package.py). All else is imported at the top of the file.
IMPORTED_LATE = {
    "sklearn",  # extras de, transfer, plot
    "matplotlib",  # extra plot
    "sparse",  # extra samples
    "zarr",  # extra zarr
    "lightning_fabric",  # a second; only training on other devices or with loggers needs it
    "rich",  # only those who see a progress bar
    "typer",  # only the command line
    "torch",  # config.py: ``vivace.settings`` does not wait for it
    "scipy",  # distributions/quantile.py: scipy.stats takes a second, and small counts need none
}
# the command line imports models when a command runs: help does not wait for torch
WAITS_FOR_NOTHING = "vivace/cli.py"
TREE = SourceTree(SOURCE)


def shown(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


def test_no_imports_in_a_circle() -> None:
    circle = TREE.circle()
    assert not circle, shown(circle)


def test_a_class_has_at_most_one_ancestor_of_our_own() -> None:
    # errors.py is a tree on purpose: callers catch a whole kind. Protocols hold no behaviour, and
    # torch's, NumPy's and Python's classes are not ours, so neither counts as an ancestor.
    tall = TREE.tall_classes(most=1, except_in={"vivace.errors"})
    assert not tall, shown(tall)


def test_no_file_name_occurs_twice() -> None:
    # an operation's folder holds the same three files as every other's
    repeated = TREE.repeated_stems(allowed={"__init__", "reference", "cpu", "gpu"})
    assert not repeated, shown(repeated)


def test_functions_import_only_extras_and_kernels() -> None:
    late = [at for at in TREE.late_imports(IMPORTED_LATE) if not at.startswith(WAITS_FOR_NOTHING)]
    assert not late, shown(late)


def package(folder: Path, files: dict[str, str]) -> SourceTree:
    """A package named ``house`` with these files."""
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return SourceTree(folder / "house")


@pytest.mark.parametrize(
    ("a", "circular"),
    [
        ("from house.b import x\n", True),
        ("from .b import x\n", True),
        ("from house import b\n", True),
        ("import house.b\n", True),
        ("if True:\n    from house.b import x\n", True),
        ("class A:\n    from house.b import x\n", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import x\n", False),
        ("def f():\n    from house.b import x\n", False),
    ],
)
def test_a_circle_is_seen(tmp_path: Path, a: str, circular: bool) -> None:
    tree = package(tmp_path, {"__init__.py": "", "a.py": a, "b.py": "import os\nimport house.a\n"})
    circle = tree.circle()
    assert bool(circle) is circular
    if circular:
        assert "house/b.py:2 imports house.a" in circle
        assert len(circle) == 2


def test_a_tall_class_is_seen(tmp_path: Path) -> None:
    tree = package(
        tmp_path,
        {
            "__init__.py": "from house.a import A\n",
            "a.py": (
                "from typing import Protocol\nclass P(Protocol): ...\n"
                "class A(P, dict[str, int]): ...\nclass B(A): ...\n"
            ),
            "b.py": "import house\nfrom . import a as other\nclass C(other.B): ...\nclass D(house.A): ...\n",
        },
    )
    assert tree.tall_classes(1, set()) == ["house/b.py:3 C inherits from a.B, a.A"]
    assert tree.tall_classes(1, {"house.b"}) == []


def test_a_repeated_name_is_seen(tmp_path: Path) -> None:
    files = ["x/__init__.py", "x/cpu.py", "x/one.py", "y/__init__.py", "y/cpu.py", "y/one.py"]
    tree = package(tmp_path, dict.fromkeys(files, ""))
    repeated = tree.repeated_stems({"__init__", "cpu"})
    assert repeated == ["house/x/one.py:1 named one", "house/y/one.py:1 named one"]


def test_a_late_import_is_seen(tmp_path: Path) -> None:
    tree = package(
        tmp_path,
        {
            "kernel.py": "import numba\n",
            "notice.py": "from house import kernel\n",
            "plain.py": "",
            "user.py": (
                "def f():\n    import zarr.storage\n    from house.notice import x\n"
                "    from house import kernel, plain\n    import json\n"
            ),
        },
    )
    assert tree.late_imports({"zarr"}) == [
        "house/user.py:4 from house import plain",
        "house/user.py:5 import json",
    ]
