"""A short run of every fuzz target from fixed seeds, and all inputs that were findings once."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from system.fuzz import mutate
from system.fuzz.targets import TARGETS, holds

REGRESSIONS = sorted((Path(__file__).parent / "regressions").iterdir())
#: Inputs in a second or two each; those of some are planned several times. `run.py` has no end of them.
COUNTS = {name: {"config": 50, "manifest": 100, "yaml": 100}.get(name, 500) for name in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_parsed(name: str, tmp_path: Path) -> None:
    assert any(holds(TARGETS[name], data, tmp_path) for data in TARGETS[name].seeds()) or name == "manifest"


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_parsed_or_refused(name: str, tmp_path: Path) -> None:
    target, random = TARGETS[name], Random(0)
    seeds = target.seeds()
    parsed = sum(holds(target, mutate.mutated(seeds, target.mutator, random), tmp_path) for _ in range(COUNTS[name]))
    assert parsed or name == "manifest"


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(list(TARGETS)))
def test_any_bytes_are_parsed_or_refused(data: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any-{name}"
    folder.mkdir(exist_ok=True)
    holds(TARGETS[name], data, folder)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_what_was_a_finding_is_none(path: Path, tmp_path: Path) -> None:
    holds(TARGETS[path.name.partition("-")[0]], path.read_bytes(), tmp_path)
