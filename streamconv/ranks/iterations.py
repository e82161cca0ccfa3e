"""Which files of a training are read, where MindFormers 2.x saved each iteration into one directory.

    checkpoint/latest_checkpointed_iteration.txt    the number of the newest, written when it is complete
    checkpoint/iteration_00000010/metadata.json     which file has which slice; not of a training on one card
    checkpoint/iteration_00000010/[PREFIX-]model-0000000-0000004.safetensors, …-opt-… of the optimizer

Source: MindFormers 1.7 to 2.1, `use_legacy_format: False`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from ..errors import SourceError, UsageError
from ..formats.headers import opened, read_at
from ..formats.rank_slices import model_files
from ..storage import disk
from ..storage.whole_files import names_in
from ..text import first_few, quote, setting

METADATA = "metadata.json"
TRACKER = "latest_checkpointed_iteration.txt"
#: The folder of a training's output that holds its iterations.
SAVED_IN = "checkpoint"
_ITERATION = re.compile(r"iteration_(\d{7,})")
_SHOWN = 5
# Of a number in a file, with more room than any has.
_DIGITS = 32


class Iteration(Struct, frozen=True):
    """The directory of one iteration.

    Attributes:
        directory: where its files are.
        names: all of them.
        number: its number, `None` where the directory's name does not tell it.
        why: why this one is read, where others may be there.
        others: the numbers of other iterations of the training.
    """

    directory: Path
    names: Sequence[str]
    number: int | None
    others: Sequence[int] = ()
    why: str = ""

    @property
    def has_metadata(self) -> bool:
        """Whether it tells how tensors are cut."""
        return METADATA in self.names


def number_of(name: str) -> str | None:
    """Return the number of the iteration that a directory of this name holds, as it is written."""
    found = _ITERATION.fullmatch(name)
    return str(int(found[1])) if found else None


def find(path: Path, step: str | None) -> Iteration | None:
    """Return the iteration that a directory is, or the one to read of those that it holds.

    Args:
        path: a directory.
        step: the number of the iteration, if one was asked for.

    Raises:
        UsageError: it does not hold the iteration that was asked for.
        SourceError: the newest iteration is not there.
    """
    names = names_in(path)
    own = _ITERATION.fullmatch(Path(disk.resolve(path)).name)
    if len(models := model_files(names)) > 1 or (models and METADATA in names):
        if step is not None and own and step != str(int(own[1])):
            raise UsageError(f"{quote(path)} is iteration {int(own[1])}, not {step}", f"omit {setting('step')}")
        return Iteration(path, names, int(own[1]) if own else None)
    roots = {path: names, **({path / SAVED_IN: names_in(path / SAVED_IN)} if SAVED_IN in names else {})}
    for root, inside in roots.items():
        found = {int(match[1]): name for name in inside if (match := _ITERATION.fullmatch(name))}
        numbers = {number: root / name for number, name in found.items() if model_files(names_in(root / name))}
        if numbers or (found and TRACKER in inside):
            number, why = _chosen(root, numbers, step)
            return Iteration(numbers[number], names_in(numbers[number]), number, sorted({*numbers} - {number}), why)
    return None


def _chosen(root: Path, numbers: dict[int, Path], step: str | None) -> tuple[int, str]:
    """Return the number of the iteration to read, and why it is that one."""
    listed = first_few([*map(str, sorted(numbers, reverse=True))], _SHOWN)
    there = f"there are: {listed}" if listed else "no iteration has its weights"
    if step is not None:
        if not step.isdecimal() or int(step) not in numbers:
            raise UsageError(f"{quote(root)} holds no iteration {quote(step)}; {there}")
        return int(step), ""
    newest = _tracked(root)
    if newest is None:
        complete = [number for number, place in numbers.items() if METADATA in names_in(place)]
        return max(complete or numbers), "the newest complete one" if complete else "the newest"
    if newest not in numbers:
        raise SourceError(
            f"{quote(root / TRACKER)} names iteration {newest}, whose weights are missing; {there}",
            "copy its files too" + (f", or choose another with {setting('step', 'NUMBER')}" if numbers else ""),
        )
    return newest, f"the one that {TRACKER} names"


def _tracked(root: Path) -> int | None:
    """Return the number in the file that names the newest complete iteration, `None` without one."""
    with suppress(SourceError), opened(root / TRACKER) as (descriptor, file):
        text = read_at(descriptor, 0, min(file.size, _DIGITS), file).decode(errors="replace").strip()
        return int(text) if text.isdecimal() and file.size < _DIGITS else None
    return None
