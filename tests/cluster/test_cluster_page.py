"""Every command of docs/cluster.md, run in order as it is written; see `support.stand_ins` for what is replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import streamconv
from streamconv.output.staging import Staging
from streamconv.parts import cutting
from support import ROOT, running, stand_ins
from support.running import StoppedError

PAGE = ROOT / "docs" / "cluster.md"
LEAST = 32 << 20

#: Has parts of 32 MiB in every Python of the stage.
CUSTOMIZE = f"""
import importlib.util, sys

class Smaller:
    def find_spec(self, name, path=None, target=None):
        if name == "streamconv.parts.cutting":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def execute(module):
                run(module)
                module.LEAST_BYTES = {LEAST}
            spec.loader.exec_module = execute
            return spec

sys.meta_path.insert(0, Smaller())
"""


def blocks() -> list[tuple[str, str]]:
    """The bash blocks of the page, each with the heading that it stands under."""
    found, heading = [], ""
    for title, block in re.findall(r"^#+ ([^\n]+)$|^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        heading = title or heading
        if block:
            found.append((heading, block))
    return found


BLOCKS = blocks()


class Stage:
    """A folder that is the shared file system, and the commands of a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.ray = Path(tempfile.mkdtemp(prefix="sc"))
        (folder / "bin").mkdir()
        self.shared.mkdir()
        (folder / "docs").symlink_to(ROOT / "docs")
        (folder / "env").write_text("")
        (folder / "python").mkdir()
        (folder / "python" / "sitecustomize.py").write_text(CUSTOMIZE)
        self._add("python", sys.executable)
        for name in stand_ins.NAMES:
            self._add(name, f"{sys.executable} {stand_ins.__file__} {name}")
        running.mixtral(self.shared / "DeepSeek-V3")
        streamconv.convert(self.shared / "DeepSeek-V3", self.shared / "v3-other")
        self.dest, self.expected = self.shared / "v3-ms", running.tree(self.shared / "v3-other")

    def _add(self, name: str, command: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)

    def run(self, block: str) -> None:
        """Run a block; variables that it exports are there for the next."""
        text = block.replace("/shared", str(self.shared)).replace("master_addr=node0", "master_addr=127.0.0.1")
        env = self.folder / "env"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "RANK_"))}
        # Before the page starts Ray, none may be found that others run on this machine.
        alone = {} if (self.folder / "head").exists() else {"RAY_ADDRESS": "local"}
        done = subprocess.run(
            ["bash", "-e", "-c", f". {env}\n{text}\nunset RAY_ADDRESS\nexport -p > {env}"],
            cwd=self.folder,
            env={
                **kept,
                **alone,
                # Ray keeps a token there.
                "HOME": str(self.folder),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(self.folder / "python"),
                "STAGE": str(self.folder),
                "RAY_TMPDIR": str(self.ray),
                "RAY_USAGE_STATS_ENABLED": "0",
                # Its 30 seconds for the server of a client are too few on a machine that others load.
                "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
            },
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"

    def leave_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Convert all parts; whoever would put them together is stopped."""

        def stop(self: Staging, text: bytes) -> None:
            raise StoppedError

        monkeypatch.setattr(cutting, "LEAST_BYTES", LEAST)
        monkeypatch.setattr(Staging, "commit", stop)
        streamconv.convert(self.shared / "DeepSeek-V3", self.dest, part="1/2")
        with pytest.raises(StoppedError):
            streamconv.convert(self.shared / "DeepSeek-V3", self.dest, part="2/2")

    def close(self) -> None:
        stand_ins.end_ray(self.ray)
        shutil.rmtree(self.ray, ignore_errors=True)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    pytest.importorskip("ray")
    one = Stage(tmp_path_factory.mktemp("stage"))
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"{n} {title}" for n, (title, _) in enumerate(BLOCKS)])
def test_the_commands_of_the_page(number: int, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, block = BLOCKS[number]
    if "msrun" in block and not find_spec("mindspore"):
        pytest.skip("MindSpore, which has msrun, is not installed")
    shutil.rmtree(stage.dest, ignore_errors=True)
    if "streamconv verify" in block:
        shutil.copytree(stage.shared / "v3-other", stage.dest)
    if "streamconv finish" in block:
        stage.leave_parts(monkeypatch)
    stage.run(block)
    if "ray start --head" not in block:
        assert running.tree(stage.dest) == stage.expected
        assert {path.name for path in stage.shared.glob("v3-ms*")} == {"v3-ms"}


def test_there_are_commands_for_every_way() -> None:
    text = "".join(block for _, block in BLOCKS)
    for word in ("--on ray", "ray://", "verify", "diff", "kubectl", "sbatch", "msrun", "--part", "finish"):
        assert word in text


def test_the_files_of_the_page_are_named_on_it() -> None:
    for path in PAGE.with_suffix("").iterdir():
        assert f"cluster/{path.name}" in PAGE.read_text(), path.name
