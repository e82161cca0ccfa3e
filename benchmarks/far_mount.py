"""A file system in user space that shows a folder as if it were far away: each request takes a while (Linux, as root).

    python -m benchmarks.far_mount FOLDER MOUNT_POINT --latency 0.005 --rate 1e9

Read-only, one level deep, spoken straight to /dev/fuse (source: linux/fuse.h, protocol 7.31). Many threads answer, so
that many requests can be on their way; each waits for the latency, and for its bytes at the rate of a stream.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import stat
import struct
import threading
import time
from pathlib import Path

_THREADS = 64
_MOST = 1 << 20
_ROOT = 1
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE = 1, 2, 3, 14, 15, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _ACCESS = 25, 26, 27, 28, 29, 34
_INTERRUPT, _DESTROY, _BATCH_FORGET = 36, 38, 42
_UNANSWERED = (_FORGET, _BATCH_FORGET, _INTERRUPT)
_EMPTY = (_RELEASE, _FLUSH, _RELEASEDIR, _ACCESS, _DESTROY)
_ASYNC_READ, _ASYNC_DIO, _PARALLEL_DIROPS, _MAX_PAGES = 1, 1 << 15, 1 << 18, 1 << 22
_HEADER, _ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_DETACH = 2


class FarFolder:
    """Answers the kernel's requests.

    Args:
        folder: what is shown.
        latency: seconds a request.
        rate: bytes a second of one stream.
    """

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        self._latency, self._rate = latency, rate
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        self._nodes = {number: folder / name for number, name in enumerate(names, _ROOT + 1)}
        self._numbers = {path.name.encode(): number for number, path in self._nodes.items()}
        self._files = {number: os.open(path, os.O_RDONLY) for number, path in self._nodes.items()}
        self._folder = folder

    def serve(self, device: int) -> None:
        """Answer requests until the file system is unmounted."""
        buffer = bytearray(_MOST + (64 << 10))
        while True:
            try:
                length = os.readv(device, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, kind, unique, node, *_ = _HEADER.unpack_from(buffer)
            if kind in _UNANSWERED:
                continue
            code, data = self._answer(kind, node, memoryview(buffer)[_HEADER.size : length])
            os.writev(device, [_ANSWER.pack(_ANSWER.size + len(data), -code, unique), data])

    def _answer(self, kind: int, node: int, body: memoryview) -> tuple[int, bytes]:
        """Return the error, 0 for none, and what to say."""
        if kind == _INIT:
            return 0, _init(body)
        time.sleep(self._latency)
        answer = {_LOOKUP: self._look_up, _GETATTR: self._get, _READ: self._read, _READDIR: self._entries}.get(kind)
        if answer is not None:
            found = answer(node, body)
            return (errno.ENOENT, b"") if found is None else (0, found)
        if kind in (_OPEN, _OPENDIR):
            return 0, struct.pack("<QII", node, 0, 0)
        return (0, b"") if kind in _EMPTY else (errno.ENOSYS, b"")

    def _look_up(self, node: int, body: memoryview) -> bytes | None:
        number = self._numbers.get(bytes(body).rstrip(b"\0"))
        if number is None:
            return None
        return struct.pack("<QQQQII", number, 0, 60, 60, 0, 0) + self._attributes(number)

    def _get(self, node: int, body: memoryview) -> bytes | None:
        return struct.pack("<QII", 60, 0, 0) + self._attributes(node)

    def _read(self, node: int, body: memoryview) -> bytes | None:
        offset, size = struct.unpack_from("<QI", body, 8)
        time.sleep(size / self._rate)
        return os.pread(self._files[node], size, offset)

    def _attributes(self, node: int) -> bytes:
        found = (self._folder if node == _ROOT else self._nodes[node]).stat()
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        seconds, rest = zip(*(divmod(one, 10**9) for one in times), strict=True)
        kind = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
        owner = (1, found.st_uid, found.st_gid, 0, 4096, 0)
        return struct.pack("<6Q10I", node, found.st_size, found.st_blocks, *seconds, *rest, kind, *owner)

    def _entries(self, node: int, body: memoryview) -> bytes | None:
        offset, size = struct.unpack_from("<QI", body, 8)
        found = b""
        for at, (name, number) in enumerate(self._numbers.items()):
            entry = struct.pack("<QQII", number, at + 1, len(name), stat.S_IFREG >> 12) + name
            entry += bytes(-len(entry) % 8)
            if at >= offset and len(found) + len(entry) <= size:
                found += entry
        return found


def _init(body: memoryview) -> bytes:
    _, _, ahead, offered = struct.unpack_from("<IIII", body)
    flags = offered & (_ASYNC_READ | _ASYNC_DIO | _PARALLEL_DIROPS | _MAX_PAGES)
    return struct.pack("<IIIIHHIIHH32x", 7, 31, ahead, flags, _THREADS, _THREADS, _MOST, 1, _MOST // 4096, 0)


def mount(point: Path) -> int:
    """Mount on an empty directory; return the device that requests come from.

    Raises:
        OSError: not allowed, or the kernel has no FUSE.
    """
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read={_MOST}".encode()
    _check(ctypes.CDLL(None, use_errno=True).mount(b"far", os.fsencode(point), b"fuse.far", 1, options))
    return device


def unmount(point: Path) -> None:
    """Unmount; whatever is not mounted is left alone."""
    ctypes.CDLL(None).umount2(os.fsencode(point), _DETACH)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def main() -> None:
    """Serve a folder until it is unmounted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("point", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--rate", type=float, default=1e9, metavar="BYTES", help="a second, of one stream")
    given = parser.parse_args()
    shown, device = FarFolder(given.folder, given.latency, given.rate), mount(given.point)
    threads = [threading.Thread(target=shown.serve, args=(device,), daemon=True) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    print("mounted", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
