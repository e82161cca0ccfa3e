"""I1 for quantised sources: tensors of 224 MiB in bfloat16, and what they are read from, stay below 160 MiB."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import found_in_the_tree
from support.watching import drop_from_cache, watch

with found_in_the_tree():
    from benchmarks import quantised

MIB = 1 << 20
BUDGET = 160 * MIB
SHAPES = {f"layers.{number}": (8192, 14336) for number in range(2)}

#: With few scales and many, in order and not, along the output and across it.
KINDS = [
    "INT4, groups of 128, zero points",
    "GPTQ, 4 bits, activation order",
    "INT8, groups of 16, zero points",
    "MXFP8",
]


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_tensors_larger_than_the_budget(kind: str, tmp_path: Path) -> None:
    source = quantised.write(tmp_path / "source", kind, SHAPES)
    drop_from_cache(source)
    words = ["--model", "raw", "--format", "hf", "--max-mem", str(BUDGET), "--workers", "2"]
    seen = watch(["convert", str(source), str(tmp_path / "out"), *words])
    assert seen.peak <= BUDGET
    assert seen.report["total_bytes"] > 2 * 224 * MIB
    assert seen.report["read_bytes"] <= 2 * seen.report["source_bytes"]
