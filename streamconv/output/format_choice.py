"""What is written where: the format, by DEST's name, by `--format` and by the direction."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..formats.catalog import TORCH_ENDINGS
from ..formats.layout import CKPT, HF_SAFETENSORS, MS_SAFETENSORS, TORCH
from ..rules.family import Family
from ..rules.statements import Direction
from ..text import quote
from .destination import Destination


def destination(path: Path) -> Destination:
    """DEST: a directory, or a file by its ending.

    Raises:
        UsageError: it ends as a file that is not written alone, or no file could have that name.
    """
    if "\0" in str(path):
        raise UsageError(f"{quote(path)} is no path that a file could have: it has a NUL in it")
    if path.suffix == ".safetensors":
        raise UsageError(
            f"{quote(path)}: a destination is a directory, or a file that ends in .ckpt or {', '.join(TORCH_ENDINGS)}"
        )
    return Destination(path, path.suffix in (".ckpt", *TORCH_ENDINGS))


def choose_format(asked: str | None, dest: Destination, direction: Direction, family: Family, crc: bool) -> str:
    """The format that is written: as asked, or by DEST's name and the direction.

    Raises:
        UsageError: it does not go with DEST, or with what the conversion gives.
    """
    forward = direction is Direction.FORWARD
    suffix = dest.path.suffix if dest.paths.is_file else ""
    single = {CKPT: (".ckpt",), TORCH: TORCH_ENDINGS}
    by_name = next((one for one, endings in single.items() if suffix in endings), None)
    chosen = asked or by_name or (MS_SAFETENSORS if forward else HF_SAFETENSORS)
    if chosen not in (CKPT, MS_SAFETENSORS, HF_SAFETENSORS, TORCH):
        raise UsageError(f"--format {quote(chosen)}: not one of {MS_SAFETENSORS}, {CKPT}, {HF_SAFETENSORS}, {TORCH}")
    if by_name != (chosen if chosen in single else None):
        needed = f"end in {' or '.join(single[chosen])}" if chosen in single else f"be a directory, not end in {suffix}"
        raise UsageError(f"--format {chosen}: DEST has to {needed}")
    if chosen == TORCH and forward and family.name != "raw":
        raise UsageError(
            f"{quote(dest.path)}: a torch file holds HuggingFace's tensors, and this conversion gives "
            "MindSpore's: give a directory or a .ckpt file as DEST, or --reverse if SOURCE is MindSpore's, or use "
            "--model raw to change the format only"
        )
    if family.name != "raw" and (chosen in (HF_SAFETENSORS, TORCH)) == forward:
        raise UsageError(
            f"--format {chosen} holds {'MindSpore' if forward else 'HuggingFace'} names under the other side's files: "
            + ("leave --format away" if forward else "give a directory as DEST, without --format")
            + ", or use --model raw to change the format only"
        )
    if crc and chosen != CKPT:
        raise UsageError("--crc appends to a .ckpt file; DEST does not end in .ckpt")
    return chosen
