"""Hosts that lack something: `python lacking.py SOURCE FOLDER` converts and verifies on each of them.

A child is forked for each lack, which takes away what is lacking before streamconv is imported: names of `os` and other
modules, as builds of Python lack them, and system calls, which the kernel itself then refuses (seccomp). Prints what
came out, as JSON: lack → [exit codes, digest of the results, what was said].
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib
import json
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from os import fsync
from pathlib import Path
from typing import Any

#: What `os`, `mmap`, `fcntl` and the C library may lack; with a star, all that begin so.
NAMES = (
    *("os.RWF_*", "os.preadv", "os.pwritev", "os.O_DIRECT", "os.O_CLOEXEC", "os.O_NOFOLLOW", "os.O_DIRECTORY"),
    *("os.posix_fadvise", "os.POSIX_FADV_*", "os.copy_file_range", "os.memfd_create", "os.SEEK_HOLE", "os.SEEK_DATA"),
    *("os.sched_getaffinity", "os.fdatasync", "os.statvfs", "mmap.MADV_*", "fcntl.flock", "fcntl.LOCK_*"),
    *("resource.getrlimit", "resource.RLIMIT_*"),
)
#: Modules that a build of Python may lack.
MODULES = ("ctypes", "resource")
#: Functions that an old C library lacks.
OF_LIBC = ("renameat2", "mincore")
#: System calls by their number on x86-64.
CALLS = {
    **{"mincore": 27, "madvise": 28, "flock": 73, "fdatasync": 75, "getrlimit": 97, "statfs": 137, "fstatfs": 138},
    **{"sched_getaffinity": 204, "fadvise64": 221, "prlimit64": 302, "renameat2": 316, "memfd_create": 319},
    **{"copy_file_range": 326, "preadv2": 327, "pwritev2": 328, "statx": 332},
}
#: What kernels and file systems also answer with other errors than ENOSYS.
OFTEN_REFUSED = ("mincore", "madvise", "flock", "fadvise64", "renameat2", "fdatasync")
_OPENAT = 257
_SYSTEM = ctypes.CDLL(None, use_errno=True)

Lack = Callable[[], None]


def lacks() -> Iterator[tuple[str, Lack]]:
    """Every lack, by a name."""
    yield "nothing", lambda: None
    for name in NAMES:
        yield f"no {name}", partial(_take, name)
        if callable(_value(name)):
            yield f"{name}: NotImplementedError", partial(_replace, name, NotImplementedError("not here"))
    yield "preadv: no flags", _refuse_flags
    for name in MODULES:
        yield f"no module {name}", partial(_take_module, name)
    for name in OF_LIBC:
        yield f"no {name} in libc", partial(_take_from_libc, name)
    if platform.machine() == "x86_64":
        for name, number in CALLS.items():
            for error in ("ENOSYS", *(("EINVAL", "EOPNOTSUPP") if name in OFTEN_REFUSED else ())):
                yield f"{name}: {error}", partial(_forbid, number, error)
        yield "O_DIRECT: EINVAL", partial(_forbid, _OPENAT, "EINVAL", os.O_DIRECT)


def _split(name: str) -> tuple[Any, str]:
    module, _, attribute = name.partition(".")
    return importlib.import_module(module), attribute


def _value(name: str) -> object:
    module, attribute = _split(name)
    return getattr(module, attribute, None)


def _take(name: str) -> None:
    module, attribute = _split(name)
    for found in list(vars(module)):
        if found == attribute or (attribute.endswith("*") and found.startswith(attribute[:-1])):
            delattr(module, found)


def _take_module(name: str) -> None:
    sys.modules[name] = None  # type: ignore[assignment]


def _replace(name: str, error: BaseException) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    setattr(*_split(name), failing)


def _refuse_flags() -> None:
    """As a Python that was built against glibc before 2.26."""
    preadv = os.preadv

    def plain(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise NotImplementedError("preadv2: flags unavailable on this platform")
        return preadv(descriptor, buffers, offset)

    os.preadv = plain


def _take_from_libc(name: str) -> None:
    load = ctypes.CDLL

    class Library:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            self._library = load(*arguments, **more)

        def __getattr__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            return getattr(self._library, asked)

    ctypes.CDLL = Library  # type: ignore[assignment, misc]


def _forbid(number: int, error: str, flag: int = 0) -> None:
    """Have the kernel refuse a system call: always, or where its third argument has `flag`."""
    refuse = 0x00050000 | getattr(errno, error)  # SECCOMP_RET_ERRNO
    asks_flag = [(0x20, 0, 0, 32), (0x45, 0, 1, flag)] if flag else []  # load the third argument, test the bit
    code = [(0x20, 0, 0, 0), (0x15, 0, 1 + len(asks_flag), number), *asks_flag, (0x06, 0, 0, refuse)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in [*code, (6, 0, 0, 0x7FFF0000)]))
    of_program = struct.pack("HxxxxxxP", len(code) + 1, ctypes.addressof(program))
    no_new_privileges, set_filter = 38, 22
    if _SYSTEM.prctl(no_new_privileges, 1, 0, 0, 0) or _SYSTEM.prctl(set_filter, 2, of_program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _commands(source: Path, work: Path) -> Iterator[tuple[object, ...]]:
    dest, file = work / "dest", work / "one.ckpt"
    yield "convert", source, dest
    yield "convert", source, dest, "--overwrite", "--verify"
    yield "convert", source, file, "--io", "direct"
    yield "verify", source, dest
    yield "diff", dest, file
    yield "verify", dest


def _run(source: Path, work: Path, lack: Lack) -> tuple[list[int], str]:
    lack()
    from streamconv.cli import main
    from streamconv.storage import access
    from streamconv.storage.mounts import Mount

    # Wherever the tests run, here is a file system whose page cache is asked about, and tensors long enough.
    access.__dict__.update(mount_of=lambda path: Mount("ext4", "", ""), has_huge_pages=lambda: True)
    access.DIRECT_LEAST = access.DIRECT_LEAST_OF_PART = 1
    codes = []
    for words in _commands(source, work):
        sys.argv = ["streamconv", *map(str, words)]
        codes.append(main.run())
    names = sorted(path for path in work.rglob("*") if path.is_file())
    whole = b"".join(str(path.relative_to(work)).encode() + path.read_bytes() for path in names)
    return codes, hashlib.sha256(whole).hexdigest()


def _in_child(source: Path, work: Path, lack: Lack) -> list[object]:
    work.mkdir()
    said, answer = work.with_suffix(".said"), work.with_suffix(".answer")
    child = os.fork()
    if not child:
        target = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, 1)
        os.dup2(target, 2)
        try:
            answer.write_text(json.dumps(_run(source, work, lack)))
        finally:
            sys.stdout.flush()
            sys.excepthook(*sys.exc_info()) if sys.exc_info()[0] else None
            os._exit(0)
    os.waitpid(child, 0)
    return [*(json.loads(answer.read_text()) if answer.exists() else [[], ""]), said.read_text()[-2000:]]


def _forget(source: Path) -> None:
    """Let the page cache hold nothing of the source."""
    for path in source.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    """Try all lacks."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for name in (
        "click",
        "numpy",
        "ml_dtypes",
        "numkong",
        "psutil",
        "safetensors",
        "tqdm",
        "xxhash",
        "yaml",
        "msgspec",
        "isal",
    ):
        importlib.import_module(name)
    found = {}
    for number, (name, lack) in enumerate(lacks()):
        _forget(source)
        found[name] = _in_child(source, folder / str(number), lack)
    print(json.dumps(found))


if __name__ == "__main__":
    del sys.path[0]  # the folder of this script: its names are not those of packages
    main()
