"""Read files, and write as many bytes as asked, as fast as the device can: nothing that has to can be faster.

    python -m benchmarks.device_time PATH ... [--write DEST BYTES]

Past the page cache where the file system allows it. How large requests are, and how many are on their way at once, is
what took least time on the disks measured: two of 16 MiB to read alone, four reads and four writes of 1 MiB together.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streamconv.storage.regions import Region

from .machine import opened


class Requests(NamedTuple):
    """Bytes of a request, and how many are on their way at once."""

    nbytes: int
    at_once: int


READING, READING_AND_WRITING = Requests(16 << 20, 2), Requests(1 << 20, 8)


class _Queue:
    """Hands out requests, a descriptor and an offset each, to several threads."""

    def __init__(self, every: Iterable[tuple[int, int]], do: Callable[[int, memoryview, int], int]) -> None:
        self._every, self._do, self._lock = iter(every), do, threading.Lock()

    def work(self, data: memoryview) -> int:
        """Do one after the other until none is left; return how many bytes they came to."""
        count = 0
        while True:
            with self._lock:
                request = next(self._every, None)
            if request is None:
                return count
            count += self._do(request[0], data, request[1])


def move(paths: Iterable[Path], dest: Path | None = None, size: int = 0) -> tuple[float, int]:
    """Read files and those in directories, and write `size` random bytes to a file in the new directory `dest`.

    Returns:
        How many seconds it took, and how many bytes were read or written.

    Raises:
        OSError: a file cannot be read or written.
    """
    with ExitStack() as stack:
        requests = READING if dest is None else READING_AND_WRITING
        files = [(stack.enter_context(opened(path, os.O_RDONLY)), path.stat().st_size) for path in _files(paths)]
        queues = [_Queue(_places(files, requests.nbytes), lambda file, data, at: os.preadv(file, [data], at))]
        if dest is not None:
            dest.mkdir()
            out = stack.enter_context(opened(dest / "bytes", os.O_WRONLY | os.O_CREAT))
            queues.append(_Queue(_places([(out, size)], requests.nbytes), os.pwrite))
        started, count = time.monotonic(), _done(queues, requests)
        if dest is not None:
            os.ftruncate(out, size)
            os.fsync(out)
        return time.monotonic() - started, count


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else [path]


def _places(files: Iterable[tuple[int, int]], nbytes: int) -> Iterator[tuple[int, int]]:
    return ((file, at) for file, length in files for at in range(0, length, nbytes))


def _done(queues: Sequence[_Queue], requests: Requests) -> int:
    """Do all requests, those of all queues at the same time; return how many bytes they came to."""
    work = [queues[number % len(queues)] for number in range(requests.at_once)]
    buffers = [_random(requests.nbytes) for _ in work]
    with ThreadPoolExecutor(requests.at_once) as threads:
        begun = [threads.submit(one.work, data) for one, data in zip(work, buffers, strict=True)]
        return sum(one.result() for one in begun)


def _random(nbytes: int) -> memoryview:
    """Return a buffer of what no disk can compress."""
    data = Region(nbytes).array(nbytes, np.dtype(np.uint8))
    data[...] = np.frombuffer(os.urandom(nbytes), np.uint8)
    return data.data


def main() -> None:
    """Do what the command line says, and print how many seconds it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--write", nargs=2, metavar=("DEST", "BYTES"), default=(None, 0))
    given = parser.parse_args()
    dest, size = given.write
    print(move(given.paths, dest and Path(dest), int(size))[0])


if __name__ == "__main__":
    main()
