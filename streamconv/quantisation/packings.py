"""How the codes of a quantised weight are packed, from the number of words and what states that of codes or bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..tensors.quantised import Packing
from .found import Found, MisfitError, ReadNumbers, Shape, spelled
from .language import Layout, Stated

#: Bits of codes that are packed as a stream.
_BITS = range(2, 9)


def unpacked(
    layout: Layout, words: Shape, found: Found, stated: Stated, read: ReadNumbers
) -> tuple[Shape, Packing | None]:
    """Return the shape of the codes, and how they are packed.

    Args:
        layout: how weights of this kind are stored.
        words: `[..., rows, columns]` of the tensor that holds the codes.
        found: the weight's tensors.
        stated: what the config says about it.
        read: reads a tensor that holds its shape.

    Raises:
        MisfitError: so many words do not hold the codes, or nothing tells how many there are.
    """
    if not layout.word:
        return words, None
    axis = len(words) - 2 + layout.axis
    shape = _stated_shape(layout, words, found, read)
    length = shape[axis] if shape else _length(layout, found)
    bits = layout.bits or stated.bits
    if length is None:
        if not bits:
            raise MisfitError(f"nothing tells how many bits the codes of {spelled(found.codes)} have")
        length = words[axis] * layout.word // bits
    packing = _packing(found, words[axis], length, bits, stated.pads)
    codes = (*words[:axis], length, *words[axis + 1 :])
    if shape and shape != codes:
        raise MisfitError(f"{spelled(found.codes)} does not hold the shape {list(shape)} that its own tensor states")
    return codes, packing


def _stated_shape(layout: Layout, words: Shape, found: Found, read: ReadNumbers) -> Shape | None:
    ref = found.of(layout.shape)
    if ref is None:
        return None
    if math.prod(ref.shape) != len(words):
        raise MisfitError(f"{spelled(ref)} holds no shape of {len(words)} axes")
    return read(ref)


def _length(layout: Layout, found: Found) -> int | None:
    """Return how many codes are packed along the axis, where an index says it."""
    ref = found.of(layout.groups) if layout.axis == layout.inputs else None
    return math.prod(ref.shape) if ref else None


def _packing(found: Found, words: int, length: int, bits: int, pads: bool) -> Packing:
    """Return how so many codes lie in so many words: with the stated bits, else with the only ones that fit."""
    layout, ways = found.layout, (False, True) if pads else (True, False)
    fitting = [one for crosses in ways for one in _packings(layout, crosses) if one.words(length) == words]
    stated = [one for one in fitting if one.bits == bits]
    if stated:
        return stated[0]
    streams = {one.bits: one for one in fitting if one.crosses}
    if len(streams) != 1 or layout.bits or not length:
        raise MisfitError(
            f"{spelled(found.codes)} has {words} words for {length} codes"
            + (f" of {bits} bits" if bits else ", and nothing tells of how many bits")
        )
    return next(iter(streams.values()))


def _packings(layout: Layout, crosses: bool) -> Iterator[Packing]:
    for bits in [layout.bits] if layout.bits else _BITS:
        yield Packing(bits, layout.word, layout.axis, crosses, layout.interleaved)
