"""Parts of a plan converted, or compared with a result: what a worker does of a conversion. It plans itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..conversion import Plan
from ..engine.progress import OnProgress, Progress
from ..parts.work import PartComparison, PartWork
from ..plans import plan
from ..prepared import decide_budget
from .kinds import IsStopped, OnWork

#: The kinds of these jobs, for the driver.
CONVERT, COMPARE = "convert", "compare"


class ConvertJob:
    """Parts of a plan. A task has `part`, its number; the result is the bytes `written` and `read` for it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        planned = _planned(arguments)
        self._work = PartWork(planned, decide_budget(*_of_budget(planned)))

    def run(self, task: Mapping[str, Any], progress: OnWork, is_stopped: IsStopped) -> dict[str, Any]:
        """Convert a part, from where whoever had it before ended."""
        done = self._work.convert(task["part"], _reporting(progress))
        return {"written": done.written, "read": done.read}


class CompareJob:
    """Parts of a result, compared with what the source gives. A task has `part`, its number; the result is empty."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        planned = _planned(arguments)
        self._comparison = PartComparison(planned, planned.destination.paths, decide_budget(*_of_budget(planned)))

    def run(self, task: Mapping[str, Any], progress: OnWork, is_stopped: IsStopped) -> dict[str, Any]:
        """Compare a part."""
        self._comparison.compare(task["part"], _reporting(progress))
        return {}


def _planned(arguments: Mapping[str, Any]) -> Plan:
    asked = {name: value for name, value in arguments.items() if name != "memory_limit"}
    return plan(asked.pop("source"), asked.pop("dest"), max_mem=arguments["memory_limit"], **asked)


def _of_budget(planned: Plan) -> Any:
    return planned.mapping, planned.layout, planned.budget.memory_limit, planned.workers


def _reporting(progress: OnWork) -> OnProgress:
    def report(event: Progress) -> None:
        progress(event.done, 0, event.file)

    return report
