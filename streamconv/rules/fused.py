"""Tensors that HuggingFace also stores fused, as transformers 5 does with experts: how they are cut into the table's.

A part is a range of the fused tensor, so that nothing but names and offsets differs afterwards; where rows and columns
have changed places in it, a part is one with strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from ..tensors.extents import Extent, overlaps
from ..tensors.quantised import QuantisedRef
from ..tensors.refs import TensorRef
from ..tensors.strides import cutout, last_element
from .patterns import Bindings, compile_pattern, fill
from .statements import Rule, Side

#: The option by which users ask for fused tensors in reverse, and its values.
EXPERTS, SEPARATE, TOGETHER = "experts", "separate", "fused"


class Fused(Struct, frozen=True):
    """A tensor that holds others: for every value of the hole that only these have, all of them one after the other.

    `gate_up_proj` [experts, 2*ffn, hidden] holds `{expert}.gate_proj.weight` and `{expert}.up_proj.weight`, each
    [ffn, hidden]. A part without a hole of its own is the whole tensor under another name.

    Source: transformers 5, `conversion_mapping` (MergeModulelist, Concatenate), and files saved with it.

    Attributes:
        name: pattern of the fused tensor.
        parts: patterns of the tensors in it, in order.
        partner: pattern of another fused tensor of the same experts. Models like Qwen3-VL-MoE and Llama 4 have rows and
            columns in each other's place: [experts, hidden, 2*ffn] and [experts, ffn, hidden]. One shape alone does not
            tell, for 2*ffn may equal hidden; both together do.
    """

    name: str
    parts: tuple[str, ...]
    partner: str = ""

    @property
    def rule(self) -> Rule:
        """The parts as HuggingFace's side, and what they are fused in as the other."""
        return Rule(self.parts, self.name)

    @property
    def stacked(self) -> str | None:
        """The hole that only the parts have."""
        return self.rule.stacked(Side.HF)

    def cut(self, ref: TensorRef, tensors: Mapping[str, TensorRef] | None = None) -> Iterator[TensorRef] | None:
        """Return the tensors in a fused one, `None` if it is none, or its shape cannot be cut so.

        Args:
            ref: the tensor.
            tensors: those that it is among.
        """
        pattern = compile_pattern(self.name)
        match = pattern.regex.fullmatch(ref.name)
        if match is None or ref.cutout or ref.slices or 0 in ref.shape:
            return None
        if isinstance(ref, QuantisedRef) and ref.order:
            return None
        bindings = {hole.name: text for hole, text in zip(pattern.holes, match.groups(), strict=True)}
        if self.stacked is None:
            return iter([replace(ref, name=fill(self.parts[0], bindings))])
        swapped = self._is_swapped(ref, (tensors or {}).get(fill(self.partner, bindings)))
        if len(ref.shape) != 3 or ref.shape[2 if swapped else 1] % len(self.parts):
            return None
        if isinstance(ref, QuantisedRef):
            return self._quantised_parts(ref, bindings, self.stacked, swapped)
        return (self._swapped_parts if swapped else self._parts)(ref, bindings, self.stacked)

    def _is_swapped(self, ref: TensorRef, partner: TensorRef | None) -> bool:
        """Return whether rows and columns have changed places: the partner then has as many columns as a part has rows.

        Where they have not, its axis 1 is a part's columns, once or for each of its parts, and never that.
        """
        if partner is None or len(partner.shape) != 3 or len(ref.shape) != 3:
            return False
        return partner.shape[1] * len(self.parts) == ref.shape[2]

    def _parts(self, ref: TensorRef, bindings: Bindings, stacked: str) -> Iterator[TensorRef]:
        count, rows, columns = ref.shape[0], ref.shape[1] // len(self.parts), ref.shape[2]
        size = rows * columns * ref.dtype.itemsize
        for position in range(count):
            for index, part in enumerate(self.parts):
                name = fill(part, {**bindings, stacked: position})
                extents = _range(ref, (position * len(self.parts) + index) * size, size)
                yield TensorRef(name, ref.dtype, (rows, columns), extents)

    def _swapped_parts(self, ref: TensorRef, bindings: Bindings, stacked: str) -> Iterator[TensorRef]:
        count, columns, width = ref.shape
        shape, strides = (width // len(self.parts), columns), (1, width)
        where, itemsize = cutout(shape, strides, ref.name), ref.dtype.itemsize
        size = last_element(shape, strides) + 1
        for position in range(count):
            for index, part in enumerate(self.parts):
                name = fill(part, {**bindings, stacked: position})
                first = position * columns * width + index * shape[0]
                yield TensorRef(name, ref.dtype, shape, _range(ref, first * itemsize, size * itemsize), where)

    def _quantised_parts(
        self, ref: QuantisedRef, bindings: Bindings, stacked: str, swapped: bool
    ) -> Iterator[TensorRef]:
        """Yield boxes of a quantised tensor: its bytes are no range, for blocks of scales may go across parts."""
        axis, sides = 2 if swapped else 1, [(0, size) for size in ref.shape]
        size = ref.shape[axis] // len(self.parts)
        shape = size, ref.shape[3 - axis]
        for position in range(ref.shape[0]):
            for index, part in enumerate(self.parts):
                sides[0], sides[axis] = (position, position + 1), (index * size, (index + 1) * size)
                name = fill(part, {**bindings, stacked: position})
                yield replace(ref, name=name, shape=shape, box=tuple(sides), order=(0, 2, 1) if swapped else ())


def _range(ref: TensorRef, offset: int, size: int) -> tuple[Extent, ...]:
    spans = overlaps((extent.length for extent in ref.extents), offset, size)
    extents = ((ref.extents[number], inside, high - low) for number, inside, low, high in spans)
    return tuple(Extent(extent.file, extent.offset + inside, length) for extent, inside, length in extents)
