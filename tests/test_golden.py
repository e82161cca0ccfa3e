"""Every golden case, through the public API: names, shapes, dtypes and bytes as MindFormers' converters made them."""

from __future__ import annotations

from collections import Counter

import golden
import pytest

import streamconv

CASES = golden.cases(*(folder.name for folder in sorted(golden.FOLDER.iterdir()) if folder.is_dir()))
#: Golden cases per family.
COUNTS = {
    "baichuan2": 5,
    "blip2": 2,
    "bloom": 5,
    "codegeex2": 2,
    "cogvlm2": 5,
    "deepseek": 9,
    "deepseek2": 3,
    "deepseek3": 16,
    "glm-n": 9,
    "gpt": 6,
    "internlm": 6,
    "internlm2": 7,
    "knowlm": 2,
    "llama": 19,
    "llava": 2,
    "mae": 2,
    "mixtral": 9,
    "qwen": 6,
    "qwen1_5": 5,
    "qwen2": 5,
    "qwen2_5": 14,
    "qwen2_moe": 7,
    "qwen3": 7,
    "qwen3_moe": 4,
    "qwenvl": 3,
    "skywork": 2,
    "swin": 5,
    "telechat": 7,
    "telechat2": 5,
    "vit": 3,
    "whisper": 3,
    "wizardcoder": 4,
    "yi": 6,
}
FORWARD = [case for case in CASES if not case.arguments["reverse"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_case(case: golden.Case, tmp_path) -> None:
    source = case.write_source(tmp_path / "source")
    streamconv.convert(source, tmp_path / "out", **case.arguments)
    assert golden.found(tmp_path / "out") == case.expected


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.name)
def test_golden_case_from_other_shards_into_a_ckpt(case: golden.Case, tmp_path) -> None:
    source = case.write_source(tmp_path / "source", shard_count=5)
    streamconv.convert(source, tmp_path / "out.ckpt", **case.arguments)
    assert golden.found(tmp_path / "out.ckpt") == case.expected


def test_all_cases_are_here() -> None:
    counts = Counter(case.arguments["model"] for case in CASES)
    assert counts == {name: COUNTS[name] for name in counts}
