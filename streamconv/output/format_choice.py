"""The format of a result: by the name of the destination, as asked, or by the direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..formats.directory import TORCH_ENDINGS
from ..formats.layout import CKPT, HF_SAFETENSORS, MS_SAFETENSORS, TORCH
from ..rules.family import RAW, Family
from ..rules.statements import Direction
from ..text import quote, setting
from .destination import Destination

_FORMATS = (MS_SAFETENSORS, CKPT, HF_SAFETENSORS, TORCH)

#: The formats that tensors are cut for ranks in.
_OF_RANKS = (MS_SAFETENSORS, CKPT)

#: The formats that are one file, with its endings.
_ONE_FILE = {CKPT: (".ckpt",), TORCH: TORCH_ENDINGS}

_FILE_ENDINGS = tuple(ending for endings in _ONE_FILE.values() for ending in endings)

#: Endings of weight files: a directory with one of them would be taken for a file.
_WEIGHT_ENDINGS = (*_FILE_ENDINGS, ".safetensors", ".gguf")

_HINT_RAW = f"use {setting('model', RAW)} to change only the format"


def destination(path: Path) -> Destination:
    """Return what `path` stands for as a destination: a file by its ending, else a directory.

    Raises:
        UsageError: it ends like a file that is not written alone, or no file can have that name.
    """
    if "\0" in str(path):
        raise UsageError(f"the destination's path holds a NUL character: {quote(path)}")
    is_file = path.suffix in _FILE_ENDINGS
    if not is_file and path.suffix.lower() in _WEIGHT_ENDINGS:
        raise UsageError(
            f"a destination must be a directory or a file that ends in .ckpt, {_either(TORCH_ENDINGS)}: {quote(path)}",
            f"name a directory that does not end in {path.suffix}",
        )
    return Destination(path, is_file)


def choose_format(
    asked: str | None, dest: Destination, direction: Direction, family: Family, crc: bool, is_cut: bool = False
) -> str:
    """Return the format to write: as asked, or by the destination's name and the direction.

    Args:
        asked: a format, or `None`.
        dest: the destination.
        direction: of the conversion.
        family: the model family.
        crc: whether MindSpore's CRC is asked for.
        is_cut: whether tensors are cut for ranks.

    Raises:
        UsageError: the format does not go with the destination, or with what the conversion gives.
    """
    if is_cut:
        return _choose_for_ranks(asked, dest, crc)
    suffix = dest.path.suffix if dest.paths.is_file else ""
    by_name = next((one for one, endings in _ONE_FILE.items() if suffix in endings), None)
    chosen = asked or by_name or (MS_SAFETENSORS if direction is Direction.FORWARD else HF_SAFETENSORS)
    if chosen not in _FORMATS:
        raise UsageError(f"unknown value for {setting('format')}: {quote(chosen)}", f"choose {_either(_FORMATS)}")
    if by_name != (chosen if chosen in _ONE_FILE else None):
        _refuse_ending(chosen, suffix)
    if family.name != RAW and (chosen in (HF_SAFETENSORS, TORCH)) == (direction is Direction.FORWARD):
        remedy = [_omit("format")] if asked else []
        if by_name:
            remedy.insert(0, "choose a directory or " + ("a .ckpt file" if chosen == TORCH else "a torch file"))
        raise _other_side(chosen, direction, " and ".join(remedy))
    if crc and chosen != CKPT:
        raise UsageError(f"only a .ckpt file can have a CRC, and {setting('dest')} does not end in .ckpt", _omit("crc"))
    return chosen


def _choose_for_ranks(asked: str | None, dest: Destination, crc: bool) -> str:
    """Return the format of the files of ranks: MindSpore loads two."""
    if dest.paths.is_file:
        raise UsageError(
            f"a strategy gives a file for each rank, and {setting('dest')} ends like one file: {quote(dest.path)}",
            "name a directory",
        )
    chosen = asked or MS_SAFETENSORS
    if chosen not in _OF_RANKS:
        raise UsageError(f"{setting('format', quote(chosen))} has no files of ranks", f"choose {_either(_OF_RANKS)}")
    if crc and chosen != CKPT:
        raise UsageError("only .ckpt files can have a CRC", f"add {setting('format', CKPT)}, or {_omit('crc')}")
    return chosen


def _refuse_ending(chosen: str, suffix: str) -> None:
    if chosen in _ONE_FILE:
        needed = f"must end in {_either(_ONE_FILE[chosen])}"
    else:
        needed = f"must be a directory, not end in {suffix}"
    raise UsageError(f"{setting('dest')} {needed} for {setting('format', chosen)}", f"rename it, or {_omit('format')}")


def _other_side(chosen: str, direction: Direction, hint: str) -> UsageError:
    """Return the error for one side's format holding the other side's names."""
    forward = direction is Direction.FORWARD
    written, other = ("MindSpore", "HuggingFace") if forward else ("HuggingFace", "MindSpore")
    what = "a torch file" if chosen == TORCH else setting("format", chosen)
    if chosen == TORCH:
        hint += f", add {setting('reverse', True)} if {setting('source')} is MindSpore's"
    return UsageError(
        f"{what} is for {other}'s tensors, but this conversion writes {written}'s", f"{hint}, or {_HINT_RAW}"
    )


def _omit(name: str) -> str:
    return f"omit {setting(name)}"


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
