"""Power cuts at every sync of every kind of conversion; it is fast enough for CI as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamconv.output.file_writer import FileWriter
from streamconv.storage import disk, whole_files
from system import sweep_power
from system.sweep_faults import SCENARIOS, Bench, small_units


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_final_name_never_holds_half_a_result_and_the_run_resumes(scenario: str, tmp_path: Path) -> None:
    counts = sweep_power.sweep(SCENARIOS[scenario], tmp_path)
    assert counts.total() > 20
    assert counts["new"]


@pytest.mark.parametrize("scenario", ["directory", "replaced ckpt"])
@pytest.mark.parametrize("lacking", ["before the journal", "before the name"])
def test_a_sync_less_would_be_seen(scenario: str, lacking: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(FileWriter, "sync", lambda self: None)
    if lacking == "before the name":
        monkeypatch.setattr(FileWriter, "finish", lambda self: self.digests.hexdigests())
    with pytest.raises(AssertionError, match=r"names|bytes lost"):
        sweep_power.sweep(SCENARIOS[scenario], tmp_path)


def test_the_model_of_a_disk_keeps_what_was_synced_and_nothing_else(tmp_path: Path) -> None:
    with small_units():
        bench = Bench(SCENARIOS["directory"], tmp_path)
    bench.prepare()
    model = sweep_power.Model(bench.work)
    with model.followed():
        whole_files.write_synced(bench.work / "synced", b"abc")
        file = disk.open_file(bench.work / "half", 0o102)
        disk.write_all(file, memoryview(b"lost"), 0)
        disk.sync_directory(bench.work)
        disk.close_quietly(file)
        whole_files.write_synced(bench.work / "nameless", b"abc")
    model.take()
    names_lost, sizes_lost, bytes_lost = (dict(image) for _, (image, _) in model.images[-3:])
    assert {name: content for name, (content, _) in names_lost.items()} == {"synced": b"abc", "half": b""}
    assert {name: content for name, (content, _) in sizes_lost.items()} == {
        "synced": b"abc",
        "half": b"",
        "nameless": b"abc",
    }
    assert bytes_lost["half"][0] == bytes(4)
