"""What a checkpoint holds: lines for people, values for programs."""

from __future__ import annotations

from collections.abc import Iterator

from .tensors.refs import Catalog, TensorRef
from .tensors.slices import Slices
from .text import counted, format_size, in_python, quote


def lines(catalog: Catalog) -> Iterator[str]:
    """Yield a line for each tensor (name, dtype, shape, bytes, place), what they come to, and what else there is.

    Settings in them are marked as in messages (`text.setting`).
    """
    for ref in catalog.values():
        yield f"{quote(ref.name)}  {ref.dtype}  {list(ref.shape)}  {ref.nbytes}  {_place(ref)}"
    yield (
        f"{counted(len(catalog), 'tensor')}, {format_size(catalog.nbytes)}, in "
        f"{counted(len(catalog.files), 'file')} of format {catalog.format}"
    )
    yield from catalog.notes
    yield from (f"missing: slices of {line}" for line in catalog.lost)
    yield from (f"ignored: {quote(name)} ({why})" for name, why in catalog.ignored.items())
    yield from (f"warning: {warning}" for warning in catalog.warnings)


def values(catalog: Catalog) -> dict[str, object]:
    """Return the same as plain values; every extent is [file, offset, length]."""
    return {
        "path": str(catalog.path),
        "format": catalog.format,
        "files": {catalog.name_of(file): file.size for file in catalog.files},
        "ignored": dict(catalog.ignored),
        "warnings": [in_python(warning) for warning in catalog.warnings],
        **({"missing": list(catalog.lost)} if catalog.lost else {}),
        "notes": [in_python(note) for note in catalog.notes],
        "tensors": [_described(catalog, ref) for ref in catalog.values()],
    }


def _described(catalog: Catalog, ref: TensorRef) -> dict[str, object]:
    extents = [[catalog.name_of(e.file), e.offset, e.length] for e in ref.places()]
    found = {"name": ref.name, "dtype": ref.dtype.name, "shape": list(ref.shape), "bytes": ref.nbytes}
    slices = {} if ref.slices is None else {"slices": _slices(ref.slices)}
    return {**found, "extents": extents, **slices}


def _place(ref: TensorRef) -> str:
    """Return where a tensor lies: its file, or how it is cut."""
    if ref.slices is None:
        return quote(ref.extents[0].file.path.name) if ref.extents else ""
    copies = ref.slices.most_copies()
    held = f", each in {counted(copies, 'rank')}" if copies > 1 else ""
    if len(ref.slices) == 1:
        return f"whole in {counted(copies, 'rank')}"
    return f"{len(ref.slices)} slices {list(ref.slices.divisions)} of {list(ref.slices.shape)}{held}"


def _slices(slices: Slices) -> dict[str, object]:
    """Return how a tensor is cut, and which ranks hold each slice: the first of them is read."""
    ranks = [[copy.rank for copy in slices.copies(number)] for number in range(len(slices))]
    return {"divisions": list(slices.divisions), "shape": list(slices.shape), "ranks": ranks}
