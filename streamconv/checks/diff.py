"""Compare two checkpoints of any formats, by name, shape, dtype and value.

Headers say most of it. Tensors of one name and shape are read side by side, window by window in A's file order, by
one thread; what differs is counted, and nothing that is kept grows with a tensor.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType

import numpy as np
from msgspec import Struct

from ..arguments import Paths, as_path, as_paths, check
from ..engine import budget as memory
from ..engine.progress import OnProgress, ProgressReporter
from ..engine.side_by_side import SideBySide
from ..paths import PathLike
from ..ranks.opening import open_each
from ..storage import access
from ..tensors.arrays import Bits
from ..tensors.grids import Box, box_shape, flat_index
from ..tensors.refs import Catalog, TensorRef
from ..text import counted, format_size, quote, setting
from ..units import parse_size
from .elements import Compared, comparable

_SHOWN = 20

#: What can differ, in the order in which it is said, with the words of the summary.
KINDS = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "with a different shape",
    "dtype": "with a different dtype",
    "values": "with different values",
    "bits": "with equal values but different bits",
}
_UNLIKE = (
    "are in both: if one has HuggingFace's names and the other MindSpore's, convert one of them first, or verify the "
    "output against its source"
)


class Difference(Struct, frozen=True):
    """A tensor that differs between the two checkpoints.

    Attributes:
        kind: one of `KINDS`, the first that holds.
        one, other: the tensor in A and in B; `None` where it is not there.
        compared: how its elements compare; `None` where they cannot be compared.
    """

    kind: str
    one: TensorRef | None
    other: TensorRef | None
    compared: Compared | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return (self.one or self.other).name  # type: ignore[union-attr]

    def __str__(self) -> str:
        sides = [f"{side} {r.dtype} {list(r.shape)}" for side, r in (("A", self.one), ("B", self.other)) if r]
        if self.kind in ("values", "bits"):
            sides = sides[:1]
            sides[0] = sides[0].removeprefix("A ")
        return "; ".join([f"{quote(self.name)}  {', '.join(sides)}", *self._values()])

    def _values(self) -> Iterator[str]:
        """Say how its values differ."""
        found = self.compared
        if found is None:
            return
        if found.same:
            yield "same values"
        if found.unequal:
            yield f"{found.unequal} of {counted(found.elements, 'element')} differ, the first at {self._first()}"
        if found.largest is not None:
            yield f"the largest difference is {_number(found.largest)}"
        if found.nans:
            yield f"{found.nans} of them {'is' if found.nans == 1 else 'are'} NaN on one side only"
        if found.bits_only:
            where = "" if found.unequal else f", the first at {self._first()}"
            said = f"{'has' if found.bits_only == 1 else 'have'} equal values but different bits"
            yield f"{found.bits_only} of {counted(found.elements, 'element')} {said}{where}"

    def _first(self) -> str:
        first = self.first
        return f"{first['index']}: A {first['a']}, B {first['b']}" if first else ""

    @property
    def first(self) -> dict[str, object] | None:
        """The first element that differs in value, else in bits: its index, and its value in A and in B as text."""
        found = self.compared
        element = found and (found.first or found.first_bits)
        if not (found and element and self.one):
            return None
        a, b = found.shown(element)
        return {"index": [int(i) for i in np.unravel_index(element.number, self.one.shape)], "a": a, "b": b}

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; an infinite difference is the text `inf`."""
        sides = {
            side: ref and {"dtype": ref.dtype.name, "shape": list(ref.shape)}
            for side, ref in (("a", self.one), ("b", self.other))
        }
        found = self.compared
        if found is None:
            return {"name": self.name, "kind": self.kind, **sides}
        largest = found.largest if found.largest is None or math.isfinite(found.largest) else str(found.largest)
        return {
            "name": self.name,
            "kind": self.kind,
            **sides,
            "elements": found.elements,
            "unequal": found.unequal,
            "bits_only": found.bits_only,
            "nans": found.nans,
            "largest": largest,
            "first": self.first,
        }


