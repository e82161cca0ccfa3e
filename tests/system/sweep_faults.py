"""Storage that fails: every call of the file layer in turn, with every error, until a run meets no fault any more.

    python tests/system/sweep_faults.py [--every N]

Every run has to end in success or in a documented exit code with a message, must not put a wrong file under the final
name, and the same command has to finish the work afterwards, with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

import streamconv
from streamconv.checks import against_manifest
from streamconv.cli import main as cli
from streamconv.engine import stretches
from streamconv.engine import workers as engine
from streamconv.errors import EXIT_CODES
from streamconv.output import blocks, manifest, recorder
from streamconv.storage import access, device, disk
from support import running, strategies

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EINTR", "ENOMEM", "short")
_SHORT = {"read": 1, "read_into": 1, "write": 1}


@dataclass
class Fault:
    """The `number`-th call fails, and those after it too if it is `lasting`.

    Attributes:
        number: from 1 on.
        error: a name of `errno`, or `short`: a read or write that takes half.
        lasting: whether the calls after it fail too.
        met: how often it happened.
    """

    number: int
    error: str
    lasting: bool = False
    met: int = 0
    calls: int = 0
    where: str = ""

    @contextlib.contextmanager
    def installed(self, only: Sequence[str] = disk.PRIMITIVES) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in _SHORT if self.error == "short" else only:
                patch.setattr(disk, name, self._failing(name, getattr(disk, name)))
            yield

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls < self.number or (self.met and not self.lasting):
                return call(*arguments, **more)
            self.met += 1
            self.where = self.where or f"{name}{arguments}"
            if self.error == "short":
                return call(*_shortened(name, arguments))
            if name == "close":
                call(*arguments)  # Linux lets go of the descriptor whatever it says
            number = getattr(errno, self.error)
            path = next((one for one in arguments if isinstance(one, str | Path)), None)
            raise OSError(number, self.error, path)

        return failing


def _shortened(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    first, second, offset = arguments
    half = max(1, second // 2) if name == "read" else second[: max(1, len(second) // 2)]
    return first, half, offset


@contextlib.contextmanager
def small_units() -> Iterator[None]:
    """Blocks, writes and batches of kilobytes: a tiny model has as many of them as a large one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, manifest, against_manifest, stretches):
            patch.setattr(module, "BLOCK", 4 << 10)
        patch.setattr(engine, "WRITE_BYTES", 1 << 10)
        patch.setattr(device, "direct_unit", lambda number: 512)
        patch.setattr(access, "DIRECT_LEAST", 512)
        patch.setattr(access, "DIRECT_LEAST_OF_PART", 512)
        patch.setattr(recorder, "BATCH", 4 << 10)
        patch.setattr(recorder, "MAX_UNRECORDED", 8 << 10)
        patch.setattr(recorder, "MAX_UNRECORDED_OF_WORKER", 0)
        yield


