"""Families whose names are those of a source that no config tells the family of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from msgspec.structs import replace

from ..errors import StreamconvError, UnsupportedError
from ..rules.family import Config, Family
from ..rules.statements import Direction
from ..rules.table import Table
from ..tensors.refs import Catalog
from . import findings, fused_tensors, matching, prefixes
from .mapping import Request
from .options import all_tables, count_lacking, count_unmatched

_ANYTHING = re.compile(r"\{\w+:\*\}")

#: Names that are looked up before all are: most families are ruled out by the first few.
_TRIED = 32


def fitting_families(families: Iterable[Family], catalog: Catalog, config: Config, direction: Direction) -> list[str]:
    """Return the names of the families that know every name of the source, with some of their options.

    Those that a config can ask for come first: others, such as `yi`, have the same names as one of them.

    Args:
        families: the families to try; one that takes any name fits nothing in particular, and is left out.
        catalog: the source's tensors.
        config: the model's config.
        direction: which side the source is.
    """
    requests = [Request(catalog, family, config, direction) for family in families]
    found = [one.family for one in requests if _fits(one)] or [one.family for one in requests if _fits_respelled(one)]
    return [family.name for family in sorted(found, key=lambda one: (not one.model_types, one.name))]


def _fits(request: Request) -> bool:
    cut = _cut(request)
    names = list(cut.catalog)
    some = names[:: max(1, len(names) // _TRIED)]
    return any(
        not _takes_anything(table)
        and all(table.matcher.match(name) is not None for name in some)
        and not count_lacking(cut, table)
        and not count_unmatched(cut, table)
        and not _lacks_layers(cut, table)
        for table in all_tables(cut, {})
    )


def _lacks_layers(request: Request, table: Table) -> bool:
    """Whether no layer has the tensors of some rule that layers need, as models without norms of the heads."""
    matches = matching.match_names(request.catalog, table)
    with suppress(StreamconvError):  # sizes that contradict, or are not given
        matching.learn_counts(matches, table)
        return findings.lacks_all_of_a_rule(matches, table)
    return False


def _cut(request: Request) -> Request:
    """Return the request with its source's fused tensors cut, as a conversion reads them."""
    if request.direction is Direction.REVERSE:
        return request
    with suppress(UnsupportedError):  # fused and by itself, or in FP8
        found = fused_tensors.separated(request.catalog, request.family.fused)
        return replace(request, catalog=found.catalog) if found else request
    return request


def _fits_respelled(request: Request) -> bool:
    """Whether names fit as `prefixes` reads them."""
    found = prefixes.respelled(request.catalog, list(all_tables(request, {})))
    return found is not None and _fits(replace(request, catalog=found[0]))


def _takes_anything(table: Table) -> bool:
    patterns = (pattern for statement in table.statements for pattern in statement.patterns(table.side))
    return any(_ANYTHING.fullmatch(pattern) for pattern in patterns)
