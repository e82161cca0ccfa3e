"""Which conversion it is: what a journal has to agree with before a run resumes from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from operator import itemgetter

import xxhash

from ..formats.layout import FileLayout
from ..planning.mapping import TensorMapping
from ..rules.family import spell
from ..storage import mounts
from ..tensors import dtypes
from ..tensors.extents import SourceFile
from ..tensors.refs import Catalog
from ..text import first_few, format_time, quote, setting
from . import journal
from .settings import Settings

Fingerprint = Mapping[str, object]
"""All that decides the bytes of a conversion's output, and the state of its source's files, as plain values."""

#: Raised when the same plan gives other bytes than it gave before, and only then: an unfinished run of another version
#: of streamconv is resumed if that one wrote the same bytes.
BYTES_VERSION = 1

#: Size, time of modification, inode, time of the last change.
_IDENTITY = 4

_SHOWN = 3
_AT_ONCE = 1000
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")

#: How a message names what differs; where none of it does, the plan itself is another.
_NAMES = {
    "journal": "the version of the journal",
    "bytes_version": "the version of what streamconv writes",
    "direction": "the direction",
    **{name: setting(name) for name in ("model", "dtype", "format", "max_shard_size", "crc")},
    "ranks": "the number of ranks",
    "strategy": "the strategy",
    "links": "whether ranks share files",
}


def describe(settings: Settings, mapping: TensorMapping, layout: FileLayout, catalog: Catalog) -> Fingerprint:
    """Return the fingerprint of a conversion that is planned and laid out."""
    values = {
        "journal": journal.VERSION,
        "bytes_version": BYTES_VERSION,
        **settings.to_json(),
        "plan": mapping.digest,
        "files": _digest([[file.name, file.size] for file in layout.files]),
        "source": _source(catalog),
    }
    found: Fingerprint = json.loads(json.dumps(values))
    return found


def _digest(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value).encode())


def _source(catalog: Catalog) -> Mapping[str, list[object]]:
    """Return for each file its size, when it was modified, what file it is, and a digest of what its header says.

    A tool that copies times (`rsync -a`, `touch -r`) cannot copy the inode, nor the time of the last change.
    """
    headers = {file.path: xxhash.xxh3_128() for file in catalog.files}
    for file, said in groupby(_header_texts(catalog), key=itemgetter(0)):
        while some := "".join([text for _, text in islice(said, _AT_ONCE)]):
            headers[file.path].update(some.encode("utf-8", "surrogatepass"))
    return {catalog.name_of(file): [*_identity(file), headers[file.path].hexdigest()] for file in catalog.files}


def _header_texts(catalog: Catalog) -> Iterator[tuple[SourceFile, str]]:
    """Yield what headers say of each tensor, or of each piece of it, and of which file."""
    for ref in catalog.values():
        before, after = f"{ref.name}\0{ref.dtype.name}{ref.shape}", ref.cutout
        for extent in ref.extents if ref.slices is None else ref.places():
            yield extent.file, f"{before}{extent.offset}+{extent.length}{after}"


def _identity(file: SourceFile) -> tuple[int | None, ...]:
    inode = file.inode if mounts.keeps_inodes(file.path) else None
    return file.size, file.modified, inode, file.changed


def differences(begun: Fingerprint, now: Fingerprint) -> list[str]:
    """Say how a conversion differs from one that was begun; return nothing where they are the same."""
    begun, now = _where_both_know(begun, now)
    found = [
        f"{name} was {_shown(begun.get(key), key)}, is {_shown(now.get(key), key)}"
        for key, name in _NAMES.items()
        if begun.get(key) != now.get(key)
    ]
    found += [*_options(_table(begun, "options"), _table(now, "options"))]
    found += [*_files(_table(begun, "source"), _table(now, "source"))]
    if not found and begun != now:
        found = ["the plan was different: other names, shapes or layouts"]
    return found


def _where_both_know(begun: Fingerprint, now: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Return both without the inodes that only one of them knows: hosts may mount one file system in different ways."""
    was, is_now = dict(_table(begun, "source")), dict(_table(now, "source"))
    for name in {*was} & {*is_now}:
        match was[name], is_now[name]:
            case [*one, header], [*other, its] if len(one) == len(other) == _IDENTITY and None in (one[2], other[2]):
                was[name], is_now[name] = [*one[:2], None, one[3], header], [*other[:2], None, other[3], its]
    return ({**begun, "source": was} if begun else begun), {**now, "source": is_now}


def _shown(value: object, key: str = "") -> str:
    """Return a setting's value as it is given."""
    if value is None:
        return "not given"
    words = {dtype.name: word for word, dtype in dtypes.TARGETS.items()} if key == "dtype" else {}
    return quote(words.get(str(value)) or (spell(value) if isinstance(value, bool) else value))


def _table(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _options(begun: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    for name in sorted({*begun, *now}):
        if begun.get(name) != now.get(name):
            shown = setting(f"options.{name}") if _PLAIN.fullmatch(name) else f"option {quote(name)}"
            yield f"{shown} was {_shown(begun.get(name))}, is {_shown(now.get(name))}"


def _files(begun: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    if begun and now and not {*begun} & {*now}:
        was, is_now = (first_few(sorted(names), _SHOWN, quote) for names in (begun, now))
        yield f"another source: it was {was}, now it is {is_now}"
        return
    changed = [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]
    for name in changed[:_SHOWN]:
        yield f"the source's {quote(name)} {_change(begun.get(name), now.get(name))}"
    if len(changed) > _SHOWN:
        yield f"and {len(changed) - _SHOWN} more of its files"


def _change(begun: object, now: object) -> str:
    match begun, now:
        case None, _:
            return "did not exist"
        case _, None:
            return "no longer exists"
        case [*was, _], [*is_now, _] if len(was) == len(is_now) and was != is_now:
            return _change_of_identity(was, is_now)
    return "has a different header"


def _change_of_identity(was: list[object], is_now: list[object]) -> str:
    """Say how size, time, inode or the time of the last change differ: the first of them that does."""
    first = next(number for number, (one, other) in enumerate(zip(was, is_now, strict=True)) if one != other)
    words = (
        f"had {was[0]} bytes, has {is_now[0]}",
        f"was last modified {_time(was[1])}, now {_time(is_now[1])}",
        "was replaced (same size and modification time, another file)",
        f"was written, renamed, or given other permissions or links {_time(is_now[3])} "
        "(same size and modification time)",
    )
    return words[first]


def _time(nanoseconds: object) -> str:
    if not isinstance(nanoseconds, int):
        return "at an unknown time"
    return f"at {format_time(nanoseconds // 10**9)}.{nanoseconds % 10**9:09}"
