"""Pickles, read without running them: opcodes move inert values about, and there is nothing that could be called.

A pickle is a program for a stack machine, and Python's machine imports and calls whatever the program names. This
one knows no Python object at all: a name is a `Name`, a call is a `Call` that says what would have been called, and
state that is set on something is dropped. A name has to be on the caller's list, and an opcode among those that
torch.save emits (protocol 2 to 5; `pickle.py` of the standard library is their source); both are refused otherwise.

Memory is bounded by the caller's limit: each opcode counts as some bytes, lengths are held against what is there,
memo numbers are keys and not places, and nothing here compares, hashes or walks a value, so one that holds itself
twice, and that again, costs what its opcodes do.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ..errors import SourceError, UnsupportedError
from ..text import quote
from .headers import HeaderRoom

#: What a dictionary that keeps its order is called; it becomes a `Table`, as a plain one does.
ORDERED_DICT = "collections.OrderedDict"

# What an opcode costs beside its bytes, in bytes of header: both become some twenty times as much in memory.
_OPCODE_COST = 6


@dataclass(slots=True, eq=False)
class Name:
    """A global, by its full name; what it would be is not known here."""

    text: str


@dataclass(slots=True, eq=False)
class Call:
    """What a call would have been."""

    function: str
    arguments: tuple[object, ...]


@dataclass(slots=True, eq=False)
class Table:
    """A dictionary as the pairs that were put in; keys may repeat, and be anything."""

    pairs: list[tuple[object, object]]


@dataclass(slots=True, eq=False)
class Reference:
    """A persistent id: something that lies outside the pickle."""

    id: object


def load(data: bytes, allowed: AbstractSet[str], where: str, header_room: HeaderRoom) -> object:
    """Return the value of a pickle: scalars, str, bytes, tuples, lists (sets too), and this module's inert values.

    Args:
        data: the pickle, all of it.
        allowed: names such as `torch.FloatStorage` that it may hold, besides `ORDERED_DICT`.
        where: the beginning of the error messages.
        header_room: bytes that the pickle may have, counting what its opcodes take as objects.

    Raises:
        SourceError: no pickle, or a damaged one.
        BudgetError: it needs more memory than `header_room` stands for.
        UnsupportedError: another name, or an opcode that torch.save does not emit.
    """
    return _Machine(data, allowed, where, header_room).run()


def largest_cost(size: int) -> int:
    """Return the most room, in bytes of header, that a pickle of `size` bytes can take: each byte may be an opcode."""
    return size * (1 + _OPCODE_COST)


class _Machine:
    """The stack, the marks on it (as its lengths), the memo, and the place in the pickle."""

    def __init__(self, data: bytes, allowed: AbstractSet[str], where: str, header_room: HeaderRoom) -> None:
        self._data, self._allowed, self._where, self._room = data, allowed, where, header_room
        self._at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        actions, count = _ACTIONS, 0
        while (code := self.take(1)[0]) != pickle.STOP[0]:
            action = actions.get(code)
            if action is None:
                raise self._refused(code)
            action(self)
            count += 1
            if self._at + count * _OPCODE_COST > self._room.nbytes:
                self._room.check(self._cost(count), f"the pickle of {self._where} ({len(self._data)} bytes)")
        return self._result()

    def _cost(self, count: int) -> int:
        """Return the bytes of header that the whole pickle stands for, `count` opcodes of which were executed."""
        try:
            count = sum(1 for _ in pickletools.genops(self._data))
        except ValueError:
            # Damaged further on: every byte that is left may be an opcode.
            count += len(self._data) - self._at
        return len(self._data) + count * _OPCODE_COST

    def _result(self) -> object:
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise self.broken("it ends with something left over")
        return self._stack[0]

    # -- what errors say -----------------------------------------------------------------------------------------------

    def broken(self, what: str) -> SourceError:
        """The error for a pickle that no pickler writes."""
        return SourceError(
            f"{self._where}, byte {self._at} of its pickle: {what}; the file is damaged: copy or download it again"
        )

    def _refused(self, code: int) -> UnsupportedError:
        names = (name for name, value in vars(pickle).items() if name.isupper() and value == bytes((code,)))
        return UnsupportedError(
            f"{self._where}, byte {self._at - 1} of its pickle: the opcode {next(names, hex(code))} is none that a "
            "checkpoint needs; nothing of it was executed; do not load this file where you do not trust it"
        )

    # -- what actions are made of --------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """The next so many bytes."""
        end = self._at + count
        if end > len(self._data):
            raise self.broken(f"it ends {end - len(self._data)} bytes early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, width: int, signed: bool = False) -> int:
        """The next little-endian number of so many bytes."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, raw: bytes) -> str:
        """UTF-8 as pickles have it: lone surrogates may be in it."""
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.broken("a text is not UTF-8") from error

    def line(self) -> str:
        """The next line of text."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise self.broken("a name has no end")
        return self.text(self.take(end + 1 - self._at)[:-1])

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> object:
        """The topmost value; what lies below a mark is out of reach."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.broken("a value is missing")
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def marked(self) -> list[object]:
        """All values above the last mark, which goes."""
        if not self._marks:
            raise self.broken("a mark is missing")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # -- actions -------------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        if not 2 <= self.number(1) <= pickle.HIGHEST_PROTOCOL:
            raise self.broken("its protocol is none from 2 up that Python knows")

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self.broken("something is appended to what is no list")
        target.extend(values)

    def set_items(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, Table) or len(values) % 2:
            raise self.broken("something is put into what is no dictionary")
        target.pairs.extend(zip(values[::2], values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise self.broken(f"it refers to value {index}, which it did not note")
        self.push(self._memo[index])

    def put(self, index: int) -> None:
        self._memo[index] = self._top()

    def memoize(self) -> None:
        self.put(len(self._memo))

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.broken("a name is no text")
        full = f"{module}.{name}"
        if full != ORDERED_DICT and full not in self._allowed:
            raise UnsupportedError(
                f"{self._where}: its pickle wants {quote(full)}, which is no part of a checkpoint that streamconv "
                "knows; nothing of it was executed; where you trust the file, load it with torch, and save its "
                "state dict alone"
            )
        self.push(Name(full))

    def name_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise self.broken("it calls what is no name")
        ordered = function.text == ORDERED_DICT and not arguments
        self.push(Table([]) if ordered else Call(function.text, arguments))

    def build(self) -> None:
        # A state dict carries `_metadata` (versions of its modules), which is set in this way; it is left out.
        self.pop()
        if not isinstance(self._top(), Table):
            raise self.broken("it sets the state of what is no dictionary")

    def _top(self) -> object:
        value = self.pop()
        self.push(value)
        return value


def _constant(value: object) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _whole(width: int, signed: bool = False) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(width, signed))


def _long(machine: _Machine) -> None:
    machine.push(machine.number(machine.number(1), signed=True))


def _text(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.text(machine.take(machine.number(width))))


def _bytes(width: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(width)))


