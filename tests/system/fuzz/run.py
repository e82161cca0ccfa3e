"""Fuzz for long: `python tests/system/fuzz/run.py --seconds 600 [--only TARGET]`, over all targets by turns.

With atheris (`pip install atheris`) the mutations are led by what the code does with them; without it they are at
random, from the same mutators. Findings are written to `--findings`, each place in the code once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["streamconv"]) if atheris else contextlib.nullcontext():
    from system.fuzz import mutate
    from system.fuzz.targets import TARGETS, holds


class Tally:
    """What became of one target's inputs; findings are kept, one of each place."""

    def __init__(self, name: str, folder: Path, findings: Path) -> None:
        self.name, self.target, self.folder, self.findings = name, TARGETS[name], folder, findings
        self.counts: Counter[str] = Counter()
        self._places: set[str] = set()
        self._started = self._saved = time.monotonic()

    def try_one(self, data: bytes) -> None:
        self.counts["inputs"] += 1
        try:
            self.counts["parsed" if holds(self.target, data, self.folder) else "refused"] += 1
        except Exception as error:
            self.counts["findings"] += 1
            self._keep(data, error)
        # libFuzzer ends the process without a word.
        if time.monotonic() - self._saved > 1:
            self.save()

    def _keep(self, data: bytes, error: Exception) -> None:
        place = repr([(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)][-3:])
        if place not in self._places:
            self._places.add(place)
            path = self.findings / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))

    def save(self) -> None:
        self._saved = time.monotonic()
        seconds = round(self._saved - self._started)
        counts = {word: self.counts[word] for word in ("inputs", "parsed", "refused", "findings")}
        said = {**counts, "places": len(self._places), "seconds": seconds}
        (self.findings / f"{self.name}.json").write_text(json.dumps(said))


def at_random(tally: Tally, seconds: float, seed: int) -> None:
    """Mutations without a lead."""
    random, seeds, end = Random(seed), tally.target.seeds(), time.monotonic() + seconds
    while time.monotonic() < end:
        tally.try_one(mutate.mutated(seeds, tally.target.mutator, random))


def guided(tally: Tally, seconds: float, seed: int) -> None:
    """Mutations led by coverage. libFuzzer ends the process."""
    corpus = tally.folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(tally.target.seeds()):
        (corpus / str(number)).write_bytes(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        return (atheris.Mutate(data, most) if random.random() < 0.3 else tally.target.mutator(data, random))[:most]

    words = [f"-max_total_time={seconds:.0f}", f"-seed={seed + 1}", "-max_len=65536", "-verbosity=0", "-timeout=60"]
    atheris.Setup([sys.argv[0], *words, "-rss_limit_mb=0", str(corpus)], tally.try_one, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    given = parser.parse_args()
    given.findings.mkdir(exist_ok=True)
    if given.only:
        return alone(given)
    for name in TARGETS:
        words: list[Any] = ["--seconds", given.seconds / len(TARGETS), "--seed", given.seed]
        words += ["--only", name, "--findings", given.findings]
        subprocess.run([sys.executable, __file__, *map(str, words)], check=False)
    said = {name: json.loads((given.findings / f"{name}.json").read_text()) for name in TARGETS}
    for name, counts in said.items():
        print(f"{name:12}", ", ".join(f"{count} {word}" for word, count in counts.items()))
    print("with atheris" if atheris else "at random")
    return 1 if any(counts["findings"] for counts in said.values()) else 0


def alone(given: argparse.Namespace) -> int:
    """One target, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Tally(given.only, Path(folder), given.findings)
        (guided if atheris else at_random)(tally, given.seconds, given.seed)
        tally.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
