"""Files that are numbered `N of M`, in every spelling that has the word.

`model-00001-of-00003` is transformers', `model-00001-of-000163` DeepSeek's, `model-1-of-61` Kimi's;
`pytorch_model_00001-of-00002` is TeleChat's, `pytorch_model.1-of-3` and `part_00000_OF_00004` are met as well, and by
hand people write `model 1 of 3` and `model(1of3)`. `Llama-3.1-8B-2of4` is a model of 2:4 sparsity, unless another file
of four is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from ..errors import SourceError
from ..text import quote

#: What a file of weights may end in, and so a member of a series.
_ENDINGS = r"\.(?:safetensors|ckpt|bin|pt|pth)"
# A browser adds ` (1)` to the name of a file that it downloads again.
_MEMBER = re.compile(
    r"(?P<stem>(?:.*[^0-9])?)(?P<number>\d+)(?P<of>[-_. ]?of[-_. ]?)(?P<count>\d+)"
    r"(?P<ending>(?:(?! ?\(\d+\))[-_. )\]].*)?" + _ENDINGS + ")",
    re.DOTALL | re.IGNORECASE,
)
#: What patterns of sparsity are called: number and count.
_SPARSITY = (("2", "4"), ("4", "8"), ("8", "16"))
# As transformers and diffusers name the same weights in another dtype: `model.fp16.safetensors`.
_VARIANT = re.compile(r"(model|pytorch_model)\.[^.]+\.(safetensors|bin)", re.DOTALL)
# A name can state any count; nobody reads more missing names than a message shows.
_MOST_NAMED = 16


class _Key(NamedTuple):
    """What all members of a series share, around their number."""

    stem: str
    of: str
    total: str
    ending: str


class Missing(Struct, frozen=True):
    """Files that a series lacks: how many, and the names of the first of them, spelled like the others."""

    count: int
    names: Sequence[str]


def numbered(names: Sequence[str]) -> list[str]:
    """Return those of the names that are of a numbered series.

    >>> numbered(["model-00001-of-00003.safetensors", "model.safetensors"])
    ['model-00001-of-00003.safetensors']
    """
    series = _series(names)
    return [name for name in names if (match := _MEMBER.fullmatch(name)) and _key(match) in series]


def is_one_series(names: Sequence[str]) -> bool:
    """Return whether all names are of the same series.

    >>> is_one_series(["a-1-of-2.ckpt", "a-2-of-2.ckpt"]), is_one_series(["a-1-of-2.ckpt", "b-2-of-2.ckpt"])
    (True, False)
    """
    return len(numbered(names)) == len(names) and len(_series(names)) == 1


def part_of(name: str) -> tuple[int, int] | None:
    """Return which file of how many a name states, `None` for other names.

    >>> part_of("model-00001-of-000163.safetensors"), part_of("model.safetensors")
    ((1, 163), None)
    """
    found = _member(name)
    return (int(found["number"]), int(found["count"])) if found else None


def is_variant(name: str) -> bool:
    """Return whether a name is of a variant of a model, such as `model.fp16.safetensors`.

    >>> is_variant("model.fp32-00001-of-00002.safetensors"), is_variant("model-00001-of-00002.safetensors")
    (True, False)
    """
    found = _member(name)
    return _VARIANT.fullmatch(found["stem"].rstrip("-_.") + found["ending"] if found else name) is not None


def missing(names: Iterable[str]) -> Missing:
    """Return what the first incomplete series among these names lacks.

    A series that holds number 0, and not number M, is counted from 0.

    Raises:
        SourceError: a file has a number that its series cannot have, such as `model-00003-of-00002`.
    """
    for key, numbers in sorted(_series(names).items()):
        count, found = int(key.total), {int(text) for text in numbers}
        _check_range(key, numbers, count)
        expected = range(count) if 0 in found and count not in found else range(1, count + 1)
        if lacking := count - sum(number in expected for number in found):
            absent = (number for number in expected if number not in found)
            return Missing(lacking, [_spelled(key, numbers, number) for number in islice(absent, _MOST_NAMED)])
    return Missing(0, ())


def _series(names: Iterable[str]) -> dict[_Key, list[str]]:
    """Return the numbers of each series, as they are spelled."""
    found: dict[_Key, list[re.Match[str]]] = {}
    for match in filter(None, map(_MEMBER.fullmatch, names)):
        found.setdefault(_key(match), []).append(match)
    return {
        key: [match["number"] for match in matches]
        for key, matches in found.items()
        if len(matches) > 1 or not _is_sparsity(matches[0])
    }


def _key(match: re.Match[str]) -> _Key:
    return _Key(match["stem"], match["of"], match["count"], match["ending"])


def _member(name: str) -> re.Match[str] | None:
    """Return how a name is numbered, by itself."""
    match = _MEMBER.fullmatch(name)
    return None if match and _is_sparsity(match) else match


def _is_sparsity(match: re.Match[str]) -> bool:
    return match["of"].lower() == "of" and (match["number"], match["count"]) in _SPARSITY


def _check_range(key: _Key, numbers: Sequence[str], count: int) -> None:
    for text in (text for text in numbers if int(text) > count):
        raise SourceError(
            f"{quote(_named(key, text))} is numbered {quote(text)} of {quote(key.total)}",
            "correct the file's name, or give an index that names the files",
        )


def _spelled(key: _Key, numbers: Sequence[str], number: int) -> str:
    """Return a member's name, padded with zeros if the names of the others are."""
    is_padded = any(text.startswith("0") and text != "0" for text in (*numbers, key.total))
    return _named(key, f"{number:0{min(map(len, numbers)) if is_padded else 1}}")


def _named(key: _Key, number: str) -> str:
    return f"{key.stem}{number}{key.of}{key.total}{key.ending}"