def _line_pair(machine: _Machine) -> None:
    module = machine.line()
    machine.name(module, machine.line())


# LONG4 is left out on purpose: a number of more than 255 bytes has no place in a checkpoint, and cannot be printed.
_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    code[0]: action
    for code, action in (
        (pickle.PROTO, _Machine.protocol),
        (pickle.FRAME, lambda machine: machine.take(8) and None),
        (pickle.MARK, _Machine.mark),
        (pickle.NONE, _constant(None)),
        (pickle.NEWTRUE, _constant(True)),
        (pickle.NEWFALSE, _constant(False)),
        (pickle.BININT, _whole(4, signed=True)),
        (pickle.BININT1, _whole(1)),
        (pickle.BININT2, _whole(2)),
        (pickle.LONG1, _long),
        (pickle.BINFLOAT, lambda machine: machine.push(*struct.unpack(">d", machine.take(8)))),
        (pickle.SHORT_BINUNICODE, _text(1)),
        (pickle.BINUNICODE, _text(4)),
        (pickle.BINUNICODE8, _text(8)),
        (pickle.SHORT_BINSTRING, _bytes(1)),
        (pickle.BINSTRING, _bytes(4)),
        (pickle.SHORT_BINBYTES, _bytes(1)),
        (pickle.BINBYTES, _bytes(4)),
        (pickle.BINBYTES8, _bytes(8)),
        (pickle.EMPTY_TUPLE, _constant(())),
        (pickle.TUPLE1, lambda machine: machine.tuple_of(1)),
        (pickle.TUPLE2, lambda machine: machine.tuple_of(2)),
        (pickle.TUPLE3, lambda machine: machine.tuple_of(3)),
        (pickle.TUPLE, lambda machine: machine.push(tuple(machine.marked()))),
        (pickle.EMPTY_LIST, lambda machine: machine.push([])),
        (pickle.EMPTY_SET, lambda machine: machine.push([])),
        (pickle.EMPTY_DICT, lambda machine: machine.push(Table([]))),
        (pickle.APPEND, lambda machine: machine.append([machine.pop()])),
        (pickle.APPENDS, lambda machine: machine.append(machine.marked())),
        (pickle.ADDITEMS, lambda machine: machine.append(machine.marked())),
        (pickle.SETITEM, _Machine.set_item),
        (pickle.SETITEMS, lambda machine: machine.set_items(machine.marked())),
        (pickle.BINGET, lambda machine: machine.get(machine.number(1))),
        (pickle.LONG_BINGET, lambda machine: machine.get(machine.number(4))),
        (pickle.BINPUT, lambda machine: machine.put(machine.number(1))),
        (pickle.LONG_BINPUT, lambda machine: machine.put(machine.number(4))),
        (pickle.MEMOIZE, _Machine.memoize),
        (pickle.GLOBAL, _line_pair),
        (pickle.STACK_GLOBAL, _Machine.name_from_stack),
        (pickle.REDUCE, _Machine.call),
        (pickle.BUILD, _Machine.build),
        (pickle.BINPERSID, lambda machine: machine.push(Reference(machine.pop()))),
    )
}
