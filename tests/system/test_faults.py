"""Storage that fails, in short: of each sweep every so many calls, so that CI has time for the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from streamconv.storage import disk
from support import ROOT, running
from system import sweep_faults
from system.sweep_faults import ERRORS, SCENARIOS

EVERY = 97


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_run_ends_well_or_with_a_message_and_is_resumable(
    scenario: str, error: str, lasting: bool, tmp_path: Path
) -> None:
    """Each error begins at another call, so that together they meet most of them."""
    first = 1 + (7 * list(SCENARIOS).index(scenario) + 14 * ERRORS.index(error) + 49 * lasting) % EVERY
    every = 17 if error == "short" else EVERY
    counts = sweep_faults.sweep(SCENARIOS[scenario], error, lasting, tmp_path, min(first, every), every)
    assert counts.faults


def test_all_primitives_are_made_to_fail() -> None:
    source = (ROOT / "streamconv" / "storage" / "disk.py").read_text()
    primitives = source[: source.index("# -- made of them")]
    assert {node.name for node in ast.parse(primitives).body if isinstance(node, ast.FunctionDef)} == set(
        disk.PRIMITIVES
    )


def test_a_wrong_result_would_be_seen(tmp_path: Path) -> None:
    with sweep_faults.small_units():
        bench = sweep_faults.Bench(SCENARIOS["directory"], tmp_path)
        shard = next((bench.work / "dest").glob("*.safetensors"))
        running.flip(shard, 5000)
        with pytest.raises(AssertionError, match="wrong files under final names"):
            bench.check_final()
        running.flip(shard, 5000)
        assert bench.check_final() == "new"
