"""streamconv on bad storage: `python faults.py FAULTS WORDS…` runs `streamconv WORDS` with faults in the file layer.

`FAULTS` is JSON: one `[PRIMITIVES, effect, arguments…]` a fault. They replace functions of `storage.disk.PRIMITIVES`,
and nothing else, so that no test depends on how the program is written above them.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[..., Any]
#: Primitives, an effect, and its arguments.
Fault = tuple[Any, ...]

#: Each write takes a while, so that a signal meets the run half way.
SLOW: Fault = ("write", "slow", 0.05)
#: The same for a result of some blocks, as of `running.mixtral`: each is one write.
SLOWER: Fault = ("write", "slow", 0.2)
#: Without end, as far as anybody is told.
ENDLESS: Fault = ("free_bytes", "endless")


def command(faults: tuple[Fault, ...], words: tuple[object, ...]) -> list[str]:
    """The command line of `streamconv WORDS` with these faults."""
    return [sys.executable, __file__, json.dumps(faults), *map(str, words)]


def slow(call: Call, seconds: float) -> Call:
    """Each call takes so much longer."""

    def slowed(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return call(*arguments, **more)

    return slowed


def stuck(call: Call, seconds: float, sign: str) -> Call:
    """Each call takes so much longer, and makes the file `sign` when it begins."""

    def stopping(*arguments: Any, **more: Any) -> Any:
        Path(sign).touch()
        return slow(call, seconds)(*arguments, **more)

    return stopping


def held(call: Call, go: str, but: str) -> Call:
    """No call does anything before the file `go` is there, but for those with paths that have `but` in them."""

    def holding(*arguments: Any, **more: Any) -> Any:
        while but not in str(arguments) and not Path(go).exists():
            time.sleep(0.01)
        return call(*arguments, **more)

    return holding


def endless(_call: Call) -> Call:
    """There is room for anything."""
    return lambda *_: 1 << 60


def bug(_call: Call, words: str) -> Call:
    """What nobody expects."""

    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(words)

    return failing


def rot(call: Call, part: str, offset: int) -> Call:
    """Flip the bit at `offset` of the first file that is dropped from the page cache and has `part` in its path."""
    done: list[str] = []

    def rotting(descriptor: int, first: int = 0, length: int = 0) -> None:
        call(descriptor, first, length)
        path = _path(descriptor)
        if part in path and not (first or length or done):
            done.append(path)
            with Path(path).open("r+b") as file:
                byte = os.pread(file.fileno(), 1, offset)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)

    return rotting


def counted(call: Call, counter: str, but: str) -> Call:
    """Add the bytes of every write, but to paths with that end, to the number in the mapped file `counter`."""
    count, lock = mmap.mmap(os.open(counter, os.O_RDWR), 8), threading.Lock()

    def counting(descriptor: int, data: memoryview, offset: int) -> int:
        done: int = call(descriptor, data, offset)
        if not _path(descriptor).endswith(but):
            with lock:
                count[:] = struct.pack("q", struct.unpack("q", count[:])[0] + done)
        return done

    return counting


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


EFFECTS: dict[str, Callable[..., Call]] = {
    effect.__name__: effect for effect in (slow, stuck, held, endless, bug, rot, counted)
}


def main() -> None:
    """Install the faults and run the command."""
    from streamconv.cli.main import main as run
    from streamconv.storage import disk

    for primitives, effect, *arguments in json.loads(sys.argv[1]):
        for name in primitives.split():
            if name not in disk.PRIMITIVES:
                raise SystemExit(f"no primitive: {name}")
            setattr(disk, name, EFFECTS[effect](getattr(disk, name), *arguments))
    sys.argv = ["streamconv", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    del sys.path[0]  # the folder of this script: its names are not those of packages
    main()
