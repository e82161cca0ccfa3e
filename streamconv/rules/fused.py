"""Tensors that HuggingFace also stores fused, as transformers 5 does with experts: how they are cut into the table's.

A part is a contiguous range of the fused tensor, so that nothing but names and offsets differs afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..tensors.extents import Extent, overlaps
from ..tensors.quantised import QuantisedRef
from ..tensors.refs import TensorRef
from .patterns import compile_pattern, fill, holes


@dataclass(frozen=True)
class Fused:
    """A tensor that holds others: for every value of the hole that only these have, all of them one after the other.

    `gate_up_proj` [experts, 2*ffn, hidden] holds `{expert}.gate_proj.weight` and `{expert}.up_proj.weight`, each
    [ffn, hidden]. A part without a hole of its own is the whole tensor under another name.

    Source: transformers 5, `conversion_mapping` (MergeModulelist, Concatenate), and files saved with it.

    Attributes:
        name: pattern of the fused tensor.
        parts: patterns of the tensors in it, in order.
    """

    name: str
    parts: tuple[str, ...]

    @property
    def stacked(self) -> str | None:
        """The hole that only the parts have."""
        return next((hole for hole in holes(self.parts) if hole not in holes((self.name,))), None)

    def cut(self, ref: TensorRef) -> Iterator[TensorRef] | None:
        """Return the tensors in a fused one, `None` if it is none, or its shape cannot be cut so."""
        pattern = compile_pattern(self.name)
        match = pattern.regex.fullmatch(ref.name)
        if match is None or ref.cutout or ref.slices:
            return None
        bindings = {hole.name: text for hole, text in zip(pattern.holes, match.groups(), strict=True)}
        if self.stacked is None:
            return iter([replace(ref, name=fill(self.parts[0], bindings))])
        if len(ref.shape) != 3 or ref.shape[1] % len(self.parts):
            return None
        return self._parts(ref, bindings, self.stacked)

    def _parts(self, ref: TensorRef, bindings: dict[str, str], stacked: str) -> Iterator[TensorRef]:
        count, rows, columns = ref.shape[0], ref.shape[1] // len(self.parts), ref.shape[2]
        size = rows * columns * ref.dtype.itemsize
        for position in range(count):
            for index, part in enumerate(self.parts):
                name = fill(part, {**bindings, stacked: position})
                if isinstance(ref, QuantisedRef):
                    box = (position, position + 1), (index * rows, (index + 1) * rows), (0, columns)
                    yield replace(ref, name=name, shape=(rows, columns), box=box)
                    continue
                extents = _range(ref, (position * len(self.parts) + index) * size, size)
                yield TensorRef(name, ref.dtype, (rows, columns), extents)


def _range(ref: TensorRef, offset: int, size: int) -> tuple[Extent, ...]:
    spans = overlaps((extent.length for extent in ref.extents), offset, size)
    extents = ((ref.extents[number], inside, high - low) for number, inside, low, high in spans)
    return tuple(Extent(extent.file, extent.offset + inside, length) for extent, inside, length in extents)
