"""Reading: in every way, whole or in parts, across slices: the same bytes; and a file that changed is noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import streamconv
from streamconv.engine.open_files import check_unchanged
from streamconv.engine.reader import Reader
from streamconv.engine.windows import bits
from streamconv.errors import SourceError
from streamconv.formats import ckpt, safetensors
from streamconv.formats.catalog import open_catalog
from streamconv.storage import access, device, disk, limits
from streamconv.storage.access import Access
from streamconv.storage.regions import Region
from streamconv.tensors import dtypes, views
from streamconv.tensors.arrays import Bits
from streamconv.tensors.grids import Box
from streamconv.tensors.refs import TensorRef, TensorSpec
from support import FIXTURES, golden, running

pytestmark = pytest.mark.usefixtures("short_is_long_enough")

SPEC = TensorSpec("t", dtypes.F32, (11, 53, 5))


def stored(folder: Path, slice_bytes: int | None = None, spec: TensorSpec = SPEC) -> TensorRef:
    """A tensor in a `.ckpt`, cut into slices of so many bytes."""
    size = {"slice_bytes": slice_bytes} if slice_bytes else {}
    golden.write(folder / "a.ckpt", ckpt.lay_out("a.ckpt", [spec], **size), {spec.name: golden.golden_bytes(spec)})
    return open_catalog(folder / "a.ckpt")[spec.name]


def placed(reader: Reader, view: views.View, dtype: dtypes.DType) -> bytes:
    target = np.empty(int(np.prod(view.shape)), bits(dtype))
    reader.fill(view, tuple((0, n) for n in view.shape), target, dtype)
    return target.tobytes()


def as_stored(reader: Reader, view: views.View, box: Box, dtype: dtypes.DType) -> Bits | None:
    """The box as it lies in the source, `None` where it was moved into other memory."""
    spare = Region(SPEC.nbytes)
    found, _ = reader.read(view, box, dtype, spare)
    moved = spare.array(len(found), bits(dtype))
    return None if np.shares_memory(found, moved) else found


@pytest.mark.slow
@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("slice_bytes", [None, 4096, 1001, 37])
@pytest.mark.parametrize("region", [64, 1000, 1 << 20])
def test_regions_and_slices_change_nothing(
    access: Access, slice_bytes: int | None, region: int, tmp_path: Path
) -> None:
    """1001 and 37 bytes end in the middle of elements."""
    ref = stored(tmp_path, slice_bytes)
    assert len(ref.extents) == (1 if slice_bytes is None else -(-SPEC.nbytes // slice_bytes))
    reader, view = Reader(region, access), views.leaf(ref)
    expected = np.frombuffer(golden.golden_bytes(SPEC), np.float32).reshape(SPEC.shape)
    assert placed(reader, view, dtypes.F32) == expected.tobytes()
    turned = views.permute(view, (2, 0, 1))
    assert placed(reader, turned, dtypes.F32) == expected.transpose(2, 0, 1).tobytes()
    part = views.cut(view, 1, 7, 50, 3)
    assert placed(reader, part, dtypes.F32) == expected[:, 7:50:3].tobytes()
    reader.close()


@pytest.mark.parametrize("access", Access)
def test_contiguous_boxes_come_as_they_lie(access: Access, tmp_path: Path) -> None:
    ref = stored(tmp_path)
    view, reader = views.leaf(ref), Reader(1 << 20, access)
    expected = np.frombuffer(golden.golden_bytes(SPEC), np.uint32).reshape(SPEC.shape)
    found = as_stored(reader, view, ((3, 9), (0, 53), (0, 5)), dtypes.F32)
    assert found is not None
    assert np.array_equal(found, expected[3:9].reshape(-1))
    assert reader.bytes_read == 6 * 53 * 5 * 4
    for box, dtype in (
        (((3, 9), (0, 52), (0, 5)), dtypes.F32),
        (((3, 9), (0, 53), (0, 5)), dtypes.BF16),
    ):
        assert as_stored(reader, view, box, dtype) is None
    assert as_stored(reader, views.permute(view, (1, 0, 2)), ((0, 53), (3, 4), (0, 5)), dtypes.F32) is not None
    assert as_stored(reader, views.permute(view, (1, 0, 2)), ((0, 53), (3, 5), (0, 5)), dtypes.F32) is None
    assert as_stored(Reader(64, access), view, ((3, 9), (0, 53), (0, 5)), dtypes.F32) is None


@pytest.mark.parametrize("kind", ["dest", "dest.ckpt"])
@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_every_way_gives_the_same_bytes(kind: str, dtype: str | None, tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    trees = []
    for io in ("read", "direct", "auto"):
        (tmp_path / io).mkdir()
        streamconv.convert(source, tmp_path / io / kind, io=io, dtype=dtype, options={"qkv_concat": True})
        trees.append(running.tree(tmp_path / io))
    assert all(tree == trees[0] for tree in trees)


@pytest.mark.parametrize("slice_bytes", [1000, 1001, 37])
@pytest.mark.parametrize("io", ["read", "direct"])
def test_a_sliced_ckpt_converts_as_a_whole_one(slice_bytes: int, io: str, tmp_path: Path) -> None:
    streamconv.convert(running.tiny(tmp_path / "hf"), tmp_path / "whole.ckpt", options={"qkv_concat": True})
    refs = open_catalog(tmp_path / "whole.ckpt")
    specs = [TensorSpec(r.name, r.dtype, r.shape) for r in refs.values()]
    file = ckpt.lay_out("sliced.ckpt", specs, slice_bytes=slice_bytes)
    golden.write(tmp_path / "sliced.ckpt", file, {n: golden.stored_bytes(r) for n, r in refs.items()})
    assert max(len(r.extents) for r in open_catalog(tmp_path / "sliced.ckpt").values()) > 1
    words = {"reverse": True, "model": "llama", "config": tmp_path / "hf", "options": {"qkv_concat": True}}
    streamconv.convert(tmp_path / "whole.ckpt", tmp_path / "a", **words)
    streamconv.convert(tmp_path / "sliced.ckpt", tmp_path / "b", io=io, **words)
    assert running.tree(tmp_path / "a") == running.tree(tmp_path / "b")
    assert golden.found(tmp_path / "b") == golden.found(tmp_path / "hf")


def test_mindspores_uneven_slices(tmp_path: Path) -> None:
    for name in ("sliced_1KiB", "sliced_1KiB_crc", "sliced_async_uneven_1KiB"):
        source = FIXTURES / f"{name}.ckpt"
        assert any(len(r.extents) > 1 for r in open_catalog(source).values())
        for io in ("read", "direct"):
            streamconv.convert(source, tmp_path / f"{name}-{io}", model="raw", io=io)
            assert golden.found(tmp_path / f"{name}-{io}") == golden.found(source)


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("change", [-1, -4000, 1])
def test_a_file_of_another_length_is_noticed_before_it_is_touched(access: Access, change: int, tmp_path: Path) -> None:
    view = views.leaf(stored(tmp_path))
    path = tmp_path / "a.ckpt"
    reader = Reader(4096, access)
    box = ((0, 1), (0, 1), (0, 5))
    reader.fill(view, box, np.empty(5, np.uint32), dtypes.F32)
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(SourceError, match=rf"it had {size} bytes, now it has {size + change}\nhint: run again"):
        reader.fill(view, box, np.empty(5, np.uint32), dtypes.F32)


def test_a_file_that_shrinks_behind_our_back(tmp_path: Path, monkeypatch) -> None:
    """Between the look at its length and the reading: refused as well, whatever the access."""
    view = views.leaf(stored(tmp_path))
    path = tmp_path / "a.ckpt"
    size = path.stat().st_size
    box = tuple((0, n) for n in SPEC.shape)
    os.truncate(path, 5000)
    fstat = os.fstat

    def before(descriptor: int) -> os.stat_result:
        values = list(fstat(descriptor))
        values[6] = size
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", before)
    for each in Access:
        with pytest.raises(SourceError, match=r"a\.ckpt changed during the run"):
            Reader(1 << 20, each).fill(view, box, np.empty(SPEC.nbytes // 4, np.uint32), dtypes.F32)


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("access", Access)
def test_another_file_of_the_same_size_and_time(access: Access, is_open: bool, tmp_path: Path) -> None:
    """Opened, the one that was looked at is read; opened again, and at the end, the other is noticed."""
    ref, path = stored(tmp_path), tmp_path / "a.ckpt"
    view, reader, before = views.leaf(ref), Reader(4096, access), path.stat()
    if is_open:
        placed(reader, view, dtypes.F32)
    _replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    words = r"a\.ckpt changed during the run: it was replaced by another file of the same size and modification time"
    if is_open:
        assert placed(reader, view, dtypes.F32) == golden.golden_bytes(SPEC)
    else:
        with pytest.raises(SourceError, match=words):
            placed(reader, view, dtypes.F32)
    with pytest.raises(SourceError, match=words):
        check_unchanged([ref.extents[0].file])


@pytest.mark.parametrize("change", [lambda p: p.chmod(0o600), lambda p: os.link(p, p.with_name("link")), os.utime])
def test_what_a_backup_does_to_a_file_does_not_count(change, tmp_path: Path) -> None:
    view, path = views.leaf(stored(tmp_path)), tmp_path / "a.ckpt"
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert placed(Reader(4096, Access.READ), view, dtypes.F32) == golden.golden_bytes(SPEC)


@pytest.mark.parametrize("access", Access)
def test_a_file_that_is_gone(access: Access, tmp_path: Path) -> None:
    view = views.leaf(stored(tmp_path))
    (tmp_path / "a.ckpt").unlink()
    with pytest.raises(SourceError, match=r"cannot open .*a\.ckpt: No such file or directory"):
        placed(Reader(4096, access), view, dtypes.F32)


def test_an_error_of_the_device(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **more: object) -> int:
        raise OSError(5, "Input/output error")

    view = views.leaf(stored(tmp_path))
    monkeypatch.setattr(os, "preadv", fail)
    for each in Access:
        with pytest.raises(
            SourceError, match=r"cannot read byte .*a\.ckpt: Input/output error\nhint: the device reports an I/O error"
        ):
            placed(Reader(4096, each), view, dtypes.F32)


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    specs = [TensorSpec(f"t{i}", dtypes.F32, (3,)) for i in range(20)]
    refs = []
    for spec in specs:
        name = f"{spec.name}.safetensors"
        golden.write(tmp_path / name, safetensors.lay_out(name, [spec], {}), {spec.name: golden.golden_bytes(spec)})
        refs.append(open_catalog(tmp_path / name)[spec.name])
    reader = Reader(4096, Access.DIRECT)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for ref, spec in zip([*refs, *refs], [*specs, *specs], strict=True):
        assert placed(reader, views.leaf(ref), dtypes.F32) == golden.golden_bytes(spec)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2 * 8
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_fewer_files_are_open_where_the_process_may_have_few(tmp_path: Path, monkeypatch) -> None:
    refs, opened = [], []
    for number in range(12):
        name = f"{number}.safetensors"
        spec = TensorSpec(f"t{number}", dtypes.F32, (3,))
        golden.write(tmp_path / name, safetensors.lay_out(name, [spec], {}), {spec.name: golden.golden_bytes(spec)})
        refs.append(open_catalog(tmp_path / name)[spec.name])
    for allowed, at_most in ((16, 1), (64, 4), (1 << 20, 8), (None, 8)):
        monkeypatch.setattr(limits, "open_files", lambda allowed=allowed: allowed)
        reader = Reader(4096, Access.READ)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for ref in refs:
            placed(reader, views.leaf(ref), dtypes.F32)
        opened.append(len(list(Path("/proc/self/fd").iterdir())) - before)
        reader.close()
        assert opened[-1] == at_most

    open_file, left = disk.open_file, [5]

    def few(path: Path, flags: int, mode: int = 0o666) -> int:
        left[0] -= 1
        if left[0] < 0:
            left[0] = 1
            raise OSError(errno.EMFILE, "Too many open files")
        return open_file(path, flags, mode)

    monkeypatch.setattr(disk, "open_file", few)
    reader = Reader(4096, Access.READ)
    for ref in refs:
        placed(reader, views.leaf(ref), dtypes.F32)
    reader.close()
    monkeypatch.setattr(disk, "open_file", running.failing(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(SourceError, match=r"Too many open files\nhint: raise the limit on open files \(ulimit -n\)"):
        placed(Reader(4096, Access.READ), views.leaf(refs[0]), dtypes.F32)


def test_what_the_system_refuses_to_read_directly_is_read_through_the_page_cache(tmp_path: Path, monkeypatch) -> None:
    """All of it, or from where it refuses on: a file system may change its mind in the middle of a file."""
    view, read_into = views.leaf(stored(tmp_path)), disk.read_into
    direct = set()
    open_direct = device.open_direct

    def opened(descriptor: int, flags: int) -> int | None:
        if (found := open_direct(descriptor, flags)) is not None:
            direct.add(found)
        return found

    def refusing(after: int, count: int):
        left = [after]

        def read(descriptor: int, target: memoryview, offset: int) -> int:
            if descriptor not in direct:
                return read_into(descriptor, target, offset)
            left[0] -= 1
            if left[0] < 0:
                raise OSError(22, "Invalid argument")
            return read_into(descriptor, target[:count], offset)

        return read

    monkeypatch.setattr(device, "open_direct", opened)
    for after, count in ((0, 4096), (1, 4096), (2, 4096), (1, 8192)):
        monkeypatch.setattr(disk, "read_into", refusing(after, count))
        reader = Reader(1 << 20, Access.DIRECT)
        assert placed(reader, view, dtypes.F32) == golden.golden_bytes(SPEC)
        reader.close()
    assert direct or not hasattr(os, "O_DIRECT")


def test_the_file_that_was_looked_at_is_the_one_read_directly(tmp_path: Path, monkeypatch) -> None:
    """Another of its name may take its place between the two times that it is opened."""
    view, open_direct = views.leaf(stored(tmp_path)), device.open_direct

    def replaced_before(descriptor: int, flags: int) -> int | None:
        (tmp_path / "other").write_bytes(bytes((tmp_path / "a.ckpt").stat().st_size))
        (tmp_path / "other").replace(tmp_path / "a.ckpt")
        return open_direct(descriptor, flags)

    monkeypatch.setattr(device, "open_direct", replaced_before)
    assert placed(Reader(1 << 20, Access.DIRECT), view, dtypes.F32) == golden.golden_bytes(SPEC)


def test_nothing_is_read_directly_that_is_short(tmp_path: Path, monkeypatch) -> None:
    """A part of a tensor may be shorter than a whole one: nothing beside it is wanted now."""
    read_blocks, directly = device.read_blocks, []
    monkeypatch.setattr(device, "read_blocks", lambda *a: directly.append(a) or read_blocks(*a))
    monkeypatch.setattr(access, "DIRECT_LEAST", SPEC.nbytes + 1)
    monkeypatch.setattr(access, "DIRECT_LEAST_OF_PART", 4 * 53 * 5)
    ref = stored(tmp_path)
    view, reader = views.leaf(ref), Reader(1 << 20, Access.DIRECT)
    with ref.extents[0].file.path.open("rb") as file:
        direct = device.open_direct(file.fileno(), os.O_RDONLY)
    if direct is None:
        pytest.skip("the file system has no way past the page cache")
    os.close(direct)
    assert placed(reader, view, dtypes.F32) == golden.golden_bytes(SPEC)
    assert not directly
    for rows, count in ((52, 0), (53, 1)):
        target = np.empty(rows * 5, np.uint32)
        reader.fill(view, ((3, 4), (0, rows), (0, 5)), target, dtypes.F32)
        expected = np.frombuffer(golden.golden_bytes(SPEC), np.uint32).reshape(SPEC.shape)[3, :rows]
        assert np.array_equal(target, expected.reshape(-1))
        assert len(directly) == count
