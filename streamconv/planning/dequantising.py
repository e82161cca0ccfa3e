"""Quantised sources: the tensors that a weight consists of are read as the weight that they stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..errors import UnsupportedError
from ..quantisation import registry
from ..quantisation.geometry import Found, Geometry, MisfitError, ReadNumbers, geometry
from ..quantisation.language import ByModule, Description, Entry, Layout, Method, Stated
from ..tensors.dtypes import F8_E4M3, F8_E8M0, I8, I32, U8, DType
from ..tensors.quantised import QuantisedRef
from ..tensors.refs import Catalog, TensorRef
from ..text import first_few, quote, setting

#: What keeps a quantised source as it is.
KEEP = f"{setting('model', 'raw')} {setting('format', 'hf')} {setting('options.quantised', 'keep')}"

#: The dtypes that no tensor of a model has which is not quantised, indices apart.
OF_CODES = (U8, I8, I32, F8_E4M3, F8_E8M0)

#: What to do where a source's method is not read.
INSTEAD = f"convert the model's repository that is not quantised, or keep all tensors as they are with {KEEP}"

_FP8 = (F8_E4M3, F8_E8M0)

#: How names of stacked experts end, which have no `.weight`, and those of their scales.
_STACKS = ("_proj", ".experts.w1", ".experts.w2", ".experts.w3")
_OF_STACKS = ("_scale", "_scale_inv", "_weight_scale", "_scales")

#: What the K/V cache's scales belong to.
_ATTENTION = (
    "self_attn",
    "attn",
    "attention",
    "k_proj",
    "v_proj",
    "kv_b_proj",
    "kv_a_proj_with_mqa",
    "k_cache",
    "v_cache",
)


@dataclass(frozen=True)
class Understood:
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
    return any(ref.dtype in OF_CODES for ref in catalog.values())


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


class _Candidate(NamedTuple):
    method: Method
    stated: ByModule
    layout: Layout


class _Reading:
    """Reads a source: finds the parts of each weight, and what is left."""

    def __init__(self, catalog: Catalog, description: Description | None, read: ReadNumbers) -> None:
        self._catalog, self._description, self._read = catalog, description, read
        self._tensors = catalog.tensors
        self._by_dtype: dict[DType, list[_Candidate]] = defaultdict(list)
        for method, entry in self._methods(description):
            stated = method.stated(entry)
            for layout in method.layouts(entry):
                for dtype in layout.codes.dtypes:
                    self._by_dtype[dtype].append(_Candidate(method, stated, layout))
        self._geometries: dict[object, Geometry] = {}
        self._weights: dict[str, TensorRef] = {}
        self._used: set[str] = set()
        self._modules: set[str] = set()
        self._methods_found: dict[str, Method] = {}
        self._layouts_found: set[int] = set()
        self._explained: set[str] = set()
        self._missing: list[str] = []
        self._wrong: list[str] = []

    @staticmethod
    def _methods(description: Description | None) -> Sequence[tuple[Method, Entry]]:
        if description is not None and description.method is not None:
            return [(description.method, description.entry)]
        return registry.layouts_without_config()

    def result(self) -> Understood:
        """Find everything."""
        candidates = [ref for ref in self._catalog.values() if ref.dtype in self._by_dtype]
        left = [ref.name for ref in candidates if not self._take(ref.name, ref)]
        self._find_lacking(left)
        if not (self._weights or self._wrong or self._missing or self._description):
            return Understood(self._catalog)
        self._wrong += self._twice()
        endings = dict(registry.DROPPED)
        for method in self._methods_found.values():
            endings.update(method.dropped)
        dropped, tensors = {}, {}
        for name, ref in self._catalog.items():
            if name in self._weights:
                weight = self._weights[name]
                tensors[weight.name] = weight
            elif name not in self._used:
                if why := self._why_dropped(name, endings):
                    dropped[name] = why
                else:
                    tensors[name] = ref
        rest = {name: ref for name, ref in tensors.items() if not isinstance(ref, QuantisedRef)}
        self._wrong += self._surplus(rest)
        self._wrong += self._unread(rest)
        catalog = replace(self._catalog, tensors=tensors)
        return Understood(catalog, dropped, tuple(self._missing), tuple(self._wrong))

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
            self._explain(name, [candidate.layout for candidate in self._by_dtype[ref.dtype]])
            self._wrong.append(f"{quote(name)}: {misfit}")
        return bool(misfit) or name in self._used

    def _explain(self, name: str, layouts: Sequence[Layout]) -> None:
        """Note that a finding speaks of a weight: what belongs to it needs none of its own."""
        self._explained.update(name.removesuffix(layout.codes.ending) for layout in layouts)

    def _add(self, name: str, candidate: _Candidate, sizes: Geometry, found: Found) -> None:
        layout = candidate.layout
        stem = name.removesuffix(layout.codes.ending)
        self._weights[name] = sizes.weight(stem + layout.weight, found)
        self._used.update([ref.name for ref in found.parts if ref is not None])
        self._layouts_found.add(id(layout))
        self._modules.add(stem.removesuffix(".weight"))
        if candidate.method.name not in self._methods_found:
            self._methods_found[candidate.method.name] = candidate.method
            if self._description is None and (reason := candidate.method.refuses({})):
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

    def _geometry(self, candidate: _Candidate, name: str, found: Found) -> Geometry | str:
        """Return the sizes of a weight, or why there are none, empty if the config calls it something else.

        Weights with parts of the same shapes have the same sizes.
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
        if isinstance(sizes, Geometry) and (layout.shape is None or sizes.fills_words):
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

    def _find_lacking(self, left: Sequence[str]) -> None:
        """Find each tensor of codes that has not all of its parts, or some of another dtype.

        What is called as any weight counts where other weights are quantised, or something says that they are.
        """
        is_active = bool(self._weights) or self._description is not None
        for name in left:
            if name in self._used:
                continue
            ref = self._catalog[name]
            candidates = [one for one in self._by_dtype[ref.dtype] if name.endswith(one.layout.codes.ending)]
            layouts = [one.layout for one in candidates if self._is_meant(one)]
            distinct = [one for one in layouts if one.codes.ending.startswith(".") and one.codes.ending != ".weight"]
            is_weight = ref.dtype == F8_E4M3 or name.endswith((".weight", *_STACKS, "_blocks"))
            if layouts and (distinct or (is_active and is_weight)):
                self._explain(name, layouts)
                alike = [one for one in layouts if id(one) in self._layouts_found]
                self._lacks(name, (alike or distinct or layouts)[0])

    def _unread(self, tensors: Mapping[str, TensorRef]) -> Iterator[str]:
        """Yield a finding for each tensor of codes that is left, and that no method here stores like this."""
        known = {finding.partition(":")[0] for finding in (*self._missing, *self._wrong)}
        for name, ref in tensors.items():
            if ref.dtype not in OF_CODES or quote(name) in known:
                continue
            if ref.dtype in _FP8 or any(name + ending in tensors for ending in _OF_STACKS):
                yield f"{quote(name)}: it is {ref.dtype}, and quantised in a way that is not read"

    def _is_meant(self, candidate: _Candidate) -> bool:
        """Whether a name alone may show a method: where something says it, where it is found, or nobody else has it."""
        ending = candidate.layout.codes.ending
        is_found = self._description is not None or candidate.method.name in self._methods_found
        return is_found or (ending.startswith(".") and ending != ".weight")

    def _lacks(self, name: str, layout: Layout) -> None:
        stem = name.removesuffix(layout.codes.ending)
        for part in layout.parts:
            wanted = stem + part.endings[0]
            ref = next((self._catalog[stem + e] for e in part.endings if stem + e in self._catalog), None)
            if part.optional or (ref is not None and ref.dtype in part.dtypes):
                continue
            if ref is None:
                is_scale = part in layout.factors
                what = f"its scales {quote(wanted)} are missing" if is_scale else f"{quote(wanted)} is missing"
                self._missing.append(f"{quote(name)}: {what}")
            else:
                dtypes = first_few([dtype.name for dtype in part.dtypes], 5)
                self._wrong.append(f"{quote(name)}: {quote(ref.name)} has dtype {ref.dtype}, not {dtypes}")
            return
        self._wrong.append(f"{quote(name)}: it is quantised in a way that is not read")

    def _why_dropped(self, name: str, endings: Mapping[str, str]) -> str:
        ending = next((ending for ending in endings if name.endswith(ending)), "")
        stem = name.removesuffix(ending)
        is_its = stem in self._modules or stem.rpartition(".")[2] in _ATTENTION
        return endings[ending] if ending and is_its else ""

    def _twice(self) -> Iterator[str]:
        """Yield a finding for each weight that the source has as it is, too."""
        for name, weight in self._weights.items():
            if weight.name != name and weight.name in self._catalog:
                yield f"{quote(name)}: the source has its weight {quote(weight.name)} as well"

    def _surplus(self, tensors: Mapping[str, TensorRef]) -> Iterator[str]:
        """Yield a finding for each tensor that is left, and is called as if it were part of a weight."""
        every = (one for some in self._by_dtype.values() for one in some)
        found = self._methods_found.values() if self._description is None else ()
        layouts = [one.layout for one in every if self._description is not None or one.method in found]
        parts = {(e, part.is_common) for layout in layouts for part in layout.parts for e in part.endings}
        for name, ref in tensors.items():
            for ending, is_common in parts:
                stem = name.removesuffix(ending)
                # Models have no tensors of their own in F8_E8M0.
                is_own = is_common and not stem.endswith(".weight") and ref.dtype != F8_E8M0
                if stem != name and not is_own and not {stem, stem.removesuffix(".weight")} & self._explained:
                    yield f"{quote(name)}: there is no quantised tensor that it belongs to"
                    break