class Diff(Struct, frozen=True):
    """What two checkpoints differ in. `print` it.

    Attributes:
        a, b: the two checkpoints.
        common: how many tensor names are in both.
        bytes_compared: bytes of tensors that were compared, of both sides together.
        differences: what differs: by kind, and in A's file order (B's, for what is only there).
    """

    a: Catalog
    b: Catalog
    common: int
    bytes_compared: int
    differences: Sequence[Difference]

    def __repr__(self) -> str:
        return f"<Diff {self.summary}>"

    @property
    def same(self) -> bool:
        """Whether names, shapes, dtypes and all bits are the same."""
        return not self.differences

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        names = f"{quote(self.a.path)} and {quote(self.b.path)}"
        if self.same:
            size = format_size(self.a.nbytes)
            return f"{names} are identical, bit for bit: {counted(self.common, 'tensor')}, {size}"
        counts = Counter(d.kind for d in self.differences)
        same = sum(d.kind == "dtype" and d.compared is not None and d.compared.same for d in self.differences)
        words = {**KINDS, "dtype": f"{KINDS['dtype']} ({same} of them with equal values)"}
        first, *others = (kind for kind in KINDS if counts[kind])
        parts = [
            f"{counted(counts[first], 'tensor')} {words[first]}",
            *(f"{counts[kind]} {words[kind]}" for kind in others),
        ]
        equal = self.common - sum(counts[kind] for kind in KINDS if not kind.startswith("only"))
        return f"{names} differ: {', '.join(parts)}; {equal} identical{self._advice}"

    @property
    def _advice(self) -> str:
        """What to do if few names are common: of a Llama, the two sides have one name in common."""
        if 2 * self.common >= min(len(self.a), len(self.b)):
            return ""
        return f"; {'few' if self.common else 'no'} names {_UNLIKE}"

    def __str__(self) -> str:
        return "\n".join([*self.details(), self.summary])

    def details(self) -> Iterator[str]:
        """Yield the first tensors of every kind that the summary counts."""
        for kind, words in KINDS.items():
            found = [d for d in self.differences if d.kind == kind]
            if found:
                yield f"{counted(len(found), 'tensor')} {words}"
                yield from (f"  {one}" for one in islice(found, _SHOWN))
            if len(found) > _SHOWN:
                yield f"  and {len(found) - _SHOWN} more"

    def json_lines(self) -> Iterator[str]:
        """Yield the result as one JSON object, with a line for each tensor that differs."""
        head = {
            "a": str(self.a.path),
            "b": str(self.b.path),
            "same": self.same,
            "common": self.common,
            "bytes": self.bytes_compared,
        }
        yield json.dumps(head).removesuffix("}") + ', "differences": ['
        last = len(self.differences) - 1
        for number, difference in enumerate(self.differences):
            yield json.dumps(difference.to_json()) + ("," if number < last else "")
        yield "]}"


def diff_checkpoints(
    a: PathLike,
    b: PathLike,
    *,
    max_mem: str | int | None = None,
    io: str = "auto",
    strategy: Paths | None = None,
    step: str | int | None = None,
    progress: OnProgress | None = None,
) -> Diff:
    """Compare two checkpoints of any supported formats, by name, shape, dtype and value.

    Args:
        a, b, max_mem, io, strategy, step, progress: as `streamconv.diff` takes them.

    Raises:
        StreamconvError: as `streamconv.diff`.
    """
    one, other, limit = open_both(a, b, max_mem=max_mem, io=io, strategy=strategy, step=step)
    with Comparison(one, other, limit, io) as comparison:
        reporter = ProgressReporter(progress, comparison.nbytes, limit)
        found = [comparison.compare(name, reporter.report) for name in one if name in other]
    return joined(one, other, comparison.done, found)


