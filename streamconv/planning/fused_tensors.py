"""Fused tensors of a source, read as the separate ones that the tables speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import UnsupportedError
from ..rules.fused import Fused
from ..tensors.refs import Catalog, TensorRef
from ..text import counted, quote


class Separated(NamedTuple):
    """A source with its fused tensors cut, and what the plan says about it."""

    catalog: Catalog
    note: str


def separated(catalog: Catalog, fused: Sequence[Fused]) -> Separated | None:
    """Return the source with its fused tensors cut, `None` if it has none.

    Args:
        catalog: the source.
        fused: how the family's tensors are fused. What only has another name than in the table counts only next to
            tensors that are really fused.

    Raises:
        UnsupportedError: a tensor is there fused and by itself.
    """
    tensors: dict[str, TensorRef] = {}
    cut: list[str] = []
    for name, ref in catalog.tensors.items():
        kind, parts = next(((one, parts) for one in fused if (parts := one.cut(ref)) is not None), (None, None))
        for part in parts or [ref]:
            if tensors.setdefault(part.name, part) is not part:
                raise UnsupportedError(
                    f"{quote(part.name)} is in the source twice, fused and by itself: it is ambiguous which is meant"
                )
        cut += [name] if kind is not None and kind.stacked else []
    if not cut:
        return None
    note = f"experts are read from {counted(len(cut), 'fused tensor')}, such as {quote(cut[0])}"
    return Separated(replace(catalog, tensors=tensors), note)
