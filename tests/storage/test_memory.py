"""What is resident and available, and control groups as fake folders show them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from streamconv.storage import memory

MIB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what is resident as commands do."""
    monkeypatch.setattr(memory, "_MAPPINGS", "/proc/self/smaps_rollup")


def test_what_is_resident_now_is_measured() -> None:
    assert 0 < memory.resident_bytes() <= memory.peak_bytes() + 16 * MIB


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:    {} kB\nPss:    1 kB\n", True),
        ("55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:    1 kB\nPss:    {} kB\n", False),
        ("", False),
        (None, False),
    ],
)
def test_pages_that_the_kernel_counts_late_are_not_missing(text, missing, tmp_path, monkeypatch) -> None:
    """Linux 6.2 to 6.15 may show megabytes less than are resident; its list of mappings is exact."""
    monkeypatch.setattr(memory, "roughly_resident_bytes", lambda: 40 * MIB)
    monkeypatch.setattr(memory, "_MAPPINGS", tmp_path / "smaps_rollup")
    if text is not None:
        (tmp_path / "smaps_rollup").write_text(text.format(56 * 1024))
    assert memory.resident_bytes() == (56 if missing else 40) * MIB


def test_the_kernels_own_list_is_read() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("a kernel before Linux 4.14")
    with mmap.mmap(-1, 64 * MIB) as ballast:
        before = memory.resident_bytes()
        ballast.write(b"x" * (64 * MIB))
        assert memory.resident_bytes() - before > 60 * MIB
        assert abs(memory.resident_bytes() - memory.roughly_resident_bytes()) < 32 * MIB


def v2(folder, most: object, used: object, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def v1(folder, most: int, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def rooms(tmp_path, own: str) -> list[int]:
    (tmp_path / "own").write_text(own)
    return memory.cgroup_rooms(tmp_path / "fs", tmp_path / "own")


def test_v2_is_limit_less_use_but_for_the_page_cache(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", 1000, 700, 200)
    assert rooms(tmp_path, "0::/a\n") == [500]


def test_v2_groups_around_count_too(tmp_path) -> None:
    v2(tmp_path / "fs" / "a" / "b" / "c", "max", 10)
    v2(tmp_path / "fs" / "a" / "b", 2000, 100)
    v2(tmp_path / "fs" / "a", 500, 100)
    assert rooms(tmp_path, "0::/a/b/c\n") == [1900, 400]


def test_in_a_container_the_own_group_is_the_root(tmp_path) -> None:
    v2(tmp_path / "fs", 1000, 400)
    assert rooms(tmp_path, "0::/docker/abc\n") == [600]
    assert rooms(tmp_path, "0::/\n") == [600]


def test_v2_without_a_limit_says_nothing(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", "max", 10)
    assert rooms(tmp_path, "0::/a\n") == []


def test_a_group_above_its_limit_leaves_nothing(tmp_path) -> None:
    v2(tmp_path / "fs" / "a", 100, 400)
    assert rooms(tmp_path, "0::/a\n") == [0]


def test_v1_reads_the_memory_controller_alone(tmp_path) -> None:
    v1(tmp_path / "fs" / "memory" / "a" / "b", NO_LIMIT_V1, 300)
    v1(tmp_path / "fs" / "memory" / "a", 1000, 300, 50)
    v1(tmp_path / "fs" / "cpu" / "a", 1, 1)
    own = "12:cpu,cpuacct:/a\n7:hugetlb,memory:/a/b\n3:name=systemd:/a\n1:memoryless:/a\n"
    assert rooms(tmp_path, own) == [NO_LIMIT_V1 - 300, 750]


def test_both_at_once(tmp_path) -> None:
    v1(tmp_path / "fs" / "memory" / "a", 1000, 300)
    v2(tmp_path / "fs" / "b", 50, 20)
    assert rooms(tmp_path, "7:memory:/a\n0::/b\n") == [700, 30]


@pytest.mark.parametrize("name", ["memory.max", "memory.current"])
@pytest.mark.parametrize("broken", [None, "", "lots"])
def test_a_file_that_is_missing_or_odd_is_passed_over(tmp_path, name, broken) -> None:
    v2(tmp_path / "fs" / "a" / "b", 1000, 300)
    v2(tmp_path / "fs" / "a", 800, 300)
    file = tmp_path / "fs" / "a" / "b" / name
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    assert rooms(tmp_path, "0::/a/b\n") == [500]


def test_without_control_groups_there_is_nothing_to_say(tmp_path) -> None:
    assert memory.cgroup_rooms(tmp_path, tmp_path / "none") == []
    assert rooms(tmp_path, "") == []


def test_here_and_now_there_is_some_memory() -> None:
    assert memory.available_bytes() > 0
