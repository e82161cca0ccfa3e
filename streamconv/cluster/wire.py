"""Errors as plain values: what went wrong on a node, and the same error again in the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BudgetError, InternalError, InterruptedRunError, StreamconvError, memory_refused
from ..text import quote

_PREFIX = "internal error: "


def to_values(error: BaseException) -> dict[str, Any]:
    """Return an error as plain values. What is no error of streamconv keeps its class in the message."""
    if isinstance(error, MemoryError) and not isinstance(error, StreamconvError):
        error = memory_refused()
    if not isinstance(error, StreamconvError):
        return {"class": "", "message": quote(f"{type(error).__name__}: {error}"), "hint": ""}
    message, hint = error.marked
    return {
        "class": _known(type(error)).__name__,
        "message": message,
        "hint": hint,
        "least": getattr(error, "least", 0),
    }


def from_values(values: Mapping[str, Any], host: str) -> StreamconvError:
    """Return the error that a node reported: of the same class, with the node in its message."""
    kind = _CLASSES.get(values["class"], InternalError)
    if kind is InternalError:
        return InternalError(f"{values['message'].removeprefix(_PREFIX)} (on {quote(host)})")
    message = f"{values['message']}\nreported by {quote(host)}"
    if issubclass(kind, BudgetError):
        return kind(message, values["hint"], values["least"])
    return kind(message, values["hint"])


def _known(kind: type[StreamconvError]) -> type[StreamconvError]:
    """The nearest class that the driver knows: modules have classes of their own, which only they catch."""
    return next(base for base in kind.__mro__ if base.__name__ in _CLASSES)


def _classes(kind: type[StreamconvError]) -> Iterator[type[StreamconvError]]:
    yield kind
    for inner in kind.__subclasses__():
        if inner.__module__ == kind.__module__:
            yield from _classes(inner)


#: By name; a signal ends the driver, never a worker.
_CLASSES = {kind.__name__: kind for kind in _classes(StreamconvError) if kind is not InterruptedRunError}
