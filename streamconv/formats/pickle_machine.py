"""The stack machine that pickles are read with: it moves inert values, and knows nothing that could be called."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from msgspec import Struct

from ..errors import SourceError, UnsupportedError
from ..text import counted, quote
from .header_room import HeaderRoom
from .headers import DOWNLOAD_AGAIN

#: The name of ordered dictionaries. They become a `Pairs`, as plain ones do.
ORDERED_DICT = "collections.OrderedDict"

#: What an opcode costs besides its bytes, in bytes of header: both become some twenty times as much in memory.
OPCODE_COST = 6


class Name(Struct, eq=False):
    """A global, by its full name."""

    text: str


class Call(Struct, eq=False):
    """A call that was not made."""

    function: str
    arguments: tuple[object, ...]


class Pairs(Struct, eq=False):
    """A dictionary as the list of its pairs; keys may repeat, and be anything."""

    pairs: list[tuple[object, object]]


class Reference(Struct, eq=False):
    """A persistent id: an object outside the pickle."""

    id: object


class Machine:
    """The stack, the marks on it (as lengths of it), the memo, and the position in the pickle.

    Args:
        data: the pickle.
        allowed: the names that it may contain.
        where: the beginning of error messages.
        header_room: bytes that it may have.
    """

    def __init__(self, data: bytes, allowed: AbstractSet[str], where: str, header_room: HeaderRoom) -> None:
        self._data, self._allowed, self._where, self._room = data, allowed, where, header_room
        self._at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self, actions: Mapping[int, Callable[[Machine], None]]) -> object:
        """Execute the pickle and return its value.

        Args:
            actions: what each opcode does.

        Raises:
            SourceError: the pickle is damaged.
            BudgetError: it needs more memory than there is room for.
            UnsupportedError: an opcode that is not in `actions`, or a name that is not allowed.
        """
        count = 0
        while (code := self.take(1)[0]) != pickle.STOP[0]:
            action = actions.get(code)
            if action is None:
                raise self._refused(code)
            action(self)
            count += 1
            if self._at + count * OPCODE_COST > self._room.nbytes:
                self._room.check(self._cost(count), f"the pickle of {self._where} ({len(self._data)} bytes)")
        return self._result()

    def _cost(self, count: int) -> int:
        """Return the bytes of header that the whole pickle stands for, `count` opcodes of which were executed."""
        try:
            count = sum(1 for _ in pickletools.genops(self._data))
        except ValueError:
            # Damaged further on: every byte that is left may be an opcode.
            count += len(self._data) - self._at
        return len(self._data) + count * OPCODE_COST

    def _result(self) -> object:
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise self.broken("values are left over at its end")
        return self._stack[0]

    # -- errors --------------------------------------------------------------------------------------------------------

    def broken(self, what: str) -> SourceError:
        """Return the error for a pickle that no pickler writes."""
        return SourceError(f"{self._where}, byte {self._at} of its pickle: {what}: the file is damaged", DOWNLOAD_AGAIN)

    def _refused(self, code: int) -> UnsupportedError:
        names = (name for name, value in vars(pickle).items() if name.isupper() and value == bytes((code,)))
        return UnsupportedError(
            f"{self._where}, byte {self._at - 1} of its pickle: a checkpoint does not need the opcode "
            f"{next(names, hex(code))}; nothing was executed",
            "do not load this file with torch unless you trust it",
        )

    # -- used by actions -----------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self._at + count
        if end > len(self._data):
            raise self.broken(f"it is truncated by {counted(end - len(self._data), 'byte')}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, width: int, signed: bool = False) -> int:
        """Return the next little-endian number of `width` bytes."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, raw: bytes) -> str:
        """Decode UTF-8 as pickles have it: it may contain lone surrogates."""
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.broken("a string is not UTF-8") from error

    def line(self) -> str:
        """Return the next line of text."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise self.broken("a name is not terminated")
        return self.text(self.take(end + 1 - self._at)[:-1])

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> object:
        """Return the topmost value; values below a mark are out of reach."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.broken("a value is missing")
        return self._stack.pop()

    def mark(self) -> None:
        """Remember how high the stack is."""
        self._marks.append(len(self._stack))

    def marked(self) -> list[object]:
        """Return all values above the last mark, and remove it."""
        if not self._marks:
            raise self.broken("a mark is missing")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # -- actions -------------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        """Refuse a protocol that no pickler writes."""
        if not 2 <= self.number(1) <= pickle.HIGHEST_PROTOCOL:
            raise self.broken(f"its protocol is not one of 2 to {pickle.HIGHEST_PROTOCOL}")

    def tuple_of(self, count: int) -> None:
        """Replace the topmost values by a tuple of them."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self, values: list[object]) -> None:
        """Append values to the list on top of the stack."""
        target = self._top()
        if not isinstance(target, list):
            raise self.broken("a value is appended to something that is not a list")
        target.extend(values)

    def set_items(self, values: list[object]) -> None:
        """Add keys and values, which alternate, to the dictionary on top of the stack."""
        target = self._top()
        if not isinstance(target, Pairs) or len(values) % 2:
            raise self.broken("a value is stored in something that is not a dictionary")
        target.pairs.extend(zip(values[::2], values[1::2], strict=True))

    def set_item(self) -> None:
        """Add the topmost key and value to the dictionary below them."""
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def get(self, index: int) -> None:
        """Put a remembered value on the stack."""
        if index not in self._memo:
            raise self.broken(f"it gets memo {index}, which it did not put")
        self.push(self._memo[index])

    def put(self, index: int) -> None:
        """Remember the topmost value under a number."""
        self._memo[index] = self._top()

    def memoize(self) -> None:
        """Remember the topmost value under the next number."""
        self.put(len(self._memo))

    def name(self, module: object, name: object) -> None:
        """Put the name of a function or class on the stack, if it is allowed; nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.broken("a name is not a string")
        full = f"{module}.{name}"
        if full != ORDERED_DICT and full not in self._allowed:
            raise UnsupportedError(
                f"{self._where}: its pickle asks for {quote(full)}, which is not part of a checkpoint that streamconv "
                "knows; nothing was executed",
                "if you trust the file, load it with torch and save its state dict alone",
            )
        self.push(Name(full))

    def name_from_stack(self) -> None:
        """Replace module and name on the stack by the name they make."""
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self) -> None:
        """Replace function and arguments by the call, which is not made, or by an empty ordered dictionary."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise self.broken("it calls something that is not a name")
        ordered = function.text == ORDERED_DICT and not arguments
        self.push(Pairs([]) if ordered else Call(function.text, arguments))

    def build(self) -> None:
        """Drop the state that is set on the dictionary below it."""
        # A state dict carries `_metadata` (versions of its modules), which is set in this way; it is left out.
        self.pop()
        if not isinstance(self._top(), Pairs):
            raise self.broken("it sets the state of something that is not a dictionary")

    def _top(self) -> object:
        value = self.pop()
        self.push(value)
        return value
