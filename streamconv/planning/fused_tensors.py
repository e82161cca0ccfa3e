"""Fused tensors: those of a source are read as the separate ones that the tables speak of, and in reverse written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ..errors import UnsupportedError
from ..rules.fused import Fused
from ..rules.matcher import Matcher
from ..rules.patterns import fill
from ..rules.statements import Side
from ..tensors import views
from ..tensors.refs import Catalog, TensorRef
from ..text import counted, quote
from .outputs import Output


class Separated(NamedTuple):
    """A source with its fused tensors cut, and what the plan says about it."""

    catalog: Catalog
    note: str


def separated(catalog: Catalog, fused: Sequence[Fused]) -> Separated | None:
    """Return the source with its fused tensors cut and the renamed ones under the table's names, `None` without any.

    Args:
        catalog: the source.
        fused: how the family's tensors are fused, and what other names they have.

    Raises:
        UnsupportedError: a tensor is there fused and by itself.
    """
    if not fused:
        return None
    matcher = _index(fused, Side.MS)
    tensors: dict[str, TensorRef] = {}
    cut: list[str] = []
    renamed: list[str] = []
    for name, ref in catalog.tensors.items():
        match = matcher.match(name)
        kind = fused[match.number] if match else None
        parts = kind.cut(ref, catalog.tensors) if kind else None
        if kind and parts:
            (cut if kind.stacked else renamed).append(name)
        for part in parts or [ref]:
            if tensors.setdefault(part.name, part) is not part:
                raise UnsupportedError(
                    f"{quote(part.name)} is in the source twice, fused and by itself: it is ambiguous which is meant"
                )
    if not (cut or renamed):
        return None
    return Separated(dataclasses.replace(catalog, tensors=tensors), _note(cut, renamed))


def _note(cut: Sequence[str], renamed: Sequence[str]) -> str:
    if cut:
        return f"experts are read from {counted(len(cut), 'fused tensor')}, such as {quote(cut[0])}"
    return f"{counted(len(renamed), 'tensor')} have the names of transformers 5, such as {quote(renamed[0])}"


def _index(fused: Sequence[Fused], side: Side) -> Matcher:
    return Matcher([one.rule for one in fused], side)


def joined(outputs: Sequence[Output], fused: Sequence[Fused]) -> tuple[Output, ...]:
    """Return outputs of a reverse conversion with those that fused tensors hold put together, where the first was.

    Raises:
        UnsupportedError: parts of a tensor differ in dtype.
    """
    matcher = _index(fused, Side.HF)
    parts: dict[str, dict[tuple[int, int], Output]] = {}
    result: dict[str, tuple[Fused, Output] | Output] = {}
    for output in outputs:
        match = matcher.match(output.name)
        if match is None:
            result[output.name] = output
            continue
        one = fused[match.number]
        name = fill(one.name, match.bindings)
        position = int(match.bindings[one.stacked]) if one.stacked else 0
        parts.setdefault(name, {})[position, match.index] = output
        result.setdefault(name, (one, output))
    return tuple(
        kept if isinstance(kept, Output) else _joined(name, kept[0], parts[name]) for name, kept in result.items()
    )


def _joined(name: str, fused: Fused, parts: Mapping[tuple[int, int], Output]) -> Output:
    """Return a fused tensor of its parts by expert and place: an expert after the other, as they lie in the file."""
    ordered = [parts[at] for at in sorted(parts)]
    if fused.stacked is None:
        return replace(ordered[0], name=name)
    width = len(fused.parts)
    each = [ordered[first : first + width] for first in range(0, len(ordered), width)]
    view = views.stack([views.concat([part.view for part in some], 0) for some in each])
    sources = dict.fromkeys(source for part in ordered for source in part.sources)
    return Output(name, view.dtype, view, tuple(sources))
