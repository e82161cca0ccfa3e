"""`verify --sample`: a sample is spread evenly, differs each time, and leaves out neither file nor header."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamconv
from streamconv.checks import against_manifest
from streamconv.checks.sample import Sample, parse_sample
from streamconv.errors import UsageError, VerificationError
from streamconv.formats.catalog import open_catalog
from streamconv.output import blocks, manifest
from support import running
from support.running import call, flip

BLOCK = 512
KINDS = {
    "directory": ("dest", {"max_shard_size": 20000}),
    "ckpt": ("dest.ckpt", {"crc": True}),
    "hf": ("dest", {"model": "raw", "format": "hf", "max_shard_size": 20000}),
    "torch": ("dest.pt", {"model": "raw"}),
}


@given(st.integers(1, 100), st.integers(100, 1000), st.integers(0, 2**64 - 1), st.integers(0, 500))
def test_one_of_every_stratum(numerator: int, denominator: int, seed: int, count: int) -> None:
    one = Sample(Fraction(numerator, denominator), seed)
    taken = [number for number in range(count) if one.takes(number)]
    assert abs(len(taken) - count * one.share) <= 1
    assert len({int(number * one.share) for number in taken}) == len(taken)


@pytest.mark.slow
def test_everything_is_taken_in_time_and_the_same_seed_takes_the_same() -> None:
    counts = Counter(n for seed in range(2000) for n in range(60) if Sample(Fraction(1, 20), seed).takes(n))
    assert len(counts) == 60
    assert 50 < min(counts.values()) <= max(counts.values()) < 160
    assert Sample(Fraction(1, 20)).seed != Sample(Fraction(1, 20)).seed


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", "1/20"), ("0.05", "1/20"), (".5", "1/2"), (0.05, "1/20"), ("12.5 %", "1/8"), ("0.001%", "1/100000")],
)
def test_what_is_understood(text: str | float, share: str) -> None:
    found = parse_sample(text)
    assert found and found.share == Fraction(share)
    assert (
        parse_sample(str(found))
        and parse_sample("100%") is parse_sample("1") is parse_sample(1) is parse_sample(None) is None
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "a share must be above 0 and at most 100%: 5\nhint: write 5% or 0.05"),
        ("0", "a share must be above 0 and at most 100%: "),
        ("0%", "a share must be above 0 and at most 100%: "),
        ("101%", "a share must be above 0 and at most 100%: "),
        ("200", "a share must be above 0 and at most 100%: "),
        ("-5%", "not a share: -5%\nhint: write for example 5% or 0.05"),
        ("a\x1b", "not a share: "),
        ("", "not a share: "),
        ("1e-3", "not a share: "),
        (float("nan"), "not a share: "),
        (float("inf"), "not a share: "),
    ],
)
def test_what_is_not(text: str | float, said: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_sample(text)
    assert str(caught.value).replace("\nhint: ", "").isprintable()
    ended = call(capsys, "verify", tmp_path, "--sample", text)
    assert ended.code == 2


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, manifest, against_manifest):
            patch.setattr(module, "BLOCK", BLOCK)
        patch.setattr("streamconv.engine.budget.MAX_REGION", 4096)
        yield


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_blocks: None) -> Any:
    name, arguments = KINDS[request.param]
    folder = tmp_path_factory.mktemp("sampled")
    source = running.tiny(folder / "source", vocab_size=700)
    streamconv.convert(source, folder / name, **arguments)
    return source, folder / name


def named(dest: Path) -> list[Path]:
    return [dest] if dest.is_file() else [p for p in dest.iterdir() if p.name not in ("config.json", "streamconv.json")]


def caught(*words: Path, seed: int, fraction: str = "5%") -> bool:
    try:
        streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None, sample=fraction, seed=seed)
    except VerificationError:
        return True
    return False


@pytest.mark.slow
def test_a_share_is_read(made: Any) -> None:
    for words in (made, made[1:]):
        whole = streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None)
        assert whole.bytes_read == whole.total
        some = [
            streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None, sample="30%", seed=seed)
            for seed in range(30)
        ]
        assert {one.total for one in some} == {whole.total}
        mean = sum(one.bytes_read for one in some) / 30 / whole.total
        assert 0.25 < mean < 0.7, mean  # every file has its part, and these files are small
        assert len({one.bytes_read for one in some}) > 1 or len(words) == 1
        assert (
            streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None, sample="30%", seed=3) == some[3]
        )
        assert streamconv.verify(words[-1], source=words[0] if len(words) == 2 else None, sample=1.0) == whole


def test_progress_ends_at_what_is_read(made: Any) -> None:
    for words in (made, made[1:]):
        seen: list[streamconv.Progress] = []
        result = streamconv.verify(
            words[-1], source=words[0] if len(words) == 2 else None, sample="10%", progress=seen.append
        )
        assert seen[-1].done == seen[-1].total == result.bytes_read < result.total


@pytest.mark.slow
def test_a_byte_of_data_is_found_sooner_or_later(made: Any) -> None:
    dest = made[1]
    ref = open_catalog(dest)["lm_head.weight"]
    extent = ref.extents[0]
    flip(extent.file.path, extent.offset + extent.length // 2)
    for words in (made, made[1:]):
        found = sum(caught(*words, seed=seed) for seed in range(75))
        assert 1 <= found <= 30, found
    flip(extent.file.path, extent.offset + extent.length // 2)


def test_every_file_is_looked_at(made: Any) -> None:
    """Where all the tensors of a file are wrong, the smallest sample says so."""
    for path in named(made[1]):
        original = path.read_bytes()
        changed = bytearray(original)
        extents = [e for r in open_catalog(made[1]).values() for e in r.extents if e.file.path == path]
        for extent in extents:
            part = original[extent.offset : extent.offset + extent.length]
            changed[extent.offset : extent.offset + extent.length] = bytes(byte ^ 1 for byte in part)
        path.write_bytes(changed if extents else bytes([original[0] ^ 1]) + original[1:])
        assert caught(*made, seed=1, fraction="0.0001%")
        assert caught(made[1], seed=1, fraction="0.0001%")
        path.write_bytes(original)


@pytest.mark.slow
def test_every_byte_that_is_no_data_is_looked_at(made: Any) -> None:
    """Of a sample, too; but for CRCs, and against the manifest for what a torch archive says a second time."""
    for path in named(made[1]):
        refs, size = open_catalog(made[1]).values(), path.stat().st_size
        data = {e.offset + i for r in refs for e in r.extents if e.file.path == path for i in range(e.length)}
        proven = size - 17 if path.suffix == ".ckpt" else size
        for position in sorted(set(range(proven)) - data)[:: 200 if path.suffix == ".pt" else 19]:
            flip(path, position)
            by_manifest, by_source = (caught(*w, seed=1, fraction="0.0001%") for w in (made[1:], made))
            flip(path, position)
            assert (by_manifest and by_source) or path.suffix == ".pt", position


@pytest.mark.parametrize("change", ["shorter", "longer", "missing"])
def test_sizes_are_always_compared(change: str, made: Any, tmp_path: Path) -> None:
    shutil.copytree(made[1].parent, tmp_path / "copy")
    dest = tmp_path / "copy" / made[1].name
    if dest.is_file() and change == "missing":
        return
    for path in named(dest):
        data = path.read_bytes()
        path.unlink()
        if change != "missing":
            path.write_bytes(data[:-1] if change == "shorter" else data + b"\0")
        assert caught(dest, seed=1, fraction="0.0001%")
        assert caught(made[0], dest, seed=1, fraction="0.0001%")
        path.write_bytes(data)


def test_headers_that_name_other_tensors(made: Any) -> None:
    place = made[1] / "streamconv.json" if made[1].is_dir() else Path(f"{made[1]}.streamconv.json")
    text = place.read_text()
    values = json.loads(text)
    first = next(iter(values["tensors"]))
    entry = values["tensors"][first]
    for tensors in (
        {name: value for name, value in values["tensors"].items() if name != first},
        {**values["tensors"], "one.more": entry},
        {**values["tensors"], first: {**entry, "extents": [[a, b - 1] for a, b in entry["extents"]]}},
    ):
        place.write_text(json.dumps({**values, "tensors": tensors}))
        with pytest.raises(VerificationError, match="its manifest disagree on tensor"):
            streamconv.verify(made[1], sample="5%")
    place.write_text(text)


def test_the_report_says_how_much_was_read(made: Any, capsys: Any) -> None:
    for words in (made, made[1:]):
        ended = call(capsys, "verify", *words, "--sample", "10%")
        assert ended.code == 0
        assert " (10% sample)" in ended.out
        ended = call(capsys, "verify", *words, "--sample", "0.1", "--json")
        report = json.loads(ended.out)
        assert f"{report['bytes']} of" not in ended.out
        assert 0 < report["bytes"] < report["total"]
