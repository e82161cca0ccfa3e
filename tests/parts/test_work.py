"""Parts converted in any order, by anybody, stopped anywhere: put together, they are what one run writes."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import conversion, plans
from streamconv.errors import DestinationError, SourceChangedError, StorageError, VerificationError
from streamconv.output import manifest
from streamconv.parts import leases, work
from streamconv.parts.cutting import Part
from streamconv.parts.scopes import Scopes
from streamconv.tensors.grids import whole
from support import golden_ranks, parts, running
from support.parts import small_parts, work_on
from support.running import StoppedError

WAYS: dict[str, dict[str, Any]] = {
    "shards": {"max_shard_size": "30KB"},
    "one.ckpt": {"crc": True, "dtype": "fp16"},
    "cast": {"dtype": "fp32", "verify": True},
    "one.bin": {"model": "raw"},
}


def both(way: str, tmp_path: Path) -> tuple[Path, Path, Path, dict[str, Any]]:
    """A source, the result of one run, the place for that of the parts, and what is asked."""
    source = running.with_large_values(running.llama(tmp_path / "hf"))
    arguments = dict(WAYS[way])
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    streamconv.convert(source, tmp_path / "one" / way, **arguments)
    return source, tmp_path / "one", tmp_path / "many" / way, arguments


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_any_order_gives_the_bytes_of_one_run(way: str, tmp_path: Path) -> None:
    with small_parts():
        source, one, dest, arguments = both(way, tmp_path)
        report = parts.convert(source, dest, parts.shuffled(1), **arguments)
    assert running.tree(dest.parent) == running.tree(one)
    assert report.read_bytes >= report.prepared.mapping.nbytes // 4
    assert report.resumed_bytes == 0 and not report.waiting
    assert bool(report.overflowed) == ("fp16" in arguments.values())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_parts_that_are_stopped_are_resumed_by_others(way: str, seed: int, tmp_path: Path) -> None:
    """Each is stopped up to three times, at a random moment, and some of what was written is lost with the journals."""
    luck = random.Random(f"{way}{seed}")
    with small_parts():
        source, one, dest, arguments = both(way, tmp_path)
        planned = plans.plan(source, dest, **arguments)

        def stop(progress: streamconv.Progress) -> None:
            if luck.random() < 0.3:
                raise StoppedError

        def spread(every: Any, done: int, hold: Any) -> int:
            for part in luck.sample(list(every), len(every)):
                for attempt in range(4):
                    try:
                        found = work_on(planned).convert(part.number, stop if attempt < 3 else None)
                    except StoppedError:
                        continue
                    assert found.written <= planned.mapping.nbytes
                    break
            return 0

        conversion.run_spread(planned, spread)
    assert running.tree(dest.parent) == running.tree(one)


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", ["alone", "in parts"])
def test_what_parts_left_is_resumed(goes_on: str, tmp_path: Path) -> None:
    """By one process, and what that left by parts again."""
    with small_parts():
        source, one, dest, arguments = both("one.ckpt", tmp_path)
        written = []

        def first_half(every: Any, done: int, hold: Any) -> int:
            half = every[: len(every) // 2]
            written.extend(work_on(plans.plan(source, dest, **arguments)).convert(part.number).written for part in half)
            raise StoppedError

        with pytest.raises(StoppedError):
            conversion.run_spread(plans.plan(source, dest, **arguments), first_half)
        if goes_on == "alone":
            report = streamconv.convert(source, dest, **arguments)
        else:
            report = parts.convert(source, dest, parts.shuffled(2), **arguments)
    assert running.tree(dest.parent) == running.tree(one)
    assert report.resumed_bytes == sum(written) > 0


@pytest.mark.parametrize("half", [0, 1])
def test_a_scalar_across_two_parts_is_written_by_both(half: int, tmp_path: Path) -> None:
    """With only one of the two parts on record, the other part's bytes of it are still to be written."""
    source = running.scalars(tmp_path / "model.safetensors", 4000, ((), (1,)))
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    dest = tmp_path / "many" / "out.ckpt"
    with small_parts():
        streamconv.convert(source, tmp_path / "one" / "out.ckpt", model="raw")
        planned = plans.plan(source, dest, model="raw")
        every = work.cut_parts(planned.mapping, planned.layout)
        found = [*map(Scopes(planned.mapping, planned.layout).of, every)]
        shared = [
            n for scope in found for n in scope.outputs if scope.is_shared(n, whole(planned.outputs[n].view.shape))
        ]
        assert len(shared) == 2 * len(set(shared)) > 0

        def every_other(cut: Any, done: int, hold: Any) -> int:
            for part in cut[half::2]:
                work_on(plans.plan(source, dest, model="raw")).convert(part.number)
            raise StoppedError

        with pytest.raises(StoppedError):
            conversion.run_spread(planned, every_other)
        streamconv.convert(source, dest, model="raw")
    assert running.tree(dest.parent) == running.tree(tmp_path / "one")


