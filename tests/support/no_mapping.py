"""A mount that offers no mmap, as some FUSE and object stores: a library that is loaded first refuses it there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int refuses(int descriptor) {
    char link[64], path[4096];
    const char *folder = getenv("NO_MAPPING_BELOW");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = folder ? readlink(link, path, sizeof path - 1) : -1;
    return length >= 0 && (path[length] = 0, !strncmp(path, folder, strlen(folder)));
}

void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next) next = dlsym(RTLD_NEXT, "mmap");
    if (descriptor >= 0 && refuses(descriptor)) { errno = ENODEV; return MAP_FAILED; }
    return next(address, length, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    return mmap(address, length, protection, flags, descriptor, offset);
}
"""


def environment(folder: Path, mount: Path) -> dict[str, str]:
    """What makes every process refuse to map files below `mount`; the library is built in `folder`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "no_mapping.c", folder / "no_mapping.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "NO_MAPPING_BELOW": str(mount)}
