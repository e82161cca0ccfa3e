"""Run streamconv on emulated aarch64 processors, and compare every digest with this machine's:

    python tests/system/aarch64/run.py [--short] [--cache FOLDER]

The kernels bit for bit, conversions of every format, and the demo; on a machine with Debian's packages and a network.
Exits with 1 where a digest differs or something did not run, and with 77 where there is no emulator to be had.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from system.aarch64 import emulator, sources
from system.aarch64.sides import PROCESSORS, FailedError, Findings, Side, differences, emulated, host

NOT_AVAILABLE = 77
#: Resident memory is the emulator's too, and its pages of 64 KiB are counted sixteen times: the demo needs more than by
#: itself.
_DEMO = ("-m", "streamconv", "demo", "--max-mem", "16G")
Step = Callable[[Side], Findings]


def help_(side: Side) -> Findings:
    """The command line starts, which takes all imports."""
    printed, seconds = side.run("-m", "streamconv", "--help")
    return Findings(
        "", {"command line: --help": hashlib.blake2b(printed.encode(), digest_size=16).hexdigest()}, seconds
    )


def demo(side: Side) -> Findings:
    """The demo, and the digests that it prints itself."""
    printed, seconds = side.run(*_DEMO)
    digests = re.findall(r"^(all tensors[^:]*): +xxh3 (\w+)$", printed, re.MULTILINE)
    return Findings("", {f"demo: {name}": digest for name, digest in digests}, seconds)


def steps(work: Path, short: bool) -> dict[str, Step]:
    """Return what is run on every side, by name."""
    more = ["--short"] if short else []
    found: dict[str, Step] = {
        "kernels": lambda side: side.findings("kernels.py"),
        "conversions": lambda side: side.findings("conversions.py", work / "sources", side.folder / "results", *more),
    }
    return found if short else {"--help": help_, **found, "demo": demo}


def compare(python: Path, work: Path, short: bool) -> list[str]:
    """Run all steps on all sides, print a table of the digests, and return what is wrong."""
    sources.make(work / "sources")
    names = list(PROCESSORS)[: 1 if short else None]
    sides = [host(work), *(emulated(python, name, work) for name in names)]
    table, wrong = Table([side.name for side in sides]), []
    for name, step in steps(work, short).items():
        found = [_found(side, name, step) for side in sides]
        table.add(found)
        wrong += [line for side, one in zip(sides[1:], found[1:], strict=True) for line in faults(side, found[0], one)]
        wrong += [f"{sides[0].name}: {name} did not run"] if found[0] is None else []
    print(f"\n{table}\n")
    return wrong


def _found(side: Side, name: str, step: Step) -> Findings | None:
    """Run a step on a side, and say how that went; `None` where it failed."""
    try:
        found = step(side)
    except FailedError as error:
        print(error)
        return None
    print(f"{name} on {side.name}: {len(found.digests)} digests in {found.seconds:.0f} s {found.machine}", flush=True)
    return found


def faults(side: Side, expected: Findings | None, found: Findings | None) -> list[str]:
    """Return what is wrong with a step's findings on an emulated processor."""
    if found is None or not found.digests:
        return [f"{side.name}: a step did not run"]
    if found.machine and not found.machine.startswith("aarch64"):
        return [f"{side.name}: ran on {found.machine}"]
    return [f"{side.name}: {case}" for case in differences(expected, found)] if expected else []


class Table:
    """A row for each group of cases, such as `Llama`; a column for each side, with one digest of the digests."""

    def __init__(self, columns: list[str]) -> None:
        self._lines = ["| | cases | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def add(self, sides: list[Findings | None]) -> None:
        """Add the rows of a step."""
        groups = dict.fromkeys(case.partition(":")[0] for found in sides if found for case in found.digests)
        for group in groups:
            some = [_of_group(found, group) for found in sides]
            digests = [hashlib.blake2b(repr(one).encode(), digest_size=4).hexdigest() if one else "-" for one in some]
            self._lines.append(f"| {group} | {max(map(len, some))} | " + " | ".join(digests) + " |")


def _of_group(found: Findings | None, group: str) -> list[tuple[str, str]]:
    digests = found.digests if found else {}
    return sorted(item for item in digests.items() if item[0].partition(":")[0] == group)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one processor, its kernels and one conversion")
    parser.add_argument("--cache", type=Path, default=emulator.default_folder(), help="where the emulator is kept")
    given = parser.parse_args()
    began = time.monotonic()
    try:
        python = emulator.prepare(given.cache.resolve())
    except emulator.NotAvailableError as error:
        print(f"not run: {error}")
        return NOT_AVAILABLE
    print(f"the emulator is ready after {time.monotonic() - began:.0f} s: {python}")
    with tempfile.TemporaryDirectory(prefix="streamconv-aarch64-") as work:
        wrong = compare(python, Path(work), given.short)
    for line in wrong:
        print(f"wrong: {line}")
    print(f"{'FAILED' if wrong else 'all digests are the same'}, after {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
