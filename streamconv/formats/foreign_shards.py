"""Folders in which a training framework keeps the shards of its own checkpoint, and the tool that merges them.

Source: accelerate 1 (FSDP), torch 2.13 (`torch.distributed.checkpoint`), DeepSpeed (`zero_to_fp32.py`, which it copies
next to its checkpoints), Megatron-LM (`mp_rank_00/model_optim_rng.pt`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError
from ..text import quote


class Kind(NamedTuple):
    """A framework's folder.

    Attributes:
        folder: what the folder is called.
        file: what a file in it is called.
        what: whose it is.
        hint: the next step; `{folder}` and `{above}` are its path and that of the folder around it.
    """

    folder: re.Pattern[str]
    file: re.Pattern[str]
    what: str
    hint: str


_ANY = re.compile(".*", re.DOTALL)
_DCP = re.compile(r"__\d+_\d+\.distcp")
_MEGATRON = (
    "convert it to HuggingFace's format first, with the tools of the Megatron that wrote it, and give the result"
)

KINDS = (
    Kind(re.compile(r"iter_\d{7}"), _DCP, "Megatron's distributed checkpoint", _MEGATRON),
    Kind(re.compile(r"[mt]p_rank_\d+.*"), re.compile(r"model_(?:optim_)?rng\.pt"), "Megatron's checkpoint", _MEGATRON),
    Kind(
        re.compile(r"pytorch_model_fsdp.*"),
        _DCP,
        "PyTorch's FSDP, saved by accelerate",
        "merge them first, with `accelerate merge-weights {folder} OUT`, and give OUT",
    ),
    Kind(
        _ANY,
        _DCP,
        "a distributed checkpoint of PyTorch",
        "merge them first, with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt`, "
        "and give OUT.pt",
    ),
    Kind(
        _ANY,
        re.compile(r"(?:\w*zero_)?(?:pp_rank_\d+_)?mp_rank_\d+_(?:model|optim)_states\.pt"),
        "DeepSpeed's ZeRO",
        "merge them first, with `python zero_to_fp32.py . OUT` in {above}, and give OUT",
    ),
)


def refusal(directory: Path, names: Iterable[str]) -> SourceError | None:
    """Return the error for a directory that holds such shards, `None` for others.

    Args:
        directory: the directory, an absolute path.
        names: the files in it.
    """
    present = list(names)
    for kind in KINDS:
        if kind.folder.fullmatch(directory.name) and (shard := next(filter(kind.file.fullmatch, present), None)):
            return SourceError(
                f"{quote(directory)} holds shards of {kind.what}, such as {quote(shard)}, "
                "which streamconv does not merge",
                kind.hint.format(folder=quote(directory), above=quote(directory.parent)),
            )
    return None
