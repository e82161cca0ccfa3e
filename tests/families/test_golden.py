"""Every golden case, through the public API: names, shapes, dtypes and bytes as MindFormers' converters made them."""

from __future__ import annotations

from collections import Counter

import pytest

import streamconv
from support import golden

CASES = golden.cases(*(folder.name for folder in sorted(golden.FOLDER.iterdir()) if folder.is_dir()))
FORWARD = [case for case in CASES if not case.arguments["reverse"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_case(case: golden.Case, tmp_path) -> None:
    source = case.write_source(tmp_path / "source")
    streamconv.convert(source, tmp_path / "out", **case.arguments, config=case.write_reference(tmp_path / "reference"))
    assert golden.found(tmp_path / "out") == case.expected


@pytest.mark.slow
@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.name)
def test_golden_case_from_other_shards_into_a_ckpt(case: golden.Case, tmp_path) -> None:
    source = case.write_source(tmp_path / "source", shard_count=5)
    streamconv.convert(
        source, tmp_path / "out.ckpt", **case.arguments, config=case.write_reference(tmp_path / "reference")
    )
    assert golden.found(tmp_path / "out.ckpt") == case.expected


def test_all_cases_are_here() -> None:
    counts = Counter(case.arguments["model"] for case in CASES)
    assert counts == {name: golden.COUNTS[name] for name in counts}
