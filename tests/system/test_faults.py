"""Storage that fails, in short: of each sweep every so many calls, so that CI has time for the rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from streamconv.storage import disk
from support import running
from system import sweep_faults
from system.sweep_faults import ERRORS, SCENARIOS

EVERY = 97


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], sweep_faults.Bench]:
    """The bench of a scenario, which all its sweeps share."""
    return cache(lambda name: sweep_faults.Bench(SCENARIOS[name], tmp_path_factory.mktemp("bench")))


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "ranks, ckpt with CRC"])
def test_every_run_ends_well_or_with_a_message_and_is_resumable(
    scenario: str, error: str, lasting: bool, benches: Callable[[str], sweep_faults.Bench]
) -> None:
    """Each error begins at another call, so that together they meet most of them."""
    first = 1 + (7 * list(SCENARIOS).index(scenario) + 14 * ERRORS.index(error) + 49 * lasting) % EVERY
    every = 17 if error == "short" else EVERY
    counts = sweep_faults.sweep(benches(scenario), error, lasting, min(first, every), every)
    assert counts.faults


def test_whatever_calls_the_system_can_be_made_to_fail() -> None:
    found = {node.name for node in ast.parse(Path(disk.__file__).read_text()).body if _calls_the_system(node)}
    assert found == set(disk.PRIMITIVES)


_SYSTEM = re.compile(r"(os\.(?!fsencode|fspath|path\.|strerror)|fcntl\.|mmap\.|libc\.)")


def _calls_the_system(node: ast.AST) -> bool:
    calls = [ast.unparse(part) for part in ast.walk(node) if isinstance(part, ast.Call)]
    return isinstance(node, ast.FunctionDef) and any(_SYSTEM.match(call) for call in calls)


def test_a_wrong_result_would_be_seen(tmp_path: Path) -> None:
    with sweep_faults.small_units():
        bench = sweep_faults.Bench(SCENARIOS["directory"], tmp_path)
        shard = next((bench.work / "dest").glob("*.safetensors"))
        running.flip(shard, 5000)
        with pytest.raises(AssertionError, match="wrong files under final names"):
            bench.check_final()
        running.flip(shard, 5000)
        assert bench.check_final() == "new"
