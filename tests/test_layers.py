"""Imports point down: what each package may import is a table, and the code keeps to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamconv

PACKAGE = Path(streamconv.__file__).parent

#: Everybody may import these; they import nothing but each other, in this order.
COMMON = ("version", "paths", "text", "errors", "units", "offers")

#: From the bottom up: a package or module, and what it may import of this package; a dotted name allows only that
#: module. Nothing stands below what it imports, so there is no way round.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "tensors": (),
    "storage": ("tensors",),
    "rules": ("tensors",),
    "formats": ("tensors", "storage"),
    "quantisation": ("tensors",),
    "families": ("rules", "storage.disk"),
    "configs": (
        *("tensors", "storage", "rules", "quantisation"),
        *("formats.headers", "formats.header_room", "formats.directory", "formats.downloads"),
    ),
    "ranks": ("tensors", "storage", "rules", "formats"),
    "planning": ("tensors", "rules", "families", "quantisation", "ranks.device_layouts"),
    "engine": ("tensors", "storage", "formats.headers", "formats.header_room", "planning"),
    "output": ("tensors", "storage", "formats", "configs", "rules", "planning"),
    "arguments": ("storage", "rules"),
    "checks": ("arguments", "tensors", "storage", "formats", "ranks", "planning", "engine", "output"),
    "inspection": ("tensors",),
    "checkpoint": (
        *("inspection", "arguments", "tensors", "storage", "formats", "ranks"),
        *("engine.reader", "engine.windows", "engine.floats"),
    ),
    "testing": ("tensors", "rules", "formats", "families", "engine.floats"),
    "prepared": (
        "tensors",
        "storage",
        "formats",
        "families",
        "rules",
        "configs",
        "ranks",
        "planning",
        "engine",
        "output",
    ),
    "report": ("tensors", "formats", "families", "rules", "planning", "engine", "output", "prepared"),
    "proving": ("engine", "output", "checks", "prepared"),
    "parts": (
        *("tensors", "storage", "formats", "planning", "engine", "output", "checks"),
        *("prepared", "proving"),
    ),
    "conversion": (
        *("tensors", "storage", "formats", "families", "rules", "configs", "planning", "engine", "output", "checks"),
        *("prepared", "report", "proving", "parts"),
    ),
    "source": (
        "arguments",
        "tensors",
        "formats",
        "ranks",
        "families",
        "rules",
        "configs",
        "planning",
        "engine",
        "output",
    ),
    "plans": (
        *("tensors", "storage", "formats", "families", "rules", "planning", "output"),
        *("prepared", "conversion", "arguments", "source"),
    ),
    "shares": (*("storage", "engine", "output", "arguments", "prepared", "parts", "report", "conversion", "plans"),),
    "cluster": (
        *("arguments", "tensors", "storage", "formats", "engine", "output", "checks", "prepared", "proving", "parts"),
        *("report", "conversion", "plans"),
    ),
    "running": ("arguments", "engine", "parts", "report", "conversion", "shares", "cluster"),
    "api": (
        *("storage", "families", "planning", "engine", "output", "checks", "checkpoint", "report", "proving"),
        *("conversion", "arguments", "source", "plans", "shares", "cluster", "running"),
    ),
    "cli": (
        "arguments",
        "rules",
        "families",
        "engine.progress",
        "storage.memory",
        "checkpoint",
        "testing",
        "report",
        "conversion",
        "plans",
        "running",
        "api",
    ),
    "": ("families", "testing", "api", "checkpoint", "cli"),
}

#: What only one module of a package may import.
ONLY = {"storage.disk": "families.registry"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


NAMES = {name for name, _ in modules()}


def imported(module: str, path: Path) -> Iterator[str]:
    """The modules of this package that a module imports, also inside functions."""
    package = module.split(".") if path.name == "__init__.py" and module else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        target = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{target}.{alias.name}" if target else alias.name
            yield inner if inner in NAMES else target


def room(module: str) -> str:
    first = module.split(".", maxsplit=1)[0]
    return first if first in MAY_IMPORT else "" if first in ("", "__main__") else first


def is_allowed(module: str, other: str) -> bool:
    if other.split(".", maxsplit=1)[0] in COMMON:
        return module not in COMMON or COMMON.index(other) < COMMON.index(module)
    if room(module) == room(other):
        return True
    if other in ONLY and room(module) == room(ONLY[other]):
        return module == ONLY[other]
    return any(other == allowed or other.startswith(f"{allowed}.") for allowed in MAY_IMPORT.get(room(module), ()))


def test_every_import_points_down() -> None:
    wrong = [f"{m} imports {o}" for m, path in modules() for o in imported(m, path) if not is_allowed(m, o)]
    assert wrong == []


def test_the_table_itself_points_down() -> None:
    order = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        assert all(order.index(other.split(".")[0]) < order.index(name) for other in allowed if name), name


def test_every_room_is_in_the_table() -> None:
    assert {room(name) for name in NAMES} - set(COMMON) == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("tensors.views", "storage.disk"),
        ("engine.workers", "output.writer"),
        ("output.writer", "engine.workers"),
        ("families.llama", "storage.disk"),
        ("families.llama", "planning.mapping"),
        ("configs.peft", "formats.ckpt"),
        ("errors", "units"),
        ("cli.commands", "output.writer"),
    ],
)
def test_the_table_refuses_what_points_up_or_sideways(module: str, other: str) -> None:
    assert not is_allowed(module, other)


def test_no_circle_inside_a_package() -> None:
    graph = {m: {o for o in imported(m, path) if o != m and room(o) == room(m)} for m, path in modules()}
    done: set[str] = set()
    while rest := {m: others - done for m, others in graph.items() if m not in done}:
        free = {m for m, others in rest.items() if not others}
        assert free, f"these import each other: {rest}"
        done |= free
