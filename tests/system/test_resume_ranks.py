"""Resume of a result that is cut for ranks: a slice lies in several files, and any of them may be gone."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import streamconv
from streamconv.engine import sharing
from streamconv.output.open_writers import OpenWriters
from streamconv.storage import disk, limits
from support import running, strategies
from support.running import tree
from system import sweep_faults


@pytest.fixture
def small_units():
    with sweep_faults.small_units():
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return running.tiny(tmp_path / "source", 4000)


def stopped_or_done(source: Path, dest: Path, after: int | None, chance: random.Random, **arguments: object) -> bool:
    """A run of some budget and workers, stopped after so many writes; whether it came to its end."""
    region, workers = chance.choice([300, 1000, 5000]), chance.randint(1, 3)
    return running.converted(source, dest, after, region, workers, **arguments)


def lose(partial: Path, chance: random.Random) -> None:
    """What a crash, or somebody, takes from an unfinished result: files, parts of them, folders."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    for path in chance.sample(files, min(len(files), chance.randint(0, 2))):
        if chance.random() < 0.4:
            shutil.rmtree(path.parent, ignore_errors=True)
        elif path.exists() and chance.random() < 0.5:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink(missing_ok=True)
    if partial.exists() and chance.random() < 0.3:
        (partial / "rank_0").mkdir(exist_ok=True)
        (partial / "rank_0" / "other").write_bytes(b"not of this result")


@pytest.mark.parametrize(
    ("seed", "shards", "ending"),
    [(seed, (0, 2)[seed % 2], ("ckpt", "safetensors")[seed // 2 % 2]) for seed in range(12)],
)
def test_any_file_may_be_gone(seed: int, shards: int, ending: str, source: Path, tmp_path: Path, small_units) -> None:
    chance = random.Random(seed)
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2), shards)
    arguments = {"strategy": strategy, "format": ending, "crc": ending == "ckpt", "links": seed % 2 == 0}
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / "dest", **arguments)
    other = tmp_path / "other" / "dest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_RESULTS", chance.choice([2, 3, 128]))
        for _ in range(chance.randint(1, 4)):
            if stopped_or_done(source, other, chance.randint(0, 60), chance, **arguments):
                break
            lose(tmp_path / "other" / "dest.partial", chance)
        else:
            assert stopped_or_done(source, other, None, chance, **arguments)
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
    assert streamconv.verify(other).files == streamconv.verify(other, source=source).files


@pytest.mark.parametrize(("seed", "ending"), [(seed, ("ckpt", "safetensors")[seed % 2]) for seed in range(12)])
def test_a_run_resumes_with_and_without_shared_windows(
    seed: int, ending: str, source: Path, tmp_path: Path, small_units, monkeypatch
) -> None:
    """Stopped anywhere, with slices one by one or together: the manifest too is the same, with its overflows."""
    chance = random.Random(seed)
    running.with_large_values(source)
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2), seed % 3)
    arguments = {"strategy": strategy, "format": ending, "dtype": "fp16", "links": seed % 2 == 0}
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    streamconv.convert(source, tmp_path / "one" / "dest", **arguments)
    for after in [*(chance.randint(0, 60) for _ in range(chance.randint(1, 4))), None]:
        monkeypatch.setattr(sharing, "_MOST", chance.choice([1, 2, 512]))
        if stopped_or_done(source, tmp_path / "other" / "dest", after, chance, **arguments):
            break
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
    assert streamconv.verify(tmp_path / "other" / "dest", source=source, sample=0.4, seed=seed).tensors


def test_another_strategy_is_another_conversion(source: Path, tmp_path: Path, small_units) -> None:
    planned, dest = streamconv.plan(source, tmp_path / "no"), tmp_path / "dest"
    strategy = strategies.write(tmp_path / "strategy", planned, (2, 2))
    assert not stopped_or_done(source, dest, 20, random.Random(1), strategy=strategy)
    strategies.write(strategy, planned, (1, 4))
    with pytest.raises(streamconv.DestinationError, match="the strategy was"):
        streamconv.convert(source, dest, strategy=strategy)
    strategies.write(strategy, planned, (2, 4))
    with pytest.raises(streamconv.DestinationError, match="the number of ranks was 4, is 8"):
        streamconv.convert(source, dest, strategy=strategy)
    with pytest.raises(streamconv.DestinationError, match="the number of ranks was 4, is not given"):
        streamconv.convert(source, dest)


def test_no_more_files_are_open_than_may_be(source: Path, tmp_path: Path, small_units, monkeypatch) -> None:
    """Nothing is lost of what is closed for another file: it is durable first."""
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (8, 2))
    streamconv.convert(source, tmp_path / "one", strategy=strategy, links=False)
    opened, most = [], []
    entered = OpenWriters._entered

    def counting(self: OpenWriters, file: object) -> object:
        target = entered(self, file)
        opened.append(target)
        most.append(sum(one._open.is_open for one in {id(one): one for one in opened}.values()))
        return target

    monkeypatch.setattr(OpenWriters, "_entered", counting)
    monkeypatch.setattr(limits, "_RESULTS", 3)
    streamconv.convert(source, tmp_path / "other", strategy=strategy, links=False, workers=2)
    assert max(most) <= 3 + 2
    assert tree(tmp_path / "other") == tree(tmp_path / "one")


def test_where_there_are_no_links_files_are_copied(source: Path, tmp_path: Path, monkeypatch) -> None:
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2))
    streamconv.convert(source, tmp_path / "one", strategy=strategy)
    monkeypatch.setattr(disk, "hard_link", lambda *_: False)
    streamconv.convert(source, tmp_path / "other", strategy=strategy, verify=True)
    one, other = (
        [path / "rank_0/checkpoint_0.safetensors", path / "rank_2/checkpoint_2.safetensors"]
        for path in (tmp_path / "one", tmp_path / "other")
    )
    assert one[0].samefile(one[1])
    assert not other[0].samefile(other[1])
    assert tree(tmp_path / "other") == tree(tmp_path / "one")
    # A copy is a file of its own, and is proven like one.
    assert streamconv.verify(tmp_path / "other").bytes_read > streamconv.verify(tmp_path / "one").bytes_read
    data = bytearray(other[1].read_bytes())
    data[-1] ^= 1
    other[1].write_bytes(data)
    for proof in ({}, {"source": source}):
        with pytest.raises(streamconv.VerificationError, match="rank_2"):
            streamconv.verify(tmp_path / "other", **proof)


def test_copies_need_space(source: Path, tmp_path: Path, monkeypatch) -> None:
    strategy = strategies.write(tmp_path / "strategy", streamconv.plan(source, tmp_path / "no"), (2, 2))
    planned = streamconv.plan(source, tmp_path / "dest", strategy=strategy)
    monkeypatch.setattr(disk, "free_bytes", lambda path: planned.layout.total + 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "hard_link", lambda *_: False)
        with pytest.raises(streamconv.StorageError, match="nothing was written"):
            planned.run()
    assert not list(tmp_path.glob("dest*"))
    planned.run()
    assert streamconv.verify(tmp_path / "dest", source=source)
