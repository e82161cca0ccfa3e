"""Builds real files from what `lay_out` says, the dumb way: every byte in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from streamconv.tensors.refs import OutputFile, TensorRef
from support import FIXTURES, helpers


def file_bytes(output: OutputFile, data: Mapping[str, bytes]) -> bytes:
    """The whole file; fails if literals and extents do not tile it exactly."""
    pieces = dict(output.literals)
    for name, extents in output.extents.items():
        at = 0
        for offset, length in extents:
            piece = data[name][at : at + length]
            assert len(piece) == length
            if length:
                assert offset not in pieces
                pieces[offset] = piece
            at += length
        assert at == len(data[name])
    out = b""
    for offset, piece in sorted(pieces.items()):
        assert offset == len(out)
        out += piece
    assert len(out) == output.size
    return helpers.with_checksums(output, out)


def ref_bytes(ref: TensorRef) -> bytes:
    out = b""
    for extent in ref.extents:
        assert extent.file.size == extent.file.path.stat().st_size
        out += extent.file.path.read_bytes()[extent.offset : extent.offset + extent.length]
    assert len(out) == ref.nbytes == sum(extent.length for extent in ref.extents)
    return out


@pytest.fixture(name="file_bytes", scope="session")
def _file_bytes() -> Callable[[OutputFile, Mapping[str, bytes]], bytes]:
    return file_bytes


@pytest.fixture(name="ref_bytes", scope="session")
def _ref_bytes() -> Callable[[TensorRef], bytes]:
    return ref_bytes


@pytest.fixture(scope="session")
def samples() -> Path:
    """Files that MindSpore 2.10 wrote, described by samples.json."""
    return FIXTURES
