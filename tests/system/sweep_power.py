"""Power cuts: at every sync of a run, what a disk may hold then, and what the same command makes of that.

    python tests/system/sweep_power.py

A model of a disk follows all calls of the file layer: written bytes and changed names are volatile until their file, or
their directory, is synced. At every sync the volatile part is thrown away, in three ways that file systems differ in:
names too, bytes and sizes, or bytes alone. What remains is laid out on a real disk; under the final name there may be
nothing, the old, or all of the new, and the same command has to end with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from streamconv.storage import disk
from system.sweep_faults import SCENARIOS, Bench, Scenario, small_units


@dataclass(eq=False)
class File:
    """A file of the model: what is written to it, and what of that is durable. `identity` is its real one."""

    identity: tuple[int, int]
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def sync(self) -> None:
        self.durable = bytes(self.content)


@dataclass(eq=False)
class Directory:
    """A directory of the model."""

    identity: tuple[int, int]
    names: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)

    def sync(self) -> None:
        self.durable = dict(self.names)


Image = tuple[dict[str, Any], tuple[int, int]]
"""What remains of a directory: name → bytes, or an image, each with its identity; and the directory's own."""


class Model:
    """Follows what a run does below `root`, and takes images at every sync.

    Attributes:
        images: (what it is of, image) in order.
    """

    def __init__(self, root: Path) -> None:
        self._root_path = root
        self.root = self._read(root)
        self._open: dict[int, File | Directory] = {}
        self.images: list[tuple[str, Image]] = []

    def _read(self, path: Path) -> Any:
        identity = disk.device_and_inode(path)
        if path.is_file():
            return File(identity, bytearray(path.read_bytes()), path.read_bytes())
        names = {entry.name: self._read(entry) for entry in path.iterdir()}
        return Directory(identity, names, dict(names))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        follow = {"open_file": self._opened, "write": self._wrote, "truncate": self._cut, "sync": self._synced}
        follow |= {"sync_data": self._synced, "close": self._closed, "make_directory": self._made}
        follow |= {"remove": self._removed, "remove_directory": self._removed, "rename": self._renamed}
        follow |= {"memory_file": self._made_in_memory}
        with pytest.MonkeyPatch.context() as patch:
            for name, after in {**follow, "exchange": self._exchanged}.items():
                patch.setattr(disk, name, self._with(getattr(disk, name), after))
            yield

    @staticmethod
    def _with(call: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
        def both(*arguments: Any, **more: Any) -> Any:
            result = call(*arguments, **more)
            after(result, *arguments, **more)
            return result

        return both

    def _place(self, path: Any) -> tuple[Directory, str] | None:
        """The model's directory of a path, and the name in it; `None` for what lies elsewhere."""
        try:
            parts = Path(path).relative_to(self._root_path).parts
        except ValueError:
            return None
        at: Any = self.root
        for part in parts[:-1]:
            at = at.names[part]
        return (at, parts[-1]) if parts else None

    def _opened(self, descriptor: int, path: Any, flags: int, mode: int = 0) -> None:
        if Path(path) == self._root_path:
            self._open[descriptor] = self.root
        again = Path(path)
        if again.parent == Path("/proc/self/fd") and int(again.name) in self._open:
            self._open[descriptor] = self._open[int(again.name)]
        if (place := self._place(path)) is None:
            return
        directory, name = place
        node = directory.names.setdefault(name, File(disk.device_and_inode(path)))
        if flags & os.O_TRUNC and isinstance(node, File):
            node.content.clear()
        self._open[descriptor] = node

    def _made_in_memory(self, descriptor: int) -> None:
        self._open[descriptor] = File((0, 0))

    def _closed(self, _: object, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def _wrote(self, count: int, descriptor: int, data: memoryview, offset: int) -> None:
        node = self._open[descriptor]
        if isinstance(node, File):
            node.content.extend(bytes(max(0, offset + count - len(node.content))))
            node.content[offset : offset + count] = data[:count]

    def _cut(self, _: object, descriptor: int, size: int) -> None:
        node = self._open[descriptor]
        if isinstance(node, File):
            del node.content[size:]
            node.content.extend(bytes(size - len(node.content)))

    def _made(self, _: object, path: Any) -> None:
        if place := self._place(path):
            place[0].names[place[1]] = Directory(disk.device_and_inode(path))

    def _removed(self, _: object, path: Any) -> None:
        if place := self._place(path):
            del place[0].names[place[1]]

    def _renamed(self, _: object, one: Any, other: Any) -> None:
        if (first := self._place(one)) and (second := self._place(other)):
            second[0].names[second[1]] = first[0].names.pop(first[1])

    def _exchanged(self, done: bool, one: Any, other: Any) -> None:
        first, second = self._place(one), self._place(other)
        if done and first and second:
            nodes = first[0].names[first[1]], second[0].names[second[1]]
            second[0].names[second[1]], first[0].names[first[1]] = nodes

    def _synced(self, _: object, descriptor: int) -> None:
        """Before a sync nothing of it is durable, after it all: between two syncs it is as after the first."""
        node = self._open.get(descriptor)
        if node is None:
            return
        if not self.images:
            self.take()
        node.sync()
        self.take()

    def take(self) -> None:
        self.images.append(("names and bytes lost", self._image(self.root, "durable")))
        self.images.append(("bytes and sizes lost", self._image(self.root, "names")))
        self.images.append(("bytes lost", self._image(self.root, "names", sized=True)))

    def _image(self, directory: Directory, names: str, sized: bool = False) -> Image:
        found: dict[str, Any] = {}
        for name, node in getattr(directory, names).items():
            if isinstance(node, Directory):
                found[name] = self._image(node, names, sized)
            else:
                size = len(node.content) if sized else len(node.durable)
                found[name] = node.durable[:size].ljust(size, b"\0"), node.identity
        return found, directory.identity


def lay_out(image: Image, folder: Path, identities: dict[tuple[int, int], tuple[int, int]]) -> None:
    """Make an image real; `identities` learns which of the model's a real one is."""
    content, identity = image
    folder.mkdir()
    identities[disk.device_and_inode(folder)] = identity
    for name, (inside, own) in content.items():
        if isinstance(inside, dict):
            lay_out((inside, own), folder / name, identities)
        else:
            (folder / name).write_bytes(inside)
            identities[disk.device_and_inode(folder / name)] = own


def sweep(scenario: Scenario, root: Path, first: int = 0, every: int = 1) -> Counter[str]:
    """All power cuts of one conversion: what was under the final name after each, counted."""
    counts: Counter[str] = Counter()
    with small_units():
        bench = Bench(scenario, root)
        bench.prepare()
        model = Model(bench.work)
        with model.followed():
            code, said = bench.convert()
        assert code == 0, said
        for what, image in model.images[first::every]:
            try_one(bench, what, image, counts)
    return counts


def try_one(bench: Bench, what: str, image: Image, counts: Counter[str]) -> None:
    """One image: looked at, and resumed."""
    shutil.rmtree(bench.work)
    identities: dict[tuple[int, int], tuple[int, int]] = {}
    lay_out(image, bench.work, identities)
    identity = disk.device_and_inode
    try:
        counts[bench.check_final()] += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "device_and_inode", lambda path: identities.get(identity(path), identity(path)))
            bench.check_resumed()
    except AssertionError as error:
        raise AssertionError(f"{what}, of {sorted(image[0])}: {error}") from error


def main() -> None:
    """The long mode."""
    total, started = 0, time.monotonic()
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = sweep(scenario, Path(folder))
        total += counts.total()
        left = ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))
        print(f"{name}: {counts.total()} power cuts; under the final name {left}", flush=True)
    print(f"{total} power cuts in {time.monotonic() - started:.0f} s: wrong outputs 0, not resumable 0")


if __name__ == "__main__":
    main()
