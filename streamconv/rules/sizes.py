"""The sizes of a model (hidden, heads, layers …): read from its config, learned from shapes, and consistent.

Tables are written in symbols: `"heads*head_dim, hidden"` is a shape, `"heads//kv"` a number. Symbols get their values
from `config.json` first; the others are learned from the first shape that determines them. Every other shape has to
agree.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache

from ..errors import InternalError, SourceError, UsageError
from ..text import setting

# The origin of values that the config lacks and a family's table derives.
_DERIVED = "by default "

# MindSpore's dimensions are 31 bits wide, and so is what an option takes.
_LIMIT = 1 << 31


class ShapeConflictError(Exception):
    """A shape does not fit the sizes known so far; `str` says which, and where they come from."""


class Sizes:
    """Symbols and their values, each with its origin.

    >>> table = {"heads": "num_attention_heads", "kv": "num_key_value_heads | =heads"}
    >>> sizes = Sizes(table, {"num_attention_heads": 8})
    >>> sizes.number("heads//kv")
    1
    """

    def __init__(
        self, table: Mapping[str, str], config: Mapping[str, object], given: Mapping[str, tuple[str, int]] | None = None
    ) -> None:
        """Read the symbols from a config.

        Args:
            table: symbol -> config keys and `=expressions`, tried in order, separated by `|`. `vision.heads` is key
                `heads` of the object `vision`; `groups if multi_query` is read only if `multi_query` is true.
            config: the parsed config.json.
            given: symbol -> the option that a user gave for it, and its value.

        Raises:
            UsageError: a value that a user gave contradicts the config.
            SourceError: the config has a number that no model has.
        """
        self._table = table
        self._values: dict[str, int] = {}
        self._origins: dict[str, str] = {}
        self._fitting: set[tuple[tuple[int, ...], str]] = set()
        self._read(table, config)
        for name, (option, value) in (given or {}).items():
            if name in table:
                self._give(name, option, value)
        self._read(table, config)

    def _read(self, table: Mapping[str, str], config: Mapping[str, object]) -> None:
        for _ in range(2):  # a symbol may be derived from one that stands further down
            for name, alternatives in table.items():
                for text in alternatives.split("|"):
                    self._try(name, text.strip(), config)

    def _try(self, name: str, text: str, config: Mapping[str, object]) -> None:
        if name in self._values:
            return
        key, _, condition = text.partition(" if ")
        if condition and not look_up(config, condition):
            return
        value: object
        if key.startswith("="):
            value, origin = self.value(key[1:]), _DERIVED + key[1:]
        else:
            value, origin = look_up(config, key), f"config: {key}"
        if isinstance(value, int) and value >= _LIMIT and not key.startswith("="):
            raise SourceError(f"config: {key} is 2^31 or more, which no model has", "download the config again")
        # What a config may set to zero (dense layers, say) has `| =0` in the table.
        if isinstance(value, int) and not isinstance(value, bool) and (value > 0 or key == "=0"):
            self.learn(name, value, origin)

    def _give(self, name: str, option: str, value: int) -> None:
        known = self._values.get(name, value)
        if known != value and not self._origins[name].startswith(_DERIVED):
            asked = setting(f"options.{option}", value)
            raise UsageError(f"{asked} contradicts the model: {name} is {known}{self.origin(name)}")
        self.learn(name, value, setting(f"options.{option}"))

    def learn(self, name: str, value: int, origin: str) -> None:
        """Set the value of a symbol."""
        self._values[name] = value
        self._origins[name] = origin

    def get(self, name: str) -> int | None:
        """Return the value of a symbol, `None` if it is not known yet."""
        return self._values.get(name)

    @property
    def known(self) -> int:
        """How many symbols have a value."""
        return len(self._values)

    def number(self, expression: str) -> int:
        """Return the value of an expression.

        Raises:
            UsageError: it has a symbol that neither config nor shapes give.
        """
        value = self.value(expression)
        if value is None:
            missing = sorted(n for n in _names(expression) if n not in self._values)
            keys = ", ".join(self._table.get(n, n).split("|")[0].strip() for n in missing)
            raise UsageError(
                f"converting this model needs {keys}, which its tensors' shapes do not give",
                f"give the model's config.json with {setting('config', 'FILE')}",
            )
        return value

    def fit(self, shape: tuple[int, ...], spec: str) -> None:
        """Check a shape against its symbols, learning those that it determines.

        Args:
            shape: a tensor's shape.
            spec: the symbolic shape, such as `"heads*head_dim, hidden"`.

        Raises:
            ShapeConflictError: the number of axes or the size of one differs.
        """
        if (shape, spec) in self._fitting:
            return
        symbols = [part.strip() for part in spec.split(",")] if spec else []
        if len(symbols) != len(shape):
            raise ShapeConflictError(f"shape {list(shape)} has {len(shape)} axes, expected [{spec}]")
        for size, symbol in zip(shape, symbols, strict=True):
            if not self._solve(size, symbol):
                raise ShapeConflictError(
                    f"shape {list(shape)} does not fit [{spec}]: "
                    f"{size} is not a multiple of the known part of {symbol}{self.origin(symbol)}"
                )
            expected = self.value(symbol)
            if expected is not None and expected != size:
                known = f"{symbol} is {expected}{self.origin(symbol)}, not {size}" if _names(symbol) else ""
                raise ShapeConflictError(f"shape {list(shape)} does not fit [{spec}]" + (known and f": {known}"))
        if all(self.value(symbol) is not None for symbol in symbols):
            self._fitting.add((shape, spec))

    def _solve(self, size: int, symbol: str) -> bool:
        """Learn the unknown symbol of an expression if it has just one; return false if no value fits."""
        unknown = [name for name in _names(symbol) if name not in self._values]
        if len(unknown) != 1:
            return True
        # Shapes are linear in each of their symbols: two points give the line, a third confirms that it is one.
        one, two, three = (_value(_parse(symbol), {**self._values, unknown[0]: n}) for n in (1, 2, 3))
        slope, base = two - one, 2 * one - two
        if three - two != slope or slope < 1:
            return True
        number, rest = divmod(size - base, slope)
        if number > 0 and not rest:
            self.learn(unknown[0], number, "the shapes")
        return not rest and number >= 0

    def origin(self, symbol: str) -> str:
        """Return where the values in an expression come from, in brackets, for a message."""
        origins = sorted({self._origins[n] for n in _names(symbol) if n in self._origins})
        return f" ({'; '.join(origins)})" if origins else ""

    def value(self, expression: str) -> int | None:
        """Return the value of an expression, `None` if it has a symbol that is not known yet."""
        try:
            return _value(_parse(expression), self._values)
        except KeyError:
            return None


def look_up(config: Mapping[str, object], key: str) -> object:
    """Return the value of a config key, `None` if it is missing; `a.b` is key `b` of the object `a`."""
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


class Ranges:
    """The values that the holes of a table may take.

    `"experts"` means 0 up to, not including, `experts`; `"dense..layers"` begins at `dense`. A bound that is not known
    yet does not limit, and a hole that the table does not name has no bounds.
    """

    def __init__(self, table: Mapping[str, str], sizes: Sizes) -> None:
        self._table = table
        self.sizes = sizes

    def bounds(self, hole: str) -> tuple[int, int | None]:
        """Return the first value, and the one after the last (`None` if not known)."""
        first, end = self._texts(hole)
        return (self.sizes.value(first) or 0) if first else 0, self.sizes.value(end) if end else None

    def values(self, hole: str) -> range:
        """Return all values; none if their end is not known."""
        first, end = self.bounds(hole)
        return range(first, end or 0)

    def contains(self, hole: str, value: int | str) -> bool:
        """Return whether the hole may take a value, as far as its bounds are known."""
        first, end = self.bounds(hole)
        return not isinstance(value, int) or (first <= value and (end is None or value < end))

    def origin(self, symbol: str | None) -> int | None:
        """Return what a hole that is counted from `symbol` adds to its number; `None` if not known."""
        return 0 if symbol is None else self.sizes.get(symbol)

    def unknown(self, hole: str) -> str | None:
        """Return the symbol of the end if it is still unknown, so that names can give it."""
        end = self._texts(hole)[1]
        return end if end.isidentifier() and self.sizes.get(end) is None else None

    def described(self, hole: str) -> str:
        """Return the range in words, for a message."""
        first, end = self.bounds(hole)
        numbers = f"{first} … {(end or 0) - 1}" if first else f"{end}"
        return f"{numbers}{self.sizes.origin('+'.join(text for text in self._texts(hole) if text))}"

    def _texts(self, hole: str) -> tuple[str, str]:
        first, dots, end = self._table.get(hole, "").partition("..")
        return (first, end) if dots else ("", first)


@cache
def _parse(expression: str) -> ast.expr:
    return ast.parse(expression.strip(), mode="eval").body


@cache
def _names(expression: str) -> frozenset[str]:
    return frozenset(node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name))


def _value(node: ast.expr, values: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, values), _value(right, values)
            match op:
                case ast.Mult():
                    return a * b
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.FloorDiv():
                    return a // b
    raise InternalError(f"a family's table holds {ast.unparse(node)!r}, which is neither a number nor a symbol")
