"""Quantised repositories, through the public API: tensors, config and what is dropped, as two proofs each say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import StreamconvError
from support import golden
from support.golden_quantised import Case, at, cases, found

READ = cases("expected")
REFUSED = cases("error")
IN_FAMILIES = cases("family")


def named(case: Case) -> str:
    return case.name


def test_all_cases_are_here() -> None:
    assert (len(READ), len(REFUSED), len(IN_FAMILIES)) == (40, 12, 8)


@pytest.mark.parametrize("case", READ, ids=named)
def test_what_comes_out(case: Case, tmp_path: Path) -> None:
    streamconv.convert(case.source, tmp_path / "out", **case.arguments, max_mem="8G")
    assert found(tmp_path / "out") == case.expected
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", case.source))
    stated = case.values["config"]
    assert [key for key in stated["gone"] if at(config, key) is not None] == []
    assert {key: at(config, key) for key in stated["set"]} == stated["set"]
    assert {key: config[key] for key in stated["kept"]} == {key: before[key] for key in stated["kept"]}
    assert not [name for name in case.values["files_gone"] if (tmp_path / "out" / name).exists()]


@pytest.mark.parametrize("case", READ, ids=named)
def test_what_the_plan_says(case: Case, tmp_path: Path) -> None:
    plan = streamconv.plan(case.source, tmp_path / "out", **case.arguments, max_mem="8G")
    assert set(plan.mapping.dropped) == {one["name"] for one in case.values["dropped"]}
    assert sum(plan.mapping.dequantised.values()) == len(case.values["dequantised"])
    assert all(f"to BF16: {how}" in str(plan) for how in plan.mapping.dequantised)


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_what_cannot_be_read_is_refused(case: Case, tmp_path: Path) -> None:
    error = case.values["error"]
    with pytest.raises(StreamconvError) as caught:
        plan = streamconv.plan(case.source, tmp_path / "out", **case.arguments, max_mem="8G")
        assert not error["plan_refuses"]
        plan.run()
    assert caught.value.exit_code in error["exit_codes"]
    assert all(word in str(caught.value) for word in error["says"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", [*READ, *REFUSED], ids=named)
def test_it_can_be_kept_as_it_is(case: Case, tmp_path: Path) -> None:
    options = {"quantised": "keep"}
    streamconv.convert(case.source, tmp_path / "out", model="raw", format="hf", options=options, max_mem="8G")
    assert streamconv.diff(case.source, tmp_path / "out").same
    before, config = (json.loads((folder / "config.json").read_text()) for folder in (case.source, tmp_path / "out"))
    assert config == before
    streamconv.verify(tmp_path / "out", source=case.source)


@pytest.mark.parametrize("case", IN_FAMILIES, ids=named)
def test_a_family_makes_of_it_what_it_makes_of_bf16(case: Case, tmp_path: Path) -> None:
    family = case.values["family"]
    for source in (case.source, case.dequantised):
        streamconv.convert(source, tmp_path / source.name, **family, max_mem="8G")
    assert golden.found(tmp_path / "src") == golden.found(tmp_path / "dequantised")
    streamconv.verify(tmp_path / "src", source=case.source)
