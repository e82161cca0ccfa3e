"""Quantised sources: the tensors that a weight consists of are read as the weight that they stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import Struct, field

from ..errors import UnsupportedError
from ..quantisation import registry
from ..quantisation.found import Found, MisfitError, ReadNumbers
from ..quantisation.geometry import Geometry, geometry
from ..quantisation.language import Description, Entry, Layout, Method, Stated
from ..tensors.dtypes import DType
from ..tensors.quantised import QuantisedRef
from ..tensors.refs import Catalog, TensorRef
from ..text import quote, setting
from .left_over import OF_CODES, Candidate, LeftOver, Weights

#: What keeps a quantised source as it is.
KEEP = f"{setting('model', 'raw')} {setting('format', 'hf')} {setting('options.quantised', 'keep')}"

#: What to do where a source's method is not read.
INSTEAD = f"convert the model's repository that is not quantised, or keep all tensors as they are with {KEEP}"


class Understood(Struct, frozen=True):
    """A source with its weights in place of the tensors that they consist of.

    Attributes:
        catalog: the source.
        dropped: tensors that serve the quantised model alone -> what they are.
        missing: findings: weights without scales.
        wrong: findings: parts that do not fit, and scales without a weight.
    """

    catalog: Catalog
    dropped: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def may_be_quantised(catalog: Catalog) -> bool:
    """Return whether a source has tensors of dtypes that codes have."""
    return not {ref.dtype for ref in catalog.values()}.isdisjoint(OF_CODES)


def understood(catalog: Catalog, description: Description | None, read: ReadNumbers) -> Understood:
    """Read the quantised tensors of a source as the weights that they stand for; a source may have none.

    Args:
        catalog: the source.
        description: what says how it is quantised, if anything does.
        read: reads the numbers in a small tensor.

    Raises:
        UnsupportedError: it is quantised by a method that is not read.
    """
    if description is not None:
        _refuse(description)
    return _Reading(catalog, description, read).result()


def _refuse(description: Description) -> None:
    name = registry.NOT_READ.get(description.name.lower(), quote(description.name))
    reason = "this method is not read"
    if description.method is not None:
        name, reason = description.method.title, description.method.refuses(description.entry)
    if reason:
        raise _unsupported(name, description.where, reason)


def _unsupported(name: str, where: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"the source is quantised with {name} ({where}), and {reason}",
        INSTEAD,
    )


# Tensors of a source of which each that states a shape is read: each is a request to the storage.
_FEW = 4_000


class _Reading:
    """Reads a source: finds the parts of each weight, and what is left."""

    def __init__(self, catalog: Catalog, description: Description | None, read: ReadNumbers) -> None:
        self._catalog, self._read = catalog, read
        self._tensors = catalog.tensors
        self._by_dtype: dict[DType, list[Candidate]] = defaultdict(list)
        for method, entry in self._methods(description):
            stated = method.stated(entry)
            for layout in method.layouts(entry):
                for dtype in layout.codes.dtypes:
                    self._by_dtype[dtype].append(Candidate(method, stated, layout))
        self._geometries: dict[object, Geometry] = {}
        self._are_many = len(catalog) > _FEW
        self._weights = Weights(description is not None)

    @staticmethod
    def _methods(description: Description | None) -> Sequence[tuple[Method, Entry]]:
        if description is not None and description.method is not None:
            return [(description.method, description.entry)]
        return registry.layouts_without_config()

    def result(self) -> Understood:
        """Find everything."""
        weights, left_over = self._weights, LeftOver(self._catalog, self._by_dtype, self._weights)
        candidates = [ref for ref in self._catalog.values() if ref.dtype in self._by_dtype]
        left = [ref.name for ref in candidates if not self._take(ref.name, ref)]
        left_over.find_lacking(left)
        if not (weights.found or weights.wrong or weights.missing or weights.are_described):
            return Understood(self._catalog)
        weights.wrong += left_over.twice()
        endings = left_over.endings()
        dropped, tensors = {}, {}
        for name, ref in self._catalog.items():
            if name in weights.found:
                weight = weights.found[name]
                tensors[weight.name] = weight
            elif name not in weights.used:
                if why := left_over.why_dropped(name, endings):
                    dropped[name] = why
                else:
                    tensors[name] = ref
        rest = {name: ref for name, ref in tensors.items() if not isinstance(ref, QuantisedRef)}
        weights.wrong += left_over.surplus(rest)
        weights.wrong += left_over.unread(rest)
        catalog = replace(self._catalog, tensors=tensors)
        return Understood(catalog, dropped, tuple(weights.missing), tuple(weights.wrong))

    def _take(self, name: str, ref: TensorRef) -> bool:
        """Take a tensor as the codes of a weight, if it has all parts of one; return whether it is used at all."""
        misfit = ""
        for candidate in self._by_dtype[ref.dtype]:
            found = self._found(name, ref, candidate.layout)
            if found is None:
                continue
            sizes = self._geometry(candidate, name, found)
            if isinstance(sizes, Geometry):
                self._add(name, candidate, sizes, found)
                return True
            misfit = misfit or sizes
        if misfit:
            self._weights.explain(name, [candidate.layout for candidate in self._by_dtype[ref.dtype]])
            self._weights.wrong.append(f"{quote(name)}: {misfit}")
        return bool(misfit) or name in self._weights.used

    def _add(self, name: str, candidate: Candidate, sizes: Geometry, found: Found) -> None:
        layout = candidate.layout
        stem = name.removesuffix(layout.codes.ending)
        self._weights.found[name] = sizes.weight(stem + layout.weight, found)
        self._weights.used.update([ref.name for ref in found.parts if ref is not None])
        self._weights.layouts.add(id(layout))
        self._weights.modules.add(stem.removesuffix(".weight"))
        if candidate.method.name not in self._weights.methods:
            self._weights.methods[candidate.method.name] = candidate.method
            if not self._weights.are_described and (reason := candidate.method.refuses({})):
                raise _unsupported(candidate.method.title, f"tensor {quote(name)}", reason)

    def _found(self, name: str, codes: TensorRef, layout: Layout) -> Found | None:
        """Return the parts of a weight, `None` if some are not there."""
        if not name.endswith(layout.codes.ending):
            return None
        stem = name.removesuffix(layout.codes.ending)
        parts: list[TensorRef | None] = []
        for part in layout.parts:
            for ending in part.endings:
                ref = self._tensors.get(stem + ending)
                if ref is not None and ref.dtype in part.dtypes:
                    parts.append(ref)
                    break
            else:
                if not part.optional:
                    return None
                parts.append(None)
        return Found(layout, codes, parts)

    def _geometry(self, candidate: Candidate, name: str, found: Found) -> Geometry | str:
        """Return the sizes of a weight, or why there are none, empty if the config calls it something else.

        Weights with parts of the same shapes have the same sizes. Where each states its shape in a tensor of its own,
        all of those are read unless they are very many: then the reader compares them.
        """
        layout = candidate.layout
        module = name.removesuffix(layout.codes.ending).removesuffix(".weight")
        stated = candidate.stated(module)
        if layout.types and stated.type not in layout.types:
            return ""
        shapes = [ref and (ref.shape, ref.dtype.name) for ref in found.parts]
        key = id(layout), stated, found.codes.shape, *shapes
        if key in self._geometries:
            return self._geometries[key]
        sizes = self._sizes(found, stated)
        # Others may state another shape where words have room for it; and why one does not fit is of no other.
        if isinstance(sizes, Geometry) and (layout.shape is None or (sizes.fills_words and self._are_many)):
            self._geometries[key] = sizes
        return sizes

    def _sizes(self, found: Found, stated: Stated) -> Geometry | str:
        for ref in found.refs():
            if ref.cutout:
                return (
                    f"{quote(ref.name)} is not contiguous and cannot be dequantised: "
                    "load the file with torch, call .contiguous() on the tensor, and save it again"
                )
        try:
            return geometry(found, stated, self._read)
        except MisfitError as error:
            return str(error)
