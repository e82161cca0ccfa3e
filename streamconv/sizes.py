"""The numbers of a model (hidden, heads, layers …): read from its config, learned from shapes, and made to agree.

Tables speak in symbols: `"heads*head_dim, hidden"` is a shape, `"heads//kv"` a number. Symbols get their values from
`config.json` first; what it does not say is learned from the first shape that decides it; every later shape has to
agree.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache

from .errors import InternalError, UsageError


class ShapeConflictError(Exception):
    """A shape does not fit the numbers known so far; `str()` says which and whence they come."""


class Sizes:
    """Symbols and their values, each with where it came from.

    >>> table = {"heads": "num_attention_heads", "kv": "num_key_value_heads | =heads"}
    >>> sizes = Sizes(table, {"num_attention_heads": 8})
    >>> sizes.number("heads//kv")
    1
    """

    def __init__(self, table: Mapping[str, str], config: Mapping[str, object]) -> None:
        """Read `table` (symbol → config keys and `=expressions`, tried in order, `|` between them) from `config`."""
        self._table = table
        self._values: dict[str, int] = {}
        self._origins: dict[str, str] = {}
        for name, alternatives in table.items():
            for text in alternatives.split("|"):
                self._try(name, text.strip(), config)

    def _try(self, name: str, text: str, config: Mapping[str, object]) -> None:
        if name in self._values:
            return
        value = self._evaluate(text[1:]) if text.startswith("=") else config.get(text)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            self.learn(name, value, f"config.json: {text.lstrip('=')}")

    def learn(self, name: str, value: int, origin: str) -> None:
        """Set a symbol."""
        self._values[name] = value
        self._origins[name] = origin

    def get(self, name: str) -> int | None:
        """The value of a symbol, `None` where nothing has said it yet."""
        return self._values.get(name)

    def number(self, expression: str) -> int:
        """The value of an expression.

        Raises:
            UsageError: it holds a symbol that neither config nor shapes have told.
        """
        value = self._evaluate(expression)
        if value is None:
            missing = sorted(n for n in _names(expression) if n not in self._values)
            keys = ", ".join(self._table.get(n, n).split("|")[0].strip() for n in missing)
            raise UsageError(
                f"the layout of this model needs {keys}, which the tensors' shapes do not tell: "
                "give the model's config.json with --config FILE"
            )
        return value

    def fit(self, shape: tuple[int, ...], spec: str) -> None:
        """Check a shape against its symbols, learning those that it decides.

        Raises:
            ShapeConflictError: it has another number of axes, or an axis that differs from what is known.
        """
        symbols = [part.strip() for part in spec.split(",")] if spec else []
        if len(symbols) != len(shape):
            raise ShapeConflictError(f"shape {list(shape)} has {len(shape)} axes; [{spec}] is expected")
        for size, symbol in zip(shape, symbols, strict=True):
            if not self._solve(size, symbol):
                raise ShapeConflictError(
                    f"shape {list(shape)} does not fit [{spec}]: "
                    f"{size} is no multiple of what is known of {symbol}{self.origin(symbol)}"
                )
            expected = self._evaluate(symbol)
            if expected is not None and expected != size:
                raise ShapeConflictError(
                    f"shape {list(shape)} does not fit [{spec}]: "
                    f"{symbol} is {expected}{self.origin(symbol)}, not {size}"
                )

    def _solve(self, size: int, symbol: str) -> bool:
        """Learn the one unknown factor of a product, where there is just one; false where there can be none."""
        factors = symbol.split("*")
        unknown = [f for f in factors if f.isidentifier() and f not in self._values]
        known = [self._evaluate(f) for f in factors if f not in unknown]
        if len(unknown) != 1 or None in known:
            return True
        product = 1
        for value in known:
            product *= value or 1
        if size and size % product == 0:
            self.learn(unknown[0], size // product, "the shapes")
        return size % product == 0

    def origin(self, symbol: str) -> str:
        """Whence the values in an expression come, in brackets, for a message."""
        origins = sorted({self._origins[n] for n in _names(symbol) if n in self._origins})
        return f" ({'; '.join(origins)})" if origins else ""

    def _evaluate(self, expression: str) -> int | None:
        try:
            return _value(_parse(expression), self._values)
        except KeyError:
            return None


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
