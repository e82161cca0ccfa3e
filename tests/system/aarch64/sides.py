"""The two sides of a comparison: this machine's Python, and the emulated one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import streamconv

HERE = Path(__file__).resolve().parent
#: The emulator's settings, by the name in tables: a processor with NEON alone, like Kunpeng 920, and one with SVE.
#: Pages of 64 KiB are the emulator's, over this machine's: offsets have to be right for them, but no such kernel runs.
PROCESSORS = {
    "neoverse-n1": {"QEMU_CPU": "neoverse-n1"},
    "a64fx": {"QEMU_CPU": "a64fx"},
    "64 KiB pages": {"QEMU_CPU": "neoverse-n1", "QEMU_PAGESIZE": "65536"},
}
_TIMEOUT = 1800


class FailedError(Exception):
    """A side did not do what it was to do."""


@dataclass(frozen=True)
class Findings:
    """What a script found on a side.

    Attributes:
        machine: what the script says it ran on.
        digests: a digest for each case.
        seconds: how long it took.
    """

    machine: str
    digests: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Side:
    """A Python that runs the package of this process.

    Attributes:
        name: for tables.
        python: the interpreter.
        folder: an empty folder for what it needs.
        emulator: the emulator's settings, as variables of the environment.
    """

    name: str
    python: Path
    folder: Path
    emulator: Mapping[str, str] = field(default_factory=dict)

    def run(self, *words: object) -> tuple[str, float]:
        """Run Python with these words; return what it printed, and how long it took.

        Raises:
            FailedError: it failed.
        """
        began = time.monotonic()
        command = [str(self.python), *map(str, words)]
        done = subprocess.run(
            command,
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{self.name}: {words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout, time.monotonic() - began

    def findings(self, script: str, *words: object) -> Findings:
        """Run one of the scripts of this folder."""
        printed, seconds = self.run(HERE / script, *words)
        found = json.loads(printed)
        return Findings(found["machine"], found["digests"], seconds)

    def _environment(self) -> dict[str, str]:
        """The package alone is on the path: what it needs, each side has of its own architecture."""
        package = self.folder / "package"
        if not package.exists():
            package.mkdir(parents=True)
            (package / "streamconv").symlink_to(Path(streamconv.__file__).parent)
        return {**os.environ, "PYTHONPATH": str(package), **self.emulator}


def host(folder: Path) -> Side:
    """Return this machine's side."""
    return _made(Side("host", Path(sys.executable), folder / "host"))


def emulated(python: Path, name: str, folder: Path) -> Side:
    """Return the side of an emulated processor."""
    return _made(Side(name, python, folder / name.replace(" ", "-"), PROCESSORS[name]))


def _made(side: Side) -> Side:
    side.folder.mkdir(parents=True)
    return side


def differences(ours: Findings, theirs: Findings) -> list[str]:
    """Return the cases that differ, and those that only one side has."""
    names = sorted(ours.digests.keys() | theirs.digests.keys())
    return [name for name in names if ours.digests.get(name) != theirs.digests.get(name)]