def open_both(
    a: PathLike,
    b: PathLike,
    *,
    max_mem: str | int | None = None,
    io: str = "auto",
    strategy: Paths | None = None,
    step: str | int | None = None,
) -> tuple[Catalog, Catalog, int]:
    """Return the tensors of two checkpoints, and the memory limit in bytes.

    Args:
        a, b, max_mem, io, strategy, step: as `streamconv.diff` takes them.

    Raises:
        StreamconvError: as `streamconv.diff`.
    """
    check(io=io)
    limit = memory.default_limit() if max_mem is None else parse_size(max_mem, setting("max_mem"))
    paths, room = (as_path(a, "a"), as_path(b, "b")), lambda: memory.header_room(limit)
    one, other = open_each(paths, room, as_paths(strategy, "strategy"), None if step is None else str(step))
    memory.check_planning(limit, len(one) + len(other))
    return one, other, limit


def joined(one: Catalog, other: Catalog, nbytes: int, compared: Iterable[Difference | None]) -> Diff:
    """Return what two checkpoints differ in.

    Args:
        one, other: the two.
        nbytes: the bytes that were compared, of both sides together.
        compared: for each tensor that is in both, in the order of the one, how it differs.
    """
    found = [Difference("only in A", one[name], None) for name in one if name not in other]
    found += [Difference("only in B", None, other[name]) for name in other if name not in one]
    common = list(compared)
    found += [difference for difference in common if difference]
    found.sort(key=lambda difference: list(KINDS).index(difference.kind))
    return Diff(one, other, len(common), nbytes, found)


def bytes_to_read(one: TensorRef, other: TensorRef) -> int:
    """Return the bytes of two tensors of one name, if there are elements of them that can be compared, else 0."""
    readable = one.shape == other.shape and comparable(one.dtype, other.dtype)
    return one.nbytes + other.nbytes if readable else 0


class Comparison:
    """Compares two checkpoints tensor by tensor, in the memory of one worker. A context manager: it closes the files.

    Attributes:
        nbytes: the bytes that can be compared, of both sides together.
        done: how many of them were.
    """

    def __init__(self, one: Catalog, other: Catalog, limit: int, io: str) -> None:
        self._one, self._other = one, other
        region_bytes = memory.divide(limit, 1, len(one) + len(other)).region_bytes
        accesses = (access.for_reading(io, one.files).access, access.for_reading(io, other.files).access)
        self._pair = SideBySide(region_bytes, accesses, drops=True)
        self.nbytes = sum(bytes_to_read(one[name], other[name]) for name in one if name in other)
        self.done = 0

    def __enter__(self) -> Comparison:
        self._pair.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pair.__exit__(kind, error, trace)

    def compare(self, name: str, report: Callable[[int, str], None]) -> Difference | None:
        """Return how a tensor that is in both differs.

        Args:
            name: the tensor.
            report: called with `done` and the file that was read last.

        Raises:
            SourceError: a file was changed, or cannot be read.
        """
        one, other = self._one[name], self._other[name]
        if one.shape != other.shape:
            return Difference("shape", one, other)
        compared = self._elements(one, other, report) if comparable(one.dtype, other.dtype) else None
        if one.dtype != other.dtype:
            return Difference("dtype", one, other, compared)
        if compared is None or compared.same:
            return None
        return Difference("values" if compared.unequal else "bits", one, other, compared)

    def _elements(self, one: TensorRef, other: TensorRef, report: Callable[[int, str], None]) -> Compared:
        found = Compared(one.dtype, other.dtype, math.prod(one.shape))

        def add(box: Box, left: Bits, right: Bits) -> bool:
            found.add(left, right, _numbering(box, one.shape))
            self.done += left.nbytes + right.nbytes
            report(self.done, next(one.places()).file.path.name)
            return True

        self._pair.read(one, other, add)
        return found


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _numbering(box: Box, shape: tuple[int, ...]) -> Callable[[int], int]:
    """Return the function from an element's place in a box to its number in the tensor."""

    def number(place: int) -> int:
        inside = np.unravel_index(place, box_shape(box))
        return flat_index([low + int(i) for (low, _), i in zip(box, inside, strict=True)], shape)

    return number