def test_what_one_process_left_is_resumed_in_parts(tmp_path: Path) -> None:
    with small_parts():
        source, one, dest, arguments = both("shards", tmp_path)
        seen = []

        def stop(progress: streamconv.Progress) -> None:
            if progress.done > progress.total // 2:
                raise StoppedError

        with pytest.raises(StoppedError):
            streamconv.convert(source, dest, progress=stop, workers=1, **arguments)

        def note(every: list[Part]) -> list[Part]:
            seen.extend(every)
            return every

        report = parts.convert(source, dest, note, **arguments)  # type: ignore[arg-type]
        assert len(seen) < len(work.cut_parts(report.prepared.mapping, report.prepared.layout))
    assert running.tree(dest.parent) == running.tree(one)
    assert report.resumed_bytes > 0


@pytest.mark.parametrize("start", ["d04", "d07", "d14"])
def test_ranks_cut_and_merged(start: str, tmp_path: Path) -> None:
    """Slices lie in the files of several ranks: each part writes its own."""
    one = golden_ranks.case(start)
    arguments: dict[str, Any] = {"model": "raw", "dest_strategy": one.strategy_files, "verify": True}
    with small_parts(least=1 << 10):
        streamconv.convert(one.folder, tmp_path / "one", **arguments)
        parts.convert(one.folder, tmp_path / "many", parts.shuffled(3), **arguments)
        streamconv.convert(one.folder, tmp_path / "merged", model="raw")
        parts.convert(one.folder, tmp_path / "merged in parts", parts.shuffled(4), model="raw")
    assert running.tree(tmp_path / "many") == running.tree(tmp_path / "one")
    assert running.tree(tmp_path / "merged in parts") == running.tree(tmp_path / "merged")


def begun(tmp_path: Path, **arguments: Any) -> tuple[Path, Path, conversion.Plan]:
    source, dest = running.llama(tmp_path / "hf"), tmp_path / "ms"
    planned = plans.plan(source, dest, max_shard_size="30KB", **arguments)
    conversion.begin_shared(planned)
    return source, dest, planned


def test_another_source_is_refused(tmp_path: Path) -> None:
    """Same names and shapes, other files: what a host sees that has mounted something else."""
    with small_parts():
        source, dest, _ = begun(tmp_path)
        shutil.copytree(source, tmp_path / "copy")
        with pytest.raises(
            SourceChangedError, match="the source is not the same here as where the conversion was begun"
        ):
            work_on(plans.plan(tmp_path / "copy", dest, max_shard_size="30KB"))
        with pytest.raises(DestinationError, match="holds a different unfinished conversion: dtype was not given"):
            work_on(plans.plan(source, dest, max_shard_size="30KB", dtype="fp32"))


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    with small_parts():
        source, _, planned = begun(tmp_path)
        mine = work_on(planned)
        os.utime(next(source.glob("*.safetensors")), ns=(1, 1))
        with pytest.raises(SourceChangedError):
            for part in mine.parts:
                mine.convert(part.number)


def test_a_file_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    """Parts of it may be on record, written by others."""
    with small_parts():
        _, dest, planned = begun(tmp_path)
        mine = work_on(planned)
        name = planned.files[0].name
        mine.convert(0)
        (tmp_path / "ms.partial" / name).unlink()
        with pytest.raises(StorageError, match=f"no longer holds all that was written to it: {name} is gone"):
            mine.convert(1)
        assert not (tmp_path / "ms.partial" / name).exists()
        # The whole conversion notes that, and writes it again.
        streamconv.convert(planned.catalog.path, dest, max_shard_size="30KB")
        streamconv.verify(dest, source=planned.catalog.path)


def test_a_part_that_storage_did_not_keep_is_found(tmp_path: Path, monkeypatch) -> None:
    with small_parts():
        _, _, planned = begun(tmp_path, verify=True)
        mine = work_on(planned)
        file = planned.files[0]
        offset = next(offset for ((offset, length), *_) in file.extents.values() if length)

        def flip(paths: Any, file_: Any, at: int, length: int) -> None:
            with open(paths.partial_file(file.name), "r+b") as out:  # noqa: PTH123
                out.seek(offset)
                byte = out.read(1)
                out.seek(offset)
                out.write(bytes([byte[0] ^ 1]))

        monkeypatch.setattr(work.built_files, "drop_range", flip)
        with pytest.raises(VerificationError, match="the storage did not keep what was written"):
            mine.convert(0)
        assert not leases.is_done(planned.destination.paths.parts, 0, compared=False)


@pytest.mark.slow
def test_manifests_do_not_tell_how_a_result_was_made(tmp_path: Path) -> None:
    with small_parts():
        source, one, dest, arguments = both("cast", tmp_path)
        parts.convert(source, dest, **arguments)
    found = [manifest.find(place / "cast") for place in (one, dest.parent)]
    assert found[0] and found[1] and found[0].values == found[1].values
