"""Tests of the whole program run commands, or many conversions: all are slow."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: They measure, or share what takes long to make: the tests of each run one after the other.
TOGETHER = {"test_benchmarks", "test_budget", "test_full_size", "test_page_cache", "test_real_model"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.system)
        item.add_marker(pytest.mark.slow)
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.path.stem == "test_benchmarks":
            item.add_marker(pytest.mark.bench)
        if "fuzz" in item.path.parts:
            item.add_marker(pytest.mark.fuzz)
