"""The benchmark of threads against processes runs, and its tables follow from what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from support import ROOT, found_in_the_tree

with found_in_the_tree():
    from benchmarks import hand_over
    from benchmarks.results import Setting

ONE = {"kernel": "copy", "mib": 10.0, "calls": 20, "between": 1e-3, "processor": 1.0}
FOUND = [{**ONE, "one": [1.0, 1.0], "threads": [1.5, 1.6], "processes": [1.1, 1.0]}]


def test_every_kernel_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its processes look for the benchmarks where this one does.
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    said: list[str] = []
    found = hand_over.measure(Setting(tmp_path, None, 2, quick=True), said.append)
    assert len(said) == 1 and all(one["kernel"] in said[0] for one in found)
    assert {len(one[kind]) for one in found for kind in ("one", "threads", "processes")} == {2}
    assert all(one["calls"] >= 1 and one["between"] > 0 and one["processor"] > 0 and one["mib"] > 0 for one in found)
    assert [len(table.rows) for table in hand_over.tables(found)] == [len(found)] * 2


def test_calls_that_give_the_lock_up_are_counted() -> None:
    one, two, pairs = np.zeros(9), np.zeros(9), range(3)
    assert hand_over._calls(lambda: [np.copyto(one, two) for _ in pairs]) == 3
    assert hand_over._calls(lambda: [(one.max(), np.copyto(one, two)) for _ in pairs]) == 6


def test_tables_follow_from_what_was_measured() -> None:
    speed_ups, shares = hand_over.tables(FOUND)
    assert speed_ups.rows == [("copy", "1.29 (1.25-1.33)", "1.91 (1.82-2.00)", "0.68 (0.62-0.73)")]
    assert shares.rows == [("copy", "100000", "2.0", "1000.0", "25000", "16", "32", "64", "100", "50")]


def test_the_figure_is_of_every_kernel() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = hand_over.figure(FOUND).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["copy"]
