"""What a disk needs for the bytes of files: read them past the page cache, two requests at a time, and do nothing else.

python -m benchmarks.device_reader PATHS ...
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

#: Bytes of a request, and how many are under way at a time.
REQUEST, AT_A_TIME = 16 << 20, 2


def read(paths: Iterable[Path]) -> int:
    """Read all files, and those in directories; return how many bytes they have.

    Raises:
        OSError: a file cannot be read past the page cache.
    """
    with_sizes = [(path, path.stat().st_size) for path in _files(paths)]
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path, _ in with_sizes]
    requests: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for descriptor, (_, size) in zip(opened, with_sizes, strict=True):
        for offset in range(0, size, REQUEST):
            requests.put((descriptor, offset))
    counts: list[int] = []
    readers = [threading.Thread(target=lambda: counts.append(_work(requests))) for _ in range(AT_A_TIME)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return sum(counts)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else [path]


def _work(requests: SimpleQueue[tuple[int, int]]) -> int:
    """Read until no request is left, with memory of its own, in huge pages; return the bytes read."""
    memory, count = mmap.mmap(-1, REQUEST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    memory.madvise(mmap.MADV_HUGEPAGE)
    while True:
        try:
            descriptor, offset = requests.get_nowait()
        except Empty:
            return count
        count += os.preadv(descriptor, [memory], offset)


if __name__ == "__main__":
    print(read(map(Path, sys.argv[1:])), "bytes")
