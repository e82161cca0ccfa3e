"""Compare two checkpoints of any formats, by name, shape, dtype and value.

Headers say most of it. Tensors of one name and shape are read side by side, box by box in A's file order, a few boxes
at a time; what differs is counted, and nothing that is kept grows with a tensor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec import Struct

from ..arguments import Paths, as_path, as_paths, check
from ..engine import budget as memory
from ..engine.progress import OnProgress, ProgressReporter
from ..paths import PathLike
from ..ranks.opening import open_each
from ..tensors.refs import Catalog
from ..text import counted, format_size, quote, setting
from ..units import parse_size
from .comparison import Comparison
from .difference import KINDS, Difference

_SHOWN = 20
_UNLIKE = (
    "are in both: if one has HuggingFace's names and the other MindSpore's, convert one of them first, or verify the "
    "output against its source"
)


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
        names = [name for name in one if name in other]
        found = [difference for _, difference in comparison.compare(names, reporter.report)]
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
