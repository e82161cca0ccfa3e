"""Which conversion it is: what a journal has to agree with before a run goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime

import xxhash

from ..formats.layout import FileLayout
from ..planning.plan import Plan
from ..rules.family import spell
from ..tensors import dtypes
from ..tensors.refs import Catalog
from ..text import quote
from . import journal
from .manifest import appends_crc

Fingerprint = Mapping[str, object]
"""A conversion by all that decides its output's bytes, and its source's files as they are: as plain values."""

_SHOWN = 3

#: What differs in so many words; where none of it does, the plan itself is another.
_WORDS = {
    "streamconv": "streamconv",
    "model": "--model",
    "direction": "the direction",
    "dtype": "--dtype",
    "format": "--format",
    "max_shard_size": "--max-shard-size",
    "crc": "--crc",
}


def describe(plan: Plan, layout: FileLayout, catalog: Catalog, max_shard_size: int, version: str) -> Fingerprint:
    """Describe a conversion that is planned and laid out, by this version of streamconv."""
    values = {
        "journal": journal.VERSION,
        "streamconv": version,
        "model": plan.family,
        "direction": plan.direction.value,
        "options": {name: spell(value) for name, value in sorted(plan.options.items())},
        "dtype": next((word for word, dtype in dtypes.TARGETS.items() if dtype == plan.dtype), None),
        "format": layout.format,
        "max_shard_size": max_shard_size,
        "crc": appends_crc(layout),
        "plan": plan.digest,
        "files": _digest([[file.name, file.size] for file in layout.files]),
        "source": _source(catalog),
    }
    found: Fingerprint = json.loads(json.dumps(values))
    return found


def _digest(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value).encode())


def _source(catalog: Catalog) -> Mapping[str, list[object]]:
    """Of each file its size, when it was written, and a digest of what its header says."""
    headers = {file.path: xxhash.xxh3_128() for file in catalog.files}
    for ref in catalog.values():
        for extent in ref.extents:
            text = f"{ref.name}\0{ref.dtype}{ref.shape}{extent.offset}+{extent.length}{ref.cutout}"
            headers[extent.file.path].update(text.encode("utf-8", "surrogatepass"))
    return {file.path.name: [file.size, file.modified, headers[file.path].hexdigest()] for file in catalog.files}


def differences(begun: Fingerprint, now: Fingerprint) -> list[str]:
    """How two conversions differ, in words; empty where they are the same."""
    found = [
        f"{word} was {quote(_said(begun.get(key)))}, is {quote(_said(now[key]))}"
        for key, word in _WORDS.items()
        if begun.get(key) != now[key]
    ]
    found += [*_options(_table(begun, "options"), _table(now, "options"))]
    found += [*_files(_table(begun, "source"), _table(now, "source"))]
    if not found and begun != now:
        found = ["the plan was another: other names, shapes or layouts"]
    return found


def _said(value: object) -> object:
    return "not given" if value is None else value


def _table(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _options(begun: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    for name in sorted({*begun, *now}):
        if begun.get(name) != now.get(name):
            yield f"-o {quote(name)} was {quote(_said(begun.get(name)))}, is {quote(_said(now.get(name)))}"


def _files(begun: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    changed = [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]
    for name in changed[:_SHOWN]:
        yield f"the source's {quote(name)} {_change(begun.get(name), now.get(name))}"
    if len(changed) > _SHOWN:
        yield f"and {len(changed) - _SHOWN} more of its files"


def _change(begun: object, now: object) -> str:
    match begun, now:
        case None, _:
            return "was not there"
        case _, None:
            return "is not there any more"
        case [size, modified, _], [now_size, now_modified, _]:
            if size != now_size:
                return f"had {size} bytes, has {now_size}"
            if modified != now_modified:
                return f"was last written {_time(modified)}, now {_time(now_modified)}"
    return "has another header"


def _time(nanoseconds: object) -> str:
    if not isinstance(nanoseconds, int):
        return "at an unknown time"
    return f"{datetime.fromtimestamp(nanoseconds // 10**9):%Y-%m-%d %H:%M:%S}.{nanoseconds % 10**9:09}"
