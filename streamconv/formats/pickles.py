"""Pickles, read without executing them: opcodes move inert values, and nothing can be called.

A pickle is a program for a stack machine, and Python's machine imports and calls whatever the program names. This
one knows no Python object at all: a global is a `Name`, a call is a `Call` that states what would have been called,
and state that is set on an object is dropped. Names must be on the caller's list, opcodes among those that torch.save
emits (protocol 2 to 5; source: the standard library's `pickle.py`); others are refused.

Memory is bounded by the caller: each opcode counts as some bytes, lengths are checked against the data, memo numbers
are keys and not indices, and nothing here compares, hashes or walks a value, so one that holds itself twice, and that
again, costs what its opcodes do.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from .header_room import HeaderRoom
from .pickle_machine import OPCODE_COST, Machine, Pairs, Reference


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
    return Machine(data, allowed, where, header_room).run(_ACTIONS)


def largest_cost(size: int) -> int:
    """Return the most room, in bytes of header, that a pickle of `size` bytes can take: each byte may be an opcode."""
    return size * (1 + OPCODE_COST)


def _constant(value: object) -> Callable[[Machine], None]:
    return lambda machine: machine.push(value)


def _whole(width: int, signed: bool = False) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.number(width, signed))


def _long(machine: Machine) -> None:
    machine.push(machine.number(machine.number(1), signed=True))


def _text(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.text(machine.take(machine.number(width))))


def _bytes(width: int) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(width)))


def _line_pair(machine: Machine) -> None:
    module = machine.line()
    machine.name(module, machine.line())


# LONG4 is missing on purpose: a number of more than 255 bytes is no checkpoint's, and cannot be printed.
_ACTIONS: dict[int, Callable[[Machine], None]] = {
    code[0]: action
    for code, action in (
        (pickle.PROTO, Machine.protocol),
        (pickle.FRAME, lambda machine: machine.take(8) and None),
        (pickle.MARK, Machine.mark),
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
        (pickle.EMPTY_DICT, lambda machine: machine.push(Pairs([]))),
        (pickle.APPEND, lambda machine: machine.append([machine.pop()])),
        (pickle.APPENDS, lambda machine: machine.append(machine.marked())),
        (pickle.ADDITEMS, lambda machine: machine.append(machine.marked())),
        (pickle.SETITEM, Machine.set_item),
        (pickle.SETITEMS, lambda machine: machine.set_items(machine.marked())),
        (pickle.BINGET, lambda machine: machine.get(machine.number(1))),
        (pickle.LONG_BINGET, lambda machine: machine.get(machine.number(4))),
        (pickle.BINPUT, lambda machine: machine.put(machine.number(1))),
        (pickle.LONG_BINPUT, lambda machine: machine.put(machine.number(4))),
        (pickle.MEMOIZE, Machine.memoize),
        (pickle.GLOBAL, _line_pair),
        (pickle.STACK_GLOBAL, Machine.name_from_stack),
        (pickle.REDUCE, Machine.call),
        (pickle.BUILD, Machine.build),
        (pickle.BINPERSID, lambda machine: machine.push(Reference(machine.pop()))),
    )
}
