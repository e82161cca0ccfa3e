"""What all formats check of the tensors that a file is to hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import InternalError, UnsupportedError
from ..tensors.refs import TensorSpec
from ..text import quote


def checked(name: str, tensors: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """Yield the tensors of the file `name`.

    Raises:
        UnsupportedError: no tensors.
        InternalError: two tensors of the same name.
    """
    if not tensors:
        raise UnsupportedError(f"{quote(name)} would hold no tensors, and no program loads such a file")
    seen: set[str] = set()
    for spec in tensors:
        if spec.name in seen:
            raise InternalError(f"{place(name, spec)} is laid out twice")
        seen.add(spec.name)
        yield spec


def place(name: str, spec: TensorSpec) -> str:
    """Return how errors name a tensor of the file `name`."""
    return f"{quote(name)}: tensor {quote(spec.name)}"
