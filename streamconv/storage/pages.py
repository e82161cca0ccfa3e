"""The sizes of pages and huge pages, and whether the kernel gives huge ones: all of it as the system says."""

from __future__ import annotations

import mmap
from contextlib import suppress

from . import whole_files

#: Bytes of a page: 4 KiB, or on aarch64 also 16 or 64.
PAGE = mmap.PAGESIZE

#: Pages from this size on need not be huge for a disk: 16 MiB of them are as many as one of its requests takes.
LARGE_PAGE = 64 << 10

_ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
_SIZE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
_LIMIT = 1 << 10


def has_huge_pages() -> bool:
    """Return whether the kernel gives huge pages to memory that asks for them."""
    with suppress(OSError):
        return b"[never]" not in whole_files.read_file(_ENABLED, _LIMIT)
    return False


def huge_page_bytes() -> int | None:
    """Return the size of a huge page: 2 MiB, or with pages of 64 KiB, 512; `None` where the kernel has none."""
    with suppress(OSError, ValueError):
        return int(whole_files.read_file(_SIZE, _LIMIT))
    return None
