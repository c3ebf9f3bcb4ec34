"""Data flows one way: no room imports anything above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vivace

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
    ["train", "store", "report"],
    ["questions"],
    ["de", "transfer", "pl"],
    ["model"],
    ["demo"],
    ["cli"],
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}


def room_of(path: Path) -> str:
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
    room = room_of(path)
    if room == "__init__":
        return
    above = {r for r in imported_rooms(path) - {room} if FLOOR[r] >= FLOOR[room]}
    assert not above, f"{room} imports {above}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(p) for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)
