"""The law of imports: every import runs down the list, and rooms are entered by their door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "gateway"

# From the top of the house to its ground; a line may import any line below it. One line, one step.
STEPS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("server", "report", "client"),
    ("sidedoor",),
    ("frontdoor",),
    ("app",),
    ("api",),
    ("engine",),
    ("lists",),
    ("dispatch",),
    ("exchange",),
    ("journey",),
    ("catalog",),
    ("instances",),
    ("upstream", "cache"),
    ("routing",),
    ("dialects",),
    ("wire", "metrics", "log", "block"),
    ("config",),
    ("call", "meters", "outlet"),
    ("errors", "offload"),
)
BESIDE = {"simulator": {"wire"}, "": set[str]()}  # the simulator stands beside the house; "" is the version
LEVEL = {room: level for level, rooms in enumerate(STEPS) for room in rooms}


def modules() -> list[Path]:
    return sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(HOUSE).parts[0]
    return first.removesuffix(".py").removesuffix("__init__")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module if node.module != "gateway" else "gateway"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    names = {name for name in imported(path) if name == "gateway" or name.startswith("gateway.")}
    return {name.split(".")[1] if "." in name else "" for name in names} - {room_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_run_down_only(path: Path) -> None:
    room = room_of(path)
    if room in BESIDE:
        assert rooms_imported(path) <= BESIDE[room]
        return
    for other in rooms_imported(path) - {""}:
        allowed = other == "simulator" and room == "cli"
        assert allowed or LEVEL[other] > LEVEL[room], f"{room} may not import {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HOUSE)))
def test_httpx_is_imported_in_one_module(path: Path) -> None:
    if path.relative_to(HOUSE) != Path("upstream/transport.py"):
        assert not any(name.split(".")[0] == "httpx" for name in imported(path))


def test_every_room_is_on_the_list() -> None:
    assert {room_of(path) for path in modules()} <= set(LEVEL) | set(BESIDE)


def test_rooms_have_at_most_nine_files_and_one_level() -> None:
    for room in (path for path in HOUSE.iterdir() if path.is_dir() and path.name[0] not in "._"):
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 9, f"{room.name} has {len(files)} files"
        assert not [path for path in room.iterdir() if path.is_dir() and path.name[0] not in "._"]


def test_a_room_is_entered_by_its_door() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if path.is_dir()} - {"api"}
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "gateway" and len(parts) > 2 and parts[1] in rooms and parts[1] != room_of(path):
                pytest.fail(f"{path.name} imports {name}: import it from gateway.{parts[1]}")