def command(*words: object) -> tuple[int, str]:
    """Run the command line here; its exit code and what it said."""
    before, said = sys.argv, io.StringIO()
    sys.argv = ["streamconv", *map(str, words)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.run()
    finally:
        sys.argv = before
    return code, said.getvalue()


@dataclass(frozen=True)
class Scenario:
    """A conversion: the destination's name, more words, whether an old result is replaced, whether names swap,
    whether an earlier run was stopped half way, and whether tensors are cut for ranks.
    """

    name: str
    words: tuple[str, ...] = ()
    old: bool = False
    reverse: bool = False
    swaps: bool = True
    begun: bool = False
    ranks: bool = False


SCENARIOS = {
    "directory": Scenario("dest"),
    "replaced directory": Scenario("dest", old=True),
    "replaced directory, in two steps": Scenario("dest", old=True, swaps=False),
    "ckpt with CRC": Scenario("dest.ckpt", ("--crc", "--dtype", "fp16")),
    "replaced ckpt": Scenario("dest.ckpt", old=True),
    "torch file": Scenario("dest.bin", ("--reverse",), reverse=True),
    "through the page cache": Scenario("dest", ("--io", "read", "--dtype", "fp16", "--max-shard-size", "6KB")),
    "past the page cache": Scenario("dest", ("--io", "direct", "--dtype", "fp16")),
    "verified": Scenario("dest", ("--verify",)),
    "resumed": Scenario("dest", ("--io", "read", "--dtype", "fp16"), begun=True),
    "ranks": Scenario("dest", ("--io", "read"), ranks=True),
    "ranks, resumed": Scenario("dest", ("--no-links",), begun=True, ranks=True),
    "ranks, ckpt with CRC": Scenario("dest", ("--format", "ckpt", "--crc"), ranks=True),
}


class Bench:
    """A scenario, its source, and what an undisturbed run gives."""

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self.scenario, self.root = scenario, root
        self._source = running.tiny(root / "source", shard=4_000)
        for name, text in {"tokenizer.json": "{}", "generation_config.json": "{}"}.items():
            (self._source / name).write_text(text)
        if scenario.reverse:
            streamconv.convert(self._source, root / "ms")
            self._source = root / "ms"
        self._more: list[object] = []
        if scenario.ranks:
            plan = streamconv.plan(self._source, root / "no")
            self._more = ["--strategy", strategies.write(root / "strategy", plan, (2, 2), 2)]
        self.work, self._before = root / "work", root / "before"
        self._before.mkdir()
        if scenario.old:
            streamconv.convert(self._source, self._before / scenario.name, dtype="fp32")
        self._old: dict[str, Any] = {}
        with small_units():
            self._undisturbed()

    def _undisturbed(self) -> None:
        """Learn what there is before a run, and after it."""
        self.prepare()
        self._old = self.final()
        code, said = self.convert()
        assert code == 0, said
        self.expected = self.final()

    def prepare(self) -> None:
        """Nothing, or an old result, at the destination."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._before, self.work)
        if self.scenario.begun:
            self._begin()

    def _begin(self) -> None:
        """A run that meets a full disk after so many writes."""
        with Fault(70 if self.scenario.ranks else 10, "ENOSPC", lasting=True).installed(only=("write",)):
            code, said = self.convert()
        assert code == 5 and " saved in " in said, said

    def words(self) -> list[object]:
        words = ["convert", self._source, self.work / self.scenario.name, *self.scenario.words, *self._more, "--quiet"]
        return [*words, "--workers", 1, "--max-mem", "8G", *(["--overwrite"] if self.scenario.old else [])]

    def convert(self) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patch:
            if not self.scenario.swaps:
                patch.setattr(disk, "exchange", lambda one, other: False)
            return command(*self.words())

    def final(self) -> dict[str, Any]:
        """What is under final names."""
        found = running.tree(self.work)
        return {path: content for path, content in found.items() if ".partial" not in path}

    def check_final(self) -> str:
        """What is under final names: the old, all of the new, or nothing; for a single file, without its manifest."""
        found, single = self.final(), f"{self.scenario.name}.streamconv.json"
        for what, whole in (("new", self.expected), ("old", self._old)):
            without = {path: content for path, content in whole.items() if path != single}
            if found in (whole, without):
                return what if found else "nothing"
        assert not found, f"wrong files under final names: {sorted(found)}"
        return "nothing"

    def check_resumed(self) -> None:
        """The same command ends well, and leaves nothing but the right result."""
        code, said = self.convert()
        assert code == 0, said
        assert running.tree(self.work) == self.expected, sorted(running.tree(self.work))


@dataclass
class Counts:
    """What a sweep saw."""

    faults: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        left = ", ".join(f"{what}: {count}" for what, count in sorted(self.left.items()))
        return f"{self.faults} faults; exit codes {codes}; under the final name {left}"


def try_one(bench: Bench, fault: Fault, counts: Counts) -> None:
    """One run with a fault, and one without."""
    bench.prepare()
    with fault.installed():
        code, said = bench.convert()
    if not fault.met:
        return
    what = f"{fault}: exit code {code}, {said}"
    assert code in EXIT_CODES and code != 1, what
    assert "Traceback" not in said, what
    assert said.startswith("error: ") if code else True, what
    try:
        counts.left[bench.check_final()] += 1
        if code == 0:
            assert bench.final() == bench.expected
        bench.check_resumed() if code else None
    except AssertionError as error:
        raise AssertionError(f"after {what}: {error}") from error
    counts.faults += 1
    counts.codes[code] += 1


def sweep(bench: Bench, error: str, lasting: bool, first: int = 1, every: int = 1) -> Counts:
    """All faults of one kind: the call `first`, and every `every`-th after it."""
    counts, number = Counts(), first
    with small_units():
        while True:
            fault = Fault(number, error, lasting)
            try_one(bench, fault, counts)
            if not fault.met:
                return counts
            number += every


def main() -> None:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try only every N-th call")
    every, total, started = parser.parse_args().every, 0, time.monotonic()
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(scenario, Path(folder))
            for error, lasting in product(ERRORS, (False, True)):
                counts = sweep(bench, error, lasting, every=every)
                total += counts.faults
                print(f"{name}, {error}{' from then on' if lasting else ''}: {counts}", flush=True)
    print(f"{total} faults in {time.monotonic() - started:.0f} s: wrong outputs 0, tracebacks 0, not resumable 0")


if __name__ == "__main__":
    main()
