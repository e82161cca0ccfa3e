"""kill -9 at random moments: what is left is resumed to the same bytes, and no more is done twice than promised.

    python tests/system/sweep_kills.py [--kills N] [--seed S]

A Mixtral whose experts are stacked and transposed is converted in processes of their own, to a disk that takes 40 ms
for every sync and is asked for one every 8 MiB: on a fast one 200 MB are there before a kill can hit them. A kill comes
when a random share of it is on record, and up to 10 ms later; half of the runs that go on are killed again, if there is
much to do still. Every write to a file is counted in memory that outlives the process, so that what was written twice
is known to the byte.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import xxhash

from streamconv import testing as samples
from streamconv.families import find
from streamconv.formats.catalog import open_catalog
from streamconv.output.recorder import most_unrecorded
from support import nowhere, running

CONFIG = {**running.MIXTRAL, "num_hidden_layers": 2, "intermediate_size": 3584, "vocab_size": 8000}
#: Headers and record heads are written again by every run, and the small files at the end.
SMALL = 1 << 20
WORKERS = 2
#: Bytes that a kill may cost.
MOST = most_unrecorded(WORKERS) + SMALL
_POLL = 0.0005
_MUCH = 100 << 20
_SPREAD = 0.01


@dataclass
class Kills:
    """What a sweep saw.

    Attributes:
        shares: of each kill, the share of the output that was on record then; `None` after the final name was there.
        twice: bytes that a conversion wrote more than once, per kill.
    """

    shares: list[float | None] = field(default_factory=list)
    twice: list[float] = field(default_factory=list)

    def histogram(self) -> str:
        """Tenths of the output on record, and kills."""
        tenths = Counter(int(10 * share) for share in self.shares if share is not None)
        lines = [f"{10 * n:3}% on record {tenths[n]:4} {'#' * (60 * tenths[n] // len(self.shares))}" for n in range(11)]
        return "\n".join([*lines, f"after the rename {self.shares.count(None):3}"])

    @property
    def inside(self) -> float:
        """The share of kills between the first durable block and the final rename."""
        return sum(share is not None and share > 0 for share in self.shares) / len(self.shares)


class Field:
    """A source, and the undisturbed result."""

    def __init__(self, root: Path, name: str, words: tuple[object, ...]) -> None:
        self.root, self.name, self.words = root, name, words
        self.source = root / "source"
        if not self.source.exists():
            samples.write_hf(self.source, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 100_000_000)
        self.dest, self.counter = root / name, root / "counter"
        self.counter.write_bytes(bytes(8))
        self.remove()
        assert self.start().wait(timeout=300) == 0
        self.expected = self.content()
        self.total = sum(size for size, _ in self.expected.values())
        self.sizes = [ref.nbytes for ref in open_catalog(self.dest).values()]
        self.remove()

    def remove(self) -> None:
        subprocess.run(["rm", "-rf", *self.root.glob(f"{self.name}*")], check=True)

    def content(self) -> dict[str, tuple[int, str]]:
        """All files of which the destination's name is a part: size and digest."""
        paths = [*self.root.glob(f"{self.name}*"), *self.root.glob(f"{self.name}*/*")]
        return {str(path.relative_to(self.root)): _digest(path) for path in paths if path.is_file()}

    @property
    def is_done(self) -> bool:
        """Whether a run came to its end, if it did not come to say so."""
        return self.dest.exists() and not self.journal.exists()

    def start(self) -> subprocess.Popen[bytes]:
        words = ("convert", self.source, self.dest, *self.words, "--quiet")
        slow_disk, count = ("sync_data", "slow", 0.04), ("write", "counted", str(self.counter), self.journal.name)
        return subprocess.Popen(
            running.command(*words, faults=(slow_disk, count)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=running.environment(),
            cwd=nowhere(),
        )

    @property
    def journal(self) -> Path:
        return self.dest.with_name(f"{self.name}.partial.streamconv")

    def on_record(self) -> int:
        """Bytes of tensors that are on record, in so far as the last line is whole."""
        found = 0
        lines = self.journal.read_bytes().split(b"\n") if self.journal.exists() else []
        for line in lines[:-1]:
            _, _, text = line.partition(b" ")
            if text.startswith(b'["box"'):
                found += _box_bytes(text)
            elif text.startswith(b'["outputs"'):
                _, first, stop = json.loads(text)
                found += sum(self.sizes[first:stop])
        return found

    def wait_for_record(self, process: subprocess.Popen[bytes], count: float) -> None:
        """Wait until so many bytes are on record, or the run is over."""
        while process.poll() is None and not self.dest.exists() and self.on_record() < count:
            time.sleep(_POLL)

    def counted(self) -> int:
        with self.counter.open("rb") as file:
            count: int = struct.unpack("q", file.read(8))[0]
        return count

    def reset(self) -> None:
        with self.counter.open("r+b") as file, mmap.mmap(file.fileno(), 8) as count:
            count[:] = bytes(8)


def _digest(path: Path) -> tuple[int, str]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return path.stat().st_size, digest.hexdigest()


def _box_bytes(text: bytes) -> int:
    _, _, box, _ = json.loads(text)
    size = 2
    for low, high in box:
        size *= high - low
    return size


def sweep(field_: Field, kills: int, chance: random.Random) -> Kills:
    """Conversions, killed until there were so many kills, each resumed until it is done."""
    seen = Kills()
    while len(seen.shares) < kills:
        field_.remove()
        field_.reset()
        killed = 0
        while killed < 1 or (chance.random() < 0.5 and len(seen.shares) < kills and 0 < field_.on_record() < _MUCH):
            if not _kill_one(field_, chance, seen):
                break
            killed += 1
        if not field_.is_done:
            process = field_.start()
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
            assert b"Traceback" not in said
        assert field_.content() == field_.expected, "the bytes differ from an undisturbed run's"
        if killed:
            seen.twice.append((field_.counted() - field_.total) / killed)
            assert seen.twice[-1] <= MOST, seen.twice[-1]
    return seen


def _kill_one(field_: Field, chance: random.Random, seen: Kills) -> bool:
    """Start a run and kill it; whether it was still at work."""
    process = field_.start()
    # One in fifty comes when all is on record, for the end has moments of its own.
    field_.wait_for_record(process, max(1, chance.uniform(field_.on_record() / field_.total, 1.02) * field_.total))
    time.sleep(chance.uniform(0, _SPREAD))
    process.kill()
    process.communicate()
    if process.returncode == 0:
        return False
    share = None if os.path.lexists(field_.dest) else field_.on_record() / field_.total
    seen.shares.append(share)
    return True


FIELDS = {
    "directory": ("dest", ("-o", "use_gmm=true", "--max-mem", "256M", "--workers", WORKERS)),
    "ckpt": ("dest.ckpt", ("--crc", "--dtype", "fp16", "--max-mem", "256M", "--workers", WORKERS)),
}


def main() -> None:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=1000, metavar="N", help="how many, 1000 where absent")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    given = parser.parse_args()
    for name, (dest, words) in FIELDS.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            place = Field(Path(folder), dest, words)
            seen = sweep(place, given.kills // len(FIELDS), random.Random(given.seed))
        print(f"{name}: {len(seen.shares)} kills in {time.monotonic() - started:.0f} s, wrong outputs 0")
        print(f"between the first durable block and the rename: {seen.inside:.1%}\n{seen.histogram()}")
        most, median = max(seen.twice), statistics.median(seen.twice)
        print(f"written twice per kill: median {median / 2**20:.1f} MiB, most {most / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
