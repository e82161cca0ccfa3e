"""Every golden case, through the public API: names, shapes, dtypes and bytes as MindFormers' converters made them."""

from __future__ import annotations

import golden
import pytest

import streamconv

CASES = golden.cases("llama", "mixtral")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["directory", "ckpt", "dealt anew"])
def test_golden_case(case: golden.Case, kind: str, tmp_path) -> None:
    source = case.write_source(tmp_path / "source", 5 if kind == "dealt anew" else None)
    reverse = case.arguments["reverse"]
    if reverse and kind != "directory":
        pytest.skip("the source is one file, and so is only the forward result")
    dest = tmp_path / ("out.ckpt" if kind == "ckpt" else "out")
    streamconv.convert(source, dest, **case.arguments)
    assert golden.found(dest) == case.expected


def test_all_cases_are_here() -> None:
    assert len(CASES) == 28
