"""Shared by tests of parts: blocks so small that a tiny model has many parts, and conversions part by part."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamconv import conversion, plans
from streamconv.checks import against_source
from streamconv.conversion import Plan
from streamconv.parts import cutting, scopes, work
from streamconv.parts.cutting import Part
from streamconv.parts.work import PartWork
from streamconv.prepared import decide_budget
from streamconv.report import Report
from system.sweep_faults import small_units

BLOCK = 4 << 10


@contextlib.contextmanager
def small_parts(least: int = 10 << 10) -> Iterator[None]:
    """Blocks of 4 KiB, and parts of about `least` bytes read and written."""
    with small_units(), pytest.MonkeyPatch.context() as patch:
        for module in (cutting, scopes, work, against_source):
            patch.setattr(module, "BLOCK", BLOCK)
        patch.setattr(cutting, "LEAST_BYTES", least)
        yield


def work_on(planned: Plan) -> PartWork:
    """What a process has that converts parts."""
    budget = decide_budget(planned.mapping, planned.layout, planned.budget.memory_limit, planned.workers)
    return PartWork(planned, budget)


def convert(
    source: Path, dest: Path, order: Callable[[Sequence[Part]], Sequence[Part]] | None = None, **arguments: Any
) -> Report:
    """Convert part by part, in this order, by a process for each, and put the result together."""
    planned = plans.plan(source, dest, **arguments)

    def spread(parts: Sequence[Part], done: int, hold: Callable[[], None]) -> int:
        every = order(parts) if order else parts
        return sum(work_on(plans.plan(source, dest, **arguments)).convert(part.number).read for part in every)

    return conversion.run_spread(planned, spread)


def shuffled(seed: int) -> Callable[[Sequence[Part]], Sequence[Part]]:
    """Take parts in a random order."""

    def order(parts: Sequence[Part]) -> Sequence[Part]:
        return random.Random(seed).sample(list(parts), len(parts))

    return order
