"""Tensors stored twice on one side: tied heads, copies, and tensors that are in two files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from ..errors import SourceError, StreamconvError, UnsupportedError
from ..rules.patterns import fill, holes
from ..rules.statements import TIED, Copy, Rule, Side, Tied
from ..rules.table import Table
from ..tensors.refs import Catalog, TensorRef
from ..text import quote, setting
from .matching import Matches

#: Whether two tensors begin with the same bytes: all that planning may ask of tensor data.
SameStart = Callable[[TensorRef, TensorRef], bool]


class SameBytes(Struct, frozen=True):
    """A check to make before anything is written.

    Attributes:
        kept: the tensor that is written; `None` if `other` must hold only zeros.
        other: the tensor whose bytes must equal those of `kept`.
        error: what to raise otherwise.
    """

    kept: TensorRef | None
    other: TensorRef
    error: StreamconvError


class Repeat(Struct, frozen=True):
    """A tensor that the target stores a second time.

    Attributes:
        number: the statement's place in the table.
        name: its name on the target's side.
        of: the source's tensor that it repeats.
        others: other tensors of the source with the same bytes.
    """

    number: int
    name: str
    of: TensorRef
    others: tuple[str, ...] = ()


class Repeats:
    """What is stored twice: checks and drops for the source's tensors, repeats for the target's.

    Attributes:
        checks: tensors of the source that must hold the same bytes.
        dropped: tensor of the source -> why it is not written.
        untied: the config ties the head, and the source's differs from the embedding.
    """

    def __init__(self, matches: Matches, catalog: Catalog, table: Table, same_start: SameStart) -> None:
        self.checks: list[SameBytes] = []
        self.dropped: dict[str, str] = {}
        self._matches, self._catalog, self._table, self._same_start = matches, catalog, table, same_start
        self._forward = table.side is Side.HF
        self._untied: dict[str, TensorRef] = {}
        self._check_equal()
        self._note_lost()
        for tied in (statement for statement in table.statements if isinstance(statement, Tied)):
            self._check_tied(tied)

    @property
    def untied(self) -> bool:
        """Whether a head that the config ties differs from the embedding."""
        return bool(self._untied)

    def _check_equal(self) -> None:
        """Check tensors that are in two files, and dropped tensors that must equal another."""
        for first, second in self._catalog.twice:
            self.checks.append(SameBytes(first, second, _in_two_files(first, second, self._catalog.of_ranks)))
        for name, other in self._matches.must_equal.items():
            if other in self._catalog:
                kept, dropped = self._catalog[other], self._catalog[name]
                error = _unequal(dropped, kept, f"it is {self._matches.dropped[name]}: one of them is wrong")
                self.checks.append(SameBytes(kept, dropped, error))

    def _note_lost(self) -> None:
        """Note dropped tensors that should repeat another and do not."""
        for name, of in self._matches.should_repeat.items():
            original = self._catalog.get(self._source_name(of))
            if original is not None and not self._same_start(original, self._catalog[name]):
                why = self._matches.dropped[name]
                self.dropped[name] = f"{why}; it differs from {original.name}, and is lost"

    def _check_tied(self, tied: Tied) -> None:
        """Check that a tied tensor of the source equals its original; in reverse, training may have untied it."""
        (name,) = tied.patterns(self._table.side)
        other = self._matches.tied_refs.get(name)
        if other is None:
            return
        of = self._original(tied)
        if not self._forward and not self._same_start(of, other):
            self._untied[tied.hf] = other
            return
        self.checks.append(SameBytes(of, other, _unequal(other, of, *_NOT_TIED)))
        if not (self._forward and tied.stored_twice):
            self.dropped[other.name] = f"tied: the same bytes as {of.name}"

    def __iter__(self) -> Iterator[Repeat]:
        for number, statement in enumerate(self._table.statements):
            if isinstance(statement, Tied):
                yield from self._repeats_of_tied(number, statement)
            elif isinstance(statement, Copy) and not self._forward:
                yield from self._repeats_of_copy(number, statement)

    def _repeats_of_tied(self, number: int, tied: Tied) -> Iterator[Repeat]:
        if tied.hf in self._untied:
            yield Repeat(number, tied.hf, self._untied[tied.hf])
        elif self._forward and tied.stored_twice:
            other = self._matches.tied_refs.get(tied.hf)
            yield Repeat(number, tied.ms, self._original(tied), (other.name,) if other else ())

    def _repeats_of_copy(self, number: int, copy: Copy) -> Iterator[Repeat]:
        original = self._catalog.get(self._source_name(copy.of))
        is_written = any(application.rule.hf == copy.hf for application in self._matches.applications)
        if original is not None and not is_written:
            yield from (Repeat(number, name, original) for name in self._copy_names(copy))

    def _copy_names(self, copy: Copy) -> Iterator[str]:
        if not holes((copy.hf,)):
            yield copy.hf
        for hole in holes((copy.hf,)):
            for number in self._table.ranges.values(hole):
                yield fill(copy.hf, {hole: number}, self._table.sizes)

    def _original(self, tied: Tied) -> TensorRef:
        return self._catalog[self._source_name(tied.of)]

    def _source_name(self, hf: str) -> str:
        """Return the source's name of HF tensor `hf`; a required rule has it, or the tensor that it is tied to."""
        statements = self._table.statements
        hf = next((s.of for s in statements if isinstance(s, Tied) and s.hf == hf), hf)
        return next(s.patterns(self._table.side)[0] for s in statements if isinstance(s, Rule) and s.hf == hf)


_NOT_TIED = (
    f"config.json says {TIED}: one of them is wrong",
    f"if they are meant to differ, set {TIED} to false in config.json",
)


def _unequal(other: TensorRef, kept: TensorRef, why: str, hint: str = "") -> UnsupportedError:
    return UnsupportedError(f"{quote(other.name)} differs from {quote(kept.name)}, but {why}", hint)


def _in_two_files(first: TensorRef, second: TensorRef, of_ranks: bool) -> SourceError:
    files = " and ".join(quote(next(ref.places()).file.path.name) for ref in (first, second))
    if of_ranks:
        return SourceError(
            f"{quote(first.name)} is in two pipeline stages, in {files} and others, and the two differ: "
            "it is ambiguous which one is meant",
            f"choose another step of the training with {setting('step', 'STEP')}: the stages may have saved different "
            "ones",
        )
    return SourceError(
        f"{quote(first.name)} is in {files}, and the two differ: it is ambiguous which one is meant",
        "remove the file that does not belong there",
    )
