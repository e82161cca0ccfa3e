"""What is read and written is dropped from the page cache behind the cursor: the kernel is asked."""

from __future__ import annotations

import ctypes
import mmap
import os
from os import fsync
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.families import find
from streamconv.storage.mounts import Mount, mount_of
from support.running import run

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """107 MiB of bfloat16, on disk."""
    folder = tmp_path_factory.mktemp("page_cache") / "source"
    samples.write_hf(folder, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 40_000_000)
    if (mount_of(folder) or Mount("", "", "")).kind in ("tmpfs", "ramfs"):
        pytest.skip("on tmpfs the page cache is the file")
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        fsync(descriptor)
        os.close(descriptor)
    return folder


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def cached(folder: Path) -> tuple[int, int]:
    """How many pages of the files are in the cache, and how many there are.

    The kernel is asked by mincore: a read with RWF_NOWAIT starts to read what is not there, and may find it at once.
    """
    pages = b"".join(_pages(path) for path in folder.glob("*.safetensors"))
    return sum(page & 1 for page in pages), len(pages)


def _pages(path: Path) -> bytes:
    size = path.stat().st_size
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with path.open("rb") as file:
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    assert address != ctypes.c_void_p(-1).value
    assert _LIBC.mincore(address, size, pages) == 0, os.strerror(ctypes.get_errno())
    _LIBC.munmap(address, size)
    return pages.raw


@pytest.mark.parametrize("io", ["read", "direct"])
@pytest.mark.parametrize("words", [(), ("--dtype", "fp32"), ("-o", "use_gmm=true")], ids=["same", "widened", "turned"])
def test_nothing_stays_in_the_page_cache(source: Path, tmp_path: Path, io: str, words: tuple[str, ...]) -> None:
    for path in source.iterdir():
        path.read_bytes()
    before, total = cached(source)
    assert before == total

    ended = run("convert", source, tmp_path / "dest", *words, "--io", io, "--max-mem", "200M", "--quiet")

    assert ended.code == 0, ended.err
    for folder in (source, tmp_path / "dest"):
        after, total = cached(folder)
        assert after <= 0.05 * total, folder


def test_what_is_verified_does_not_stay(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    run("convert", source, dest, "--max-mem", "200M", "--quiet")
    for words in ((dest,), (source, dest, "--max-mem", "200M")):
        for path in dest.iterdir():
            path.read_bytes()
        assert cached(dest)[0] > 0
        ended = run("verify", *words, "--quiet")
        assert ended.code == 0, ended.err
        after, total = cached(dest)
        assert after <= 0.05 * total, words


def test_what_is_read_lazily_stays(source: Path) -> None:
    """Who opens a checkpoint may come back to it."""
    checkpoint = streamconv.open(source)
    for name in checkpoint:
        checkpoint[name][:]
    before, total = cached(source)
    assert before == total
