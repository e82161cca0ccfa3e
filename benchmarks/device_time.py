"""Read one folder and write as many bytes to another as fast as the device can: no conversion can be faster.

    python -m benchmarks.device_time SOURCE DEST BYTES

Past the page cache where the file system allows it, in requests of 1 MiB, four reads and four writes on their way at
once: fewer and larger ones took longer on the disks measured.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from streamconv.storage.regions import Region

from .machine import opened

_BLOCK = 1 << 20
_AT_ONCE = 4


class _Requests:
    """Hands out requests, a descriptor and an offset each, to several threads."""

    def __init__(self, every: Iterable[tuple[int, int]], do: Callable[[int, memoryview, int], object]) -> None:
        self._every, self._do, self._lock = iter(every), do, threading.Lock()

    def work(self, data: memoryview) -> None:
        """Do one after the other until none is left."""
        while True:
            with self._lock:
                request = next(self._every, None)
            if request is None:
                return
            self._do(request[0], data, request[1])


def _random() -> memoryview:
    """Return a buffer of what no disk can compress."""
    data = Region(_BLOCK).array(_BLOCK, np.dtype(np.uint8))
    data[...] = np.frombuffer(os.urandom(_BLOCK), np.uint8)
    return data.data


def main() -> None:
    """Do what the command line says, and print how many seconds it took."""
    source, dest, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    dest.mkdir()
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    with ExitStack() as stack:
        files = [(stack.enter_context(opened(path, os.O_RDONLY)), path.stat().st_size) for path in paths]
        out = stack.enter_context(opened(dest / "bytes", os.O_WRONLY | os.O_CREAT))
        reads = _Requests(
            ((file, at) for file, length in files for at in range(0, length, _BLOCK)),
            lambda file, data, at: os.preadv(file, [data], at),
        )
        writes = _Requests(((out, at) for at in range(0, size, _BLOCK)), os.pwrite)
        buffers = [_random() for _ in range(2 * _AT_ONCE)]
        started = time.monotonic()
        with ThreadPoolExecutor(2 * _AT_ONCE) as threads:
            work = zip((reads, writes) * _AT_ONCE, buffers, strict=True)
            for done in [threads.submit(one.work, data) for one, data in work]:
                done.result()
        os.ftruncate(out, size)
        os.fsync(out)
        print(time.monotonic() - started)


if __name__ == "__main__":
    main()
