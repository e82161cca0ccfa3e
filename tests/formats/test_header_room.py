"""Headers that the memory limit does not allow are refused with a limit that does: wherever headers are parsed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.configs import model_config
from streamconv.engine import budget
from streamconv.errors import BudgetError, SourceError
from streamconv.formats import header_room, headers, shards
from streamconv.formats.catalog import open_catalog
from streamconv.formats.header_room import HeaderRoom
from streamconv.output import manifest
from streamconv.units import parse_size
from support import hostile, running
from support.helpers import text_of

MIB = 1 << 20
Read = Callable[[Path, HeaderRoom], object]


def many(unit: str, count: int) -> bytes:
    return ",".join(unit % number for number in range(count)).encode()


def opened(path: Path, header_room: HeaderRoom) -> object:
    return open_catalog(path, lambda: header_room)


def indexed(path: Path, header_room: HeaderRoom) -> object:
    return shards.read_index(path, header_room)


def pairs(count: int, unit: bytes = b"M%c%c]") -> bytes:
    """A pickle of a dictionary of that many pairs, and of one that a model may have."""
    dictionary = b"}(" + b"".join(unit % (n & 255, n >> 8 & 255) for n in range(count)) + b"u"
    return b"\x80\x02" + dictionary + b"."


def tensors() -> bytes:
    return hostile.encode(b"{" + many('"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', 30_000) + b"}")


#: What is parsed, by the words of the message: file, content, what reads it, and whether its cost is known exactly.
PLACES: dict[str, tuple[str, Callable[[], bytes], Read, bool]] = {
    "the header of x.safetensors": ("x.safetensors", tensors, opened, True),
    "model.safetensors.index.json": (
        shards.HF_INDEX,
        lambda: b'{"weight_map":{' + many('"a.%x":"a"', 150_000) + b"}}",
        indexed,
        True,
    ),
    "the part of x.ckpt that is not tensor content": (
        "x.ckpt",
        lambda: b"".join(hostile.record(b"%x" % i, (), b"UInt8", b"a") for i in range(30_000)),
        opened,
        True,
    ),
    "the zip directory of x.bin": (
        "x.bin",
        lambda: hostile.zipped({"a/data.pkl": b"\x80\x02}.", **{f"a/{i:x}": b"" for i in range(25_000)}}),
        opened,
        True,
    ),
    "the pickle of x.bin (1": ("x.bin", lambda: hostile.zipped({"a/data.pkl": pairs(250_000)}), opened, False),
    "the pickle of x.bin (4": ("x.bin", lambda: hostile.zipped({"a/data.pkl": pairs(100_000)}), opened, True),
    "config.json": (
        "config.json",
        lambda: b'{"x":{' + many('"%x":[]', 120_000) + b"}}",
        lambda path, room: model_config.load(path.parent, None, room),
        True,
    ),
    "streamconv.json": (
        "streamconv.json",
        lambda: b'{"manifest":1,"x":{' + many('"%x":[]', 120_000) + b"}}",
        lambda path, room: manifest.find(path.parent, room),
        True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_limit_that_is_named_suffices(place: str, tmp_path: Path) -> None:
    name, content, read, is_exact = PLACES[place]
    path = tmp_path / name
    path.write_bytes(content())

    def refused(limit: int) -> BudgetError | None:
        try:
            read(path, budget.header_room(limit))
        except BudgetError as error:
            return error
        except SourceError as error:
            assert "holds no" in str(error) or "lacks" in str(error)
        except Exception as error:
            assert "holds no state dict" in str(error)
        return None

    error = refused(1)
    assert error is not None
    assert error.exit_code == 6
    assert place in text_of(error)
    named = re.fullmatch(r'give max_mem="(\d+M)" or more', text_of(error).split("; ")[-1])
    assert named
    assert refused(parse_size(named[1])) is None
    if is_exact:
        # It has room for what comes after the header, too.
        assert refused(parse_size(named[1]) // 2) is not None


@pytest.mark.slow
def test_the_command_line_names_a_limit_that_suffices(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(tensors())
    words = ("plan", "x.safetensors", "y", "--model", "raw", "--max-mem")
    refused = running.run(*words, "64M", cwd=tmp_path)
    assert refused.code == 6
    named = re.search(r"^hint: give --max-mem (\d+M) or more$", refused.err, re.MULTILINE)
    assert named, refused.err
    done = running.run(*words, named[1], cwd=tmp_path)
    assert done.code == 0 or "the header of" not in done.err, done.err


def test_without_a_limit_the_most_that_a_format_allows_is_read() -> None:
    room = HeaderRoom()
    room.check(header_room.MAX_HEADER, "it")
    with pytest.raises(
        SourceError, match="it is too large: it counts as 100000001 bytes of header, and 100000000 are allowed"
    ):
        room.check(header_room.MAX_HEADER + 1, "it")


def test_what_one_header_takes_the_next_does_not_have() -> None:
    room = HeaderRoom(5 * MIB, 200 * MIB, 100 * MIB, 20)
    left = room.less(3 * MIB)
    assert left == HeaderRoom(2 * MIB, 200 * MIB, 160 * MIB, 20)
    left.check(2 * MIB, "it")
    with pytest.raises(BudgetError, match=r'max_mem="240M"'):
        left.check(4 * MIB, "it")
    assert room.less(9 * MIB).nbytes == 0


def test_of_json_that_is_too_long_to_count_every_byte_may_be_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"{" + b" " * 3000 + b"}")
    for most, size in ((1 << 30, "58.63 KiB"), (1000, "410.4 KiB")):
        monkeypatch.setattr(headers, "_MOST_COUNTED", most)
        with pytest.raises(BudgetError, match=f"needs {size} of memory"):
            shards.read_index(tmp_path / "x", HeaderRoom(2000, 40_000, 0, 20))


@pytest.mark.parametrize(
    ("name", "is_plain", "is_portable"),
    [
        ("a.safetensors", True, True),
        ("..", False, False),
        (".", False, False),
        ("", False, False),
        ("a/b", False, False),
        ("a\0", False, False),
        ("...", True, True),
        ("a\\b", True, False),
        ("\udc80", True, False),
        ("\ud800", False, False),
    ],
)
def test_plain_names(name: str, is_plain: bool, is_portable: bool) -> None:
    assert headers.is_plain_name(name) is is_plain
    assert headers.is_plain_name(name, portable=True) is is_portable
