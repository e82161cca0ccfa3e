"""Sources and destinations on a mount that offers no mmap: nothing has to be mapped."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

import streamconv
from streamconv.formats import safetensors
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, no_mapping, running
from support.running import run

#: Longer than what is read and written past the page cache alone.
WIDE = {"hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    folder.mkdir()
    return folder


@pytest.fixture
def env(tmp_path: Path, mount: Path) -> dict[str, str]:
    return no_mapping.environment(tmp_path, mount)


def test_mapping_fails_there(mount: Path, env: dict[str, str]) -> None:
    (mount / "file").write_bytes(bytes(8192))
    code = f"import mmap; f = open({str(mount / 'file')!r}, 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
    done = subprocess.run([sys.executable, "-c", code], env=running.environment(env), capture_output=True, check=False)
    assert b"OSError: [Errno 19] No such device" in done.stderr


@pytest.mark.parametrize("io", ["auto", "read", "direct"])
def test_what_cannot_be_mapped_is_read(io: str, mount: Path, env: dict[str, str], tmp_path: Path) -> None:
    source, plain = running.tiny(mount / "hf", 1 << 30, **WIDE), tmp_path / "plain"
    streamconv.convert(source, plain)
    for dest in (mount / "ms", mount / "one.ckpt"):
        for words in (("convert", source, dest), ("verify", source, dest), ("diff", dest, plain)):
            ended = run(*words, "--io", io, env=env)
            assert ended.code == 0, ended.err
        assert run("verify", dest, env=env).code == 0
    assert running.tree(mount / "ms") == running.tree(plain)
    for back in (mount / "back.bin", mount / "back"):
        assert run("convert", mount / "ms", back, "--reverse", "--io", io, env=env).code == 0
        assert run("diff", source, back, "--io", io, env=env).code == 0
        assert run("inspect", back, env=env).code == 0


def test_a_damaged_header_is_refused_there_too(mount: Path, env: dict[str, str], tmp_path: Path) -> None:
    source = running.tiny(mount / "hf")
    running.flip(next(source.glob("*.safetensors")), 12)
    assert run("convert", source, tmp_path / "ms", env=env).code == 3


def test_a_file_larger_than_the_address_space(tmp_path: Path) -> None:
    """It cannot be mapped either, and need not be."""
    path = tmp_path / "model.safetensors"
    spec = TensorSpec("t", dtypes.F32, (75 << 20,))
    golden.write(path, replace(safetensors.lay_out(path.name, [spec], {}), extents={}), {})  # zeros
    most = 280 << 20
    ended = run(
        *("convert", path, tmp_path / "dest", "--model", "raw", "--max-mem", "128M", "--quiet"),
        prepare=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    assert ended.code == 0, ended.err
