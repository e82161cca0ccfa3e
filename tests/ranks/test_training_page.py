"""Every command of docs/training.md, run in order on a small training."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import streamconv
from support import TESTS, running
from support.golden_ranks import case

PAGE = TESTS.parent / "docs" / "training.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the commands name: a training's output, another's strategy, and the HuggingFace model."""
    one = case("d04")
    shutil.copytree(one.checkpoint, tmp_path / "output" / "checkpoint")
    shutil.copytree(one.strategy_files[0].parent, tmp_path / "output" / "strategy")
    shutil.copytree(case("d07").strategy_files[0].parent, tmp_path / "other" / "strategy")
    (tmp_path / "config.json").write_text(json.dumps(one.model["config"]))
    streamconv.convert(
        tmp_path / "output", tmp_path / "Llama-3.1-8B", reverse=True, model="llama", config=tmp_path / "config.json"
    )
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_page(folder: Path) -> None:
    found = commands()
    assert len(found) >= 9
    for words in found:
        assert words[0] == "streamconv"
        if words[1] in ("plan", "convert"):
            shutil.rmtree(folder / words[3], ignore_errors=True)
        ended = running.run(*words[1:], cwd=folder)
        assert ended.code == 0, (words, ended.err)
    assert len([*folder.glob("ranks/rank_*/checkpoint_*.ckpt")]) == 4
    assert len([*folder.glob("other-ranks/rank_*/checkpoint_*.safetensors")]) == 8
