"""streamconv.ranks.first_bytes: tensors whose copies begin differently."""

from array import array
from pathlib import Path

import pytest

from streamconv.errors import SourceError
from streamconv.ranks import first_bytes
from streamconv.tensors import dtypes
from streamconv.tensors.extents import SourceFile
from streamconv.tensors.refs import TensorRef
from streamconv.tensors.slices import Slices


@pytest.fixture
def held(tmp_path):
    """Tensors of bytes that ranks hold whole, each rank in one file."""

    def run(**copies):
        contents = [b"" for _ in next(iter(copies.values()))]
        tables = {name: array("q") for name in copies}
        for name, of_ranks in copies.items():
            for rank, data in enumerate(of_ranks):
                if data is not None:
                    tables[name].extend((rank, rank, len(contents[rank]), len(data)))
                    contents[rank] += data
        files = []
        for rank, content in enumerate(contents):
            path = tmp_path / f"rank_{rank}"
            path.write_bytes(content)
            stat = path.stat()
            files.append(SourceFile(Path(path), stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return [
            TensorRef(
                name,
                dtypes.from_safetensors("U8", name),
                (size := len(next(data for data in copies[name] if data is not None)),),
                (),
                None,
                Slices((1,), (size,), files, table, array("q", [0, len(table) // 4])),
            )
            for name, table in tables.items()
        ]

    return run


def test_which_differ_and_in_which_ranks(held):
    refs = held(
        same=[b"abc"] * 3,
        last=[b"abc", b"abc", b"abd"],
        both=[b"abc", b"xbc", b"ybc"],
        absent=[None, b"abc", b"abd"],
        empty=[b""] * 3,
    )
    assert sorted(first_bytes.differing(refs)) == [("absent", 1, 2), ("both", 0, 1), ("last", 0, 2)]


def test_only_the_first_bytes_are_compared(held):
    assert not [*first_bytes.differing(held(late=[b"a" * 4096 + b"x", b"a" * 4096 + b"y"]))]
    assert [*first_bytes.differing(held(late=[b"a" * 4095 + b"x", b"a" * 4095 + b"y"]))]


def test_each_file_is_opened_once(held, monkeypatch):
    refs = held(**{f"t{number}": [b"ab", b"ab"] for number in range(9)})
    opened = []
    real = first_bytes.opened
    monkeypatch.setattr(first_bytes, "opened", lambda path: opened.append(path) or real(path))
    assert not [*first_bytes.differing(refs)]
    assert len(opened) == 2


def test_a_file_that_is_gone(held):
    refs = held(t=[b"ab", b"ab"])
    refs[0].slices.files[1].path.unlink()
    with pytest.raises(SourceError, match="rank_1"):
        [*first_bytes.differing(refs)]


def test_tensors_of_one_rank_have_nothing_to_compare(held):
    assert not [*first_bytes.differing([TensorRef("w", dtypes.F32, (2,), ())])]
