"""What is read and written is dropped from the page cache behind the cursor: the kernel is asked."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.families import find
from streamconv.storage.mounts import Mount, mount_of
from support.running import run

MIB = 1 << 20
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
        os.fsync(descriptor)
        os.close(descriptor)
    return folder


def cached(folder: Path) -> tuple[int, int]:
    """How many of the files' MiB have their first page in the cache, and how many there are."""
    found = total = 0
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        # Or else the first look would have the kernel read ahead, and the next ones find that.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, path.stat().st_size, MIB):
            total += 1
            with contextlib.suppress(BlockingIOError):
                found += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        os.close(descriptor)
    return found, total


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
