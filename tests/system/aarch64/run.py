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
_DEMO = ("-m", "streamconv", "demo", "--max-mem", "4G")
Step = Callable[[Side], Findings]


def help_(side: Side) -> Findings:
    """The command line starts, which takes all imports."""
    printed, seconds = side.run("-m", "streamconv", "--help")
    return Findings("", {"streamconv --help": hashlib.blake2b(printed.encode(), digest_size=16).hexdigest()}, seconds)


def demo(side: Side) -> Findings:
    """The demo, and the digests that it prints itself."""
    printed, seconds = side.run(*_DEMO)
    digests = re.findall(r"^(all tensors[^:]*): +xxh3 (\w+)$", printed, re.MULTILINE)
    return Findings("", {f"demo, {name}": digest for name, digest in digests}, seconds)


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
    others = [emulated(python, name, work) for name in names]
    ours, wrong = host(work), []
    for name, step in steps(work, short).items():
        print(f"\n{name}")
        expected = _found(ours, step)
        if expected is None:
            wrong.append(f"host: {name} did not run")
            continue
        wrong += [line for other in others for line in _compared(other, step, expected)]
    return wrong


def _found(side: Side, step: Step) -> Findings | None:
    """Run a step on a side, and say how that went; `None` where it failed."""
    try:
        found = step(side)
    except FailedError as error:
        print(error)
        return None
    print(f"{side.name}: {len(found.digests)} digests in {found.seconds:.0f} s {found.machine}")
    return found


def _compared(side: Side, step: Step, expected: Findings) -> list[str]:
    """Run a step on an emulated processor; print its digests next to the host's, and return what is wrong."""
    found = _found(side, step)
    if found is None or not found.digests:
        return [f"{side.name}: a step did not run"]
    if found.machine and not found.machine.startswith("aarch64"):
        return [f"{side.name}: ran on {found.machine}"]
    different = differences(expected, found)
    for case in sorted(expected.digests.keys() | found.digests.keys()):
        sign = "DIFFERS" if case in different else "same"
        print(f"  {expected.digests.get(case, '-'):32}  {found.digests.get(case, '-'):32}  {sign:7}  {case}")
    return [f"{side.name}: {case}" for case in different]


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
