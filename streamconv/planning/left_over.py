"""What is left of a quantised source when its weights are found: parts that lack others, and what serves it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from ..quantisation import registry
from ..quantisation.language import ByModule, Layout, Method
from ..tensors.dtypes import F8_E4M3, F8_E8M0, I8, I32, U8, DType
from ..tensors.refs import Catalog, TensorRef
from ..text import first_few, quote

#: The dtypes that no tensor of a model has which is not quantised, indices apart.
OF_CODES = (U8, I8, I32, F8_E4M3, F8_E8M0)

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


class Candidate(NamedTuple):
    """How a tensor of codes may be stored, and what the config says about weights by module."""

    method: Method
    stated: ByModule
    layout: Layout


class Weights(Struct):
    """The weights that were found.

    Attributes:
        are_described: whether anything says how the source is quantised.
        found: tensor of codes -> the weight.
        used: the other tensors that weights consist of.
        modules: whose weights they are.
        methods: the methods that were found, by name.
        layouts: the identities of the layouts that were found.
        explained: the beginnings of names that a finding speaks of.
        missing, wrong: findings, as in `Understood`.
    """

    are_described: bool
    found: dict[str, TensorRef] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    methods: dict[str, Method] = field(default_factory=dict)
    layouts: set[int] = field(default_factory=set)
    explained: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def explain(self, name: str, layouts: Sequence[Layout]) -> None:
        """Note that a finding speaks of a weight: what belongs to it needs none of its own."""
        self.explained.update(name.removesuffix(layout.codes.ending) for layout in layouts)


class LeftOver:
    """Says what is wrong with tensors that belong to no weight, and which of them are not needed."""

    def __init__(self, catalog: Catalog, by_dtype: Mapping[DType, Sequence[Candidate]], found: Weights) -> None:
        self._catalog, self._by_dtype, self._found = catalog, by_dtype, found

    def find_lacking(self, left: Sequence[str]) -> None:
        """Find each tensor of codes that has not all of its parts, or some of another dtype.

        What is called as any weight counts where other weights are quantised, or something says that they are.
        """
        is_active = bool(self._found.found) or self._found.are_described
        for name in left:
            if name in self._found.used:
                continue
            ref = self._catalog[name]
            candidates = [one for one in self._by_dtype[ref.dtype] if name.endswith(one.layout.codes.ending)]
            layouts = [one.layout for one in candidates if self._is_meant(one)]
            distinct = [one for one in layouts if one.codes.ending.startswith(".") and one.codes.ending != ".weight"]
            is_weight = ref.dtype == F8_E4M3 or name.endswith((".weight", *_STACKS, "_blocks"))
            if layouts and (distinct or (is_active and is_weight)):
                self._found.explain(name, layouts)
                alike = [one for one in layouts if id(one) in self._found.layouts]
                self._lacks(name, (alike or distinct or layouts)[0])

    def unread(self, tensors: Mapping[str, TensorRef]) -> Iterator[str]:
        """Yield a finding for each tensor of codes that is left, and that no method here stores like this."""
        known = {finding.partition(":")[0] for finding in (*self._found.missing, *self._found.wrong)}
        for name, ref in tensors.items():
            if ref.dtype not in OF_CODES or quote(name) in known:
                continue
            if ref.dtype in _FP8 or any(name + ending in tensors for ending in _OF_STACKS):
                yield f"{quote(name)}: it is {ref.dtype}, and quantised in a way that is not read"

    def _is_meant(self, candidate: Candidate) -> bool:
        """Whether a name alone may show a method: where something says it, where it is found, or nobody else has it."""
        ending = candidate.layout.codes.ending
        is_found = self._found.are_described or candidate.method.name in self._found.methods
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
                self._found.missing.append(f"{quote(name)}: {what}")
            else:
                dtypes = first_few([dtype.name for dtype in part.dtypes], 5)
                self._found.wrong.append(f"{quote(name)}: {quote(ref.name)} has dtype {ref.dtype}, not {dtypes}")
            return
        self._found.wrong.append(f"{quote(name)}: it is quantised in a way that is not read")

    def endings(self) -> Mapping[str, str]:
        """Return how tensors are called that serve quantised models alone -> what they are."""
        endings = dict(registry.DROPPED)
        for method in self._found.methods.values():
            endings.update(method.dropped)
        return endings

    def why_dropped(self, name: str, endings: Mapping[str, str]) -> str:
        """Return what a tensor is, if it serves a quantised model alone."""
        ending = next((ending for ending in endings if name.endswith(ending)), "")
        stem = name.removesuffix(ending)
        is_its = stem in self._found.modules or stem.rpartition(".")[2] in _ATTENTION
        return endings[ending] if ending and is_its else ""

    def twice(self) -> Iterator[str]:
        """Yield a finding for each weight that the source has as it is, too."""
        for name, weight in self._found.found.items():
            if weight.name != name and weight.name in self._catalog:
                yield f"{quote(name)}: the source has its weight {quote(weight.name)} as well"

    def surplus(self, tensors: Mapping[str, TensorRef]) -> Iterator[str]:
        """Yield a finding for each tensor that is left, and is called as if it were part of a weight."""
        every = (one for some in self._by_dtype.values() for one in some)
        found = self._found.methods.values() if not self._found.are_described else ()
        layouts = [one.layout for one in every if self._found.are_described or one.method in found]
        parts = {(e, part.is_common) for layout in layouts for part in layout.parts for e in part.endings}
        for name, ref in tensors.items():
            for ending, is_common in parts:
                stem = name.removesuffix(ending)
                # Models have no tensors of their own in F8_E8M0.
                is_own = is_common and not stem.endswith(".weight") and ref.dtype != F8_E8M0
                if stem != name and not is_own and not {stem, stem.removesuffix(".weight")} & self._found.explained:
                    yield f"{quote(name)}: there is no quantised tensor that it belongs to"
                    break
