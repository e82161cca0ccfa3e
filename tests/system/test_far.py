"""A source on a file system where each request takes milliseconds: known as such, and read with many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT, found_in_the_tree, nowhere, running

with found_in_the_tree():
    from benchmarks import far_mount

LATENCY = 0.005


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Path]:
    source, point = running.mixtral(tmp_path / "source"), tmp_path / "far"
    point.mkdir()
    words = [sys.executable, "-m", "benchmarks.far_mount", str(source), str(point), "--latency", str(LATENCY)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        if server.stdout is None or server.stdout.readline() != b"mounted\n":
            pytest.skip("no file system in user space can be mounted here")
        yield point
    finally:
        far_mount.unmount(point)
        server.wait(timeout=30)


@pytest.mark.skipif(bool(os.geteuid()), reason="mounting needs root")
def test_a_far_source_gives_the_same_bytes(far: Path, tmp_path: Path) -> None:
    for source, dest in ((far, "one"), (tmp_path / "source", "other")):
        words = ("convert", source, tmp_path / dest, "--quiet", "--json")
        said = json.loads(
            subprocess.run(running.command(*words), capture_output=True, check=True, cwd=nowhere()).stdout
        )
        assert (said["io"]["reading"] == "far (fuse.far, 16 requests at once)") == (source == far), said["io"]
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / d).glob("*.safetensors")} for d in ("one", "other"))
    assert one == other
