"""Names with a prefix too many or too few, as wrappers and bare models have them: `_orig_mod.model.norm.weight`.

Only names that no pattern matches are read differently, and all of them in the same way.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..rules.matcher import Matcher
from ..rules.statements import Drop, Rule
from ..rules.table import Table
from ..tensors.refs import Catalog, TensorRef
from ..text import quote

#: What wrappers put into names, anywhere between dots -> the wrapper.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
    "module": "DistributedDataParallel",
}

#: Names that are tried before all are; enough to tell one spelling from another.
_TRIED = 64
#: The longest prefix, in parts between dots, that is taken away.
_LONGEST = 6
#: Prefixes of the model's own names that are tried in front of others.
_MOST_ADDED = 8


class Spelling(Struct, frozen=True):
    """How names are read: without wrappers' parts, without a prefix, and with another.

    Attributes:
        wrappers: parts that are taken away wherever they stand.
        without: prefix that is taken away.
        added: prefix that is put in front.
    """

    wrappers: tuple[str, ...]
    without: str
    added: str

    @property
    def is_of_wrappers(self) -> bool:
        """Whether only what wrappers put into names is taken away; a prefix is no prefix if few names have it."""
        return not self.without and not self.added

    def __call__(self, name: str, matchers: Sequence[Matcher] = ()) -> str:
        """Return what a name is read as; nothing is put in front of one that is the model's without it."""
        parts = [part for part in name.split(".") if part not in self.wrappers]
        bare = ".".join(parts).removeprefix(self.without)
        return bare if _is_known(bare, matchers) else self.added + bare

    def __str__(self) -> str:
        away = [f"{wrapper}. ({WRAPPERS[wrapper]})" for wrapper in self.wrappers]
        away += [quote(self.without)] if self.without else []
        words = [f"without {' and '.join(away)}"] if away else []
        words += [f"with {self.added} in front"] if self.added else []
        return f"names are read {', and '.join(words)}"


def respelled(catalog: Catalog, tables: Sequence[Table]) -> tuple[Catalog, Spelling] | None:
    """Return the source under the names that fit the model best, and how they are read.

    Args:
        catalog: the source, of whose names at least one fits no table.
        tables: the tables of all options, read from the source's side.

    Returns:
        `None` if no other spelling gives more names a pattern, or two tensors the same name.
    """
    matchers = [table.matcher for table in tables]
    unknown = [name for name in catalog if not _is_known(name, matchers)]
    tried = unknown[:: max(1, len(unknown) // _TRIED)]
    known = sum(any(_is_taken(name, table) for table in tables) for name in catalog)
    spellings = [one for one in _spellings(unknown, tables) if one.is_of_wrappers or known < len(unknown)]
    if not spellings:
        return None
    best = min(spellings, key=lambda spelling: _count_unknown((spelling(n, matchers) for n in tried), matchers))
    names = {name: best(name, matchers) for name in unknown}
    if _count_unknown(names.values(), matchers) == len(unknown) or _collide(names, catalog):
        return None
    return _renamed(catalog, names), best


def _is_known(name: str, matchers: Sequence[Matcher]) -> bool:
    return any(matcher.match(name) is not None for matcher in matchers)


def _is_taken(name: str, table: Table) -> bool:
    """Whether a tensor is the model's under its own name, not dropped."""
    match = table.matcher.match(name)
    return match is not None and not isinstance(table.statements[match.number], Drop)


def _count_unknown(names: Iterable[str], matchers: Sequence[Matcher]) -> int:
    return sum(not _is_known(name, matchers) for name in names)


def _collide(names: Mapping[str, str], catalog: Catalog) -> bool:
    """Whether two tensors would have one name."""
    others = {name for name in catalog if name not in names}
    return len({*names.values()}) < len(names) or not others.isdisjoint(names.values())


def _spellings(unknown: Sequence[str], tables: Sequence[Table]) -> Iterator[Spelling]:
    """Yield the ways to read these names, those that change least first; but not the names as they are."""
    parts = {part for name in unknown for part in name.split(".")[:-1]}
    wrappers = tuple(part for part in WRAPPERS if part in parts)
    stems = [Spelling(wrappers, "", "")(name) for name in unknown]
    prefixes = list(_common_prefixes(stems))
    added = list(_leading_prefixes(tables))
    for without in prefixes:
        for front in ("", *added):
            if (wrappers or without or front) and not (front and without.startswith(front)):
                yield Spelling(wrappers, without, front)


def _common_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Yield the prefixes that all names share, from none to the longest."""
    shared = names[0].split(".")[:-1][:_LONGEST] if names else []
    yield ""
    for count in range(1, len(shared) + 1):
        prefix = ".".join(shared[:count]) + "."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix


def _leading_prefixes(tables: Sequence[Table]) -> Iterator[str]:
    """Yield what the most of the model's own names begin with: `model.`, `transformer.`."""
    counts: Counter[str] = Counter()
    for table in tables:
        for statement in table.statements:
            if isinstance(statement, Rule):
                counts.update(_literal_prefixes(statement.patterns(table.side)))
    yield from (prefix for prefix, _ in counts.most_common(_MOST_ADDED))


def _literal_prefixes(patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        parts = pattern.partition("{")[0].split(".")[:-1]
        yield from (".".join(parts[:count]) + "." for count in range(1, len(parts) + 1))


def _renamed(catalog: Catalog, names: Mapping[str, str]) -> Catalog:
    def renamed(ref: TensorRef) -> TensorRef:
        return replace(ref, name=names[ref.name]) if ref.name in names else ref

    tensors = {new.name: new for new in map(renamed, catalog.tensors.values())}
    twice = tuple((renamed(one), renamed(other)) for one, other in catalog.twice)
    return dataclasses.replace(catalog, tensors=tensors, twice=twice)
