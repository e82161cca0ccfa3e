"""Ranks of a training, from outside: memory, bytes read and open files, with tensors larger than the budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamconv
from support import nowhere
from support.trainings import Cut, Stage, Tensor, Training, write_ranks, write_strategies
from support.watching import drop_from_cache, watch

MIB = 1 << 20
BUDGET = 96 * MIB
ROWS, COLUMNS = 8192, 8192

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[((0,), ()), ((), (0,)), ((1,), (0,))], ids=["rows", "columns", "both"])
def training(request, tmp_path_factory):
    """A tensor of 128 MiB in four slices."""
    devices = (2, 2) if all(request.param) else (4,)
    bits = np.random.default_rng(0).integers(0, 30_000, (ROWS, COLUMNS)).astype("u2")
    found = Training({"w": Tensor("BF16", bits)}, [Stage({"w": Cut(devices, request.param)})], devices)
    root = tmp_path_factory.mktemp("training") / "output"
    write_ranks(root, found.all_held(), "t_rank_{rank}-1_1.safetensors")
    write_strategies(root, found)
    return root, bits


@pytest.mark.parametrize("words", [[], ["--dtype", "fp32"], ["--verify"]], ids=["as it is", "widened", "verified"])
def test_a_tensor_larger_than_the_budget(training, tmp_path: Path, words) -> None:
    root, bits = training
    for folder in (root / "checkpoint").iterdir():
        drop_from_cache(folder)
    arguments = ["convert", str(root), str(tmp_path / "out"), "--model", "raw", "--max-mem", str(BUDGET), *words]
    seen = watch(arguments)
    assert seen.peak <= BUDGET < bits.nbytes
    assert seen.report["read_bytes"] <= 1.05 * bits.nbytes
    if not words:
        assert streamconv.open(tmp_path / "out")["w"].numpy().tobytes() == bits.tobytes()
        for command in ("verify", "diff"):
            assert watch([command, str(root), str(tmp_path / "out"), "--max-mem", str(BUDGET)]).peak <= BUDGET


def test_more_ranks_than_files_that_may_be_open(tmp_path: Path) -> None:
    bits = np.arange(64 * 128, dtype="u2").reshape(64, 128)
    cuts = {"rows": Cut((64,), ((0,), ())), "columns": Cut((64,), ((), (0,)))}
    training = Training({name: Tensor("BF16", bits) for name in cuts}, [Stage(cuts)], (64,))
    write_ranks(tmp_path / "output", training.all_held())
    write_strategies(tmp_path / "output", training)
    command = [sys.executable, "-m", "streamconv", "convert", tmp_path / "output", tmp_path / "out", "--model", "raw"]
    limited = ["sh", "-c", 'ulimit -n 32; exec "$@"', "sh", *map(str, command), "--verify"]
    ended = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=nowhere())
    assert ended.returncode == 0, ended.stderr
    with streamconv.open(tmp_path / "out") as found:
        assert all(found[name].numpy().tobytes() == bits.tobytes() for name in cuts)
