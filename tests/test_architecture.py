"""Imports go one way: no room imports anything above it."""

from __future__ import annotations

from pathlib import Path

import pytest

import vivace
from source_tree import SourceTree

SOURCE = Path(vivace.__file__).parent
# From the bottom to the top; rooms on one line may not import each other.
FLOORS = [
    ["errors", "session", "types"],
    ["seeds", "config", "validate", "selection", "distributions"],
    ["ops"],
    ["progress"],
    ["data", "datasets"],
    ["nn"],
    ["state"],
    ["cells", "summary", "split"],
    ["core"],
    ["train", "store", "pl"],
    ["questions"],
    ["de", "transfer", "report"],
    ["model"],
    ["demo"],
    ["cli"],
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}


TREE = SourceTree(SOURCE)


def get_room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("module", sorted(set(TREE.modules) - {"vivace"}))
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    room = get_room(module)
    floors = {"": len(FLOORS)} | FLOOR  # the package itself is above every room
    above = {r for r in TREE.imported_rooms(module) if r != room and floors[r] >= floors[room]}
    assert not above, f"{room} imports {above}"


def test_every_room_has_a_floor() -> None:
    rooms = {get_room(module) for module in TREE.modules} - {""}
    assert rooms == set(FLOOR)


# What a user should be able to run without, or without waiting for: ``import vivace; vivace.SCVI``
# leaves these alone (test_package.py). All else is imported at the top of the file.
IMPORTED_LATE = {
    # extras
    "sklearn": {
        "vivace/de/samples.py",
        "vivace/de/thresholds.py",
        "vivace/pl/overview_figure.py",
        "vivace/transfer/classifiers.py",
        "vivace/transfer/neighbours.py",
    },
    "matplotlib": {
        "vivace/pl/canvas.py",
        "vivace/pl/check_figure.py",
        "vivace/pl/overview_figure.py",
    },
    "sparse": {"vivace/questions/sample.py"},
    "zarr": {"vivace/store/arrays.py", "vivace/store/anndata_read.py"},
    # a second; only training on other devices or with loggers needs it
    "lightning_fabric": {"vivace/train/step/autograd.py"},
    # ``vivace.settings`` does not wait for torch
    "torch": {"vivace/config.py"},
    # scipy.stats takes a second, and small counts need none
    "scipy": {"vivace/distributions/quantile.py"},
}
# the command line imports models when a command runs: help does not wait for torch
WAITS_FOR_NOTHING = "vivace/cli/commands.py"


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


def test_no_name_of_a_file_or_folder_occurs_twice() -> None:
    # an operation's folder holds the same three files as every other's
    repeated = TREE.repeated_names(dict.fromkeys(["reference", "cpu", "gpu"], "vivace/ops"))
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
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import x\n", True),
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


def test_an_alias_of_an_ancestor_is_seen(tmp_path: Path) -> None:
    tree = package(
        tmp_path,
        {
            "__init__.py": "",
            "a.py": "class A: ...\nclass B(A): ...\nBase = B\nclass C(Base): ...\n",
        },
    )
    assert tree.tall_classes(1, set()) == ["house/a.py:4 C inherits from a.B, a.A"]


def test_a_repeated_name_is_seen(tmp_path: Path) -> None:
    files = ["x/__init__.py", "x/cpu.py", "x/one.py", "y/__init__.py", "y/cpu.py", "y/one.py"]
    files += ["cpu.py", "z/x.py", "z/y/__init__.py"]
    tree = package(tmp_path, dict.fromkeys(files, ""))
    assert tree.repeated_names({"cpu": "house"}) == [
        "house/x/__init__.py:1 named x",
        "house/z/x.py:1 named x",
        "house/x/one.py:1 named one",
        "house/y/one.py:1 named one",
        "house/y/__init__.py:1 named y",
        "house/z/y/__init__.py:1 named y",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "from ..upper.b import x\n",
        "def f():\n    from ..upper import b\n",
        "def f():\n    import_module('house.upper.b')\n",
        "if TYPE_CHECKING:\n    import house.upper.b\n",
    ],
)
def test_an_imported_room_is_seen(tmp_path: Path, text: str) -> None:
    tree = package(
        tmp_path,
        {
            "__init__.py": "",
            "upper/__init__.py": "",
            "upper/b.py": "",
            "lower/__init__.py": "",
            "lower/a.py": text + "from house.lower import c\nimport house\n",
            "lower/c.py": "",
        },
    )
    assert set(tree.imported_rooms("house.lower.a")) == {"upper", "lower", ""}


def test_a_late_import_is_seen(tmp_path: Path) -> None:
    tree = package(
        tmp_path,
        {
            "kernel.py": "import numba\n",
            "notice.py": "from house import kernel\n",
            "plain.py": "",
            "other.py": "def f():\n    import zarr\n",
            "user.py": (
                "def f():\n    import zarr.storage\n    from house.notice import x\n"
                "    from house import kernel, plain\n    import json\n"
                "    import_module('house.plain')\n"
            ),
        },
    )
    assert tree.late_imports({"zarr": {"house/user.py"}}) == [
        "house/other.py:2 import zarr",
        "house/user.py:4 from house import plain",
        "house/user.py:5 import json",
        "house/user.py:6 import house.plain",
    ]
