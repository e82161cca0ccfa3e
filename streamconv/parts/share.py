"""One of N equal processes: which share of a plan's parts it converts, as given or as its scheduler says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..text import quote, setting
from .cutting import Part

#: Processes that may share a plan, at most.
MOST = 1_000_000

_SHOWN = 8

_GIVEN = re.compile(r"(?:([0-9]+)|auto)(?:/([0-9]+))?")


class _Scheduler(NamedTuple):
    """Variables by which a scheduler tells a process which one it is, and of how many."""

    number: str
    first: int
    of: tuple[str, ...]


#: Slurm's arrays may begin anywhere and have gaps, see `_of_array`.
_ARRAY = "SLURM_ARRAY_TASK_ID"
_SCHEDULERS = (
    _Scheduler("JOB_COMPLETION_INDEX", 0, ()),
    _Scheduler("RANK_ID", 0, ("RANK_SIZE", "MS_WORKER_NUM")),
    _Scheduler("OMPI_COMM_WORLD_RANK", 0, ("OMPI_COMM_WORLD_SIZE",)),
    _Scheduler("PMI_RANK", 0, ("PMI_SIZE",)),
    _Scheduler("SLURM_PROCID", 0, ("SLURM_NTASKS", "SLURM_NPROCS")),
)

#: msrun starts the same command once more, as its scheduler, which has the number of the first worker.
_ROLE, _SCHEDULER = "MS_ROLE", "MS_SCHED"


class Share(NamedTuple):
    """Share `number` of `of`, counted from 1; `known` says which variable told."""

    number: int
    of: int
    known: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def parts(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return the parts that are this share's: neighbors, and as many as the others have, give or take one."""
        return parts[len(parts) * (self.number - 1) // self.of : len(parts) * self.number // self.of]


def is_scheduler(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether msrun started this process to schedule the workers: with `auto`, it has no share."""
    return text.startswith("auto") and environment.get(_ROLE) == _SCHEDULER


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share that `I/N` names; with `auto` or `auto/N`, the scheduler's variables say what is missing.

    Raises:
        UsageError: it is written otherwise, no scheduler says which it is, or several do and differ.
    """
    found = _GIVEN.fullmatch(text)
    if not found:
        raise UsageError(f"cannot parse {setting('part', quote(text))}", "write I/N with I from 1 to N, auto or auto/N")
    if is_scheduler(text, environment):
        raise UsageError(
            f"{setting('part', quote(text))} has no part for msrun's scheduler",
            f"do nothing where {_ROLE} is {_SCHEDULER}",
        )
    number, of = (None if one is None else int(one[:9]) for one in found.groups())
    if number is None:
        return _checked(_by_scheduler(of, environment), text)
    if of is None:
        raise UsageError(f"{setting('part', quote(text))} does not say of how many", "write I/N with I from 1 to N")
    return _checked(Share(number, of), text)


def _checked(share: Share, text: str) -> Share:
    if not 1 <= share.number <= share.of <= MOST:
        told = f" ({share.known} says {share})" if share.known else ""
        raise UsageError(
            f"{setting('part', quote(text))} is not one of 1/N to N/N{told}", f"N is at most {MOST}; write I/N"
        )
    return share


def _by_scheduler(of: int | None, environment: Mapping[str, str]) -> Share:
    """Return what the environment says. One of one says nothing: a scheduler may start another's processes so."""
    found = [share for share in _told(of, environment) if share.of > 1] or list(_told(of, environment))
    names = ", ".join(dict.fromkeys(share.known for share in found))
    if not found:
        known = ", ".join([_ARRAY, *(one.number for one in _SCHEDULERS)])
        raise UsageError(
            f"no scheduler says which part this process is: none of {known} is set together with their number",
            f"give {setting('part', 'I/N')}; where the scheduler gives I alone, {setting('part', 'auto/N')}",
        )
    if len({share[:2] for share in found}) > 1:
        raise UsageError(f"{names} say different parts: {', '.join(map(str, found))}", f"give {setting('part', 'I/N')}")
    return found[0]


def _told(of: int | None, environment: Mapping[str, str]) -> list[Share]:
    found = []
    for scheduler in _SCHEDULERS:
        number = _number(environment, scheduler.number)
        sizes = [size for name in scheduler.of if (size := _number(environment, name)) is not None]
        if number is not None and (of or sizes):
            found.append(Share(number - scheduler.first + 1, of or sizes[0], scheduler.number))
    return [*_of_array(of, environment), *found]


def _of_array(of: int | None, environment: Mapping[str, str]) -> list[Share]:
    """Return what Slurm says to a task of an array: `--array=0-30:2` has 16 tasks, the last is 30."""
    number, first = _number(environment, _ARRAY), _number(environment, "SLURM_ARRAY_TASK_MIN")
    count, step = _number(environment, "SLURM_ARRAY_TASK_COUNT"), _number(environment, "SLURM_ARRAY_TASK_STEP")
    if number is None or first is None or not (of or count):
        return []
    return [Share((number - first) // (step or 1) + 1, of or count or 0, _ARRAY)]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def holding(parts: Sequence[int], of: int, count: int) -> list[int]:
    """Return the shares of `of` that have these parts, of `count` parts in all."""
    return sorted({next(n for n in range(1, of + 1) if part < count * n // of) for part in parts})


def named(numbers: Sequence[int], of: int) -> str:
    """Name shares of `of`, with the verb."""
    if len(numbers) == 1:
        return f"part {numbers[0]} of {of} is"
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"parts {', '.join(map(str, numbers[:_SHOWN]))}{more} of {of} are"
