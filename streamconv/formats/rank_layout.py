"""The files of a checkpoint that is cut for ranks: one a rank, named as MindSpore and MindFormers look for them.

    rank_0/checkpoint_0.ckpt  or  .safetensors     what rank 0 holds
    strategy/ckpt_strategy_rank_0.ckpt             how the stage that begins with rank 0 cuts its tensors

Source: `mindspore.transform_checkpoints`, MindFormers' `load_checkpoint` and `src_strategy_path_or_dir` (measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..tensors.refs import OutputFile, TensorSpec
from . import ckpt, safetensors
from .layout import CKPT, FileLayout, check_mindspore

#: Where a result says how it is cut.
STRATEGY = "strategy"


class Content(Struct, frozen=True):
    """What one or several ranks hold.

    Attributes:
        ranks: the ranks.
        keys: what the tensors are called in the plan.
        tensors: the tensors, by the names that they have in the file.
    """

    ranks: Sequence[int]
    keys: Sequence[str]
    tensors: Sequence[TensorSpec]


def rank_file(rank: int, kind: str) -> str:
    """Return where the file of a rank lies.

    >>> rank_file(3, "ckpt")
    'rank_3/checkpoint_3.ckpt'
    """
    return f"rank_{rank}/checkpoint_{rank}.{kind}"


def strategy_file(first_rank: int) -> str:
    """Return where the strategy of a stage lies."""
    return f"{STRATEGY}/ckpt_strategy_rank_{first_rank}.ckpt"


def lay_out_ranks(
    contents: Iterable[Content], kind: str, crc: bool, links: bool, texts: Mapping[str, bytes]
) -> FileLayout:
    """Lay tensors out in one file a rank.

    Args:
        contents: what the ranks hold; every rank is in one of them.
        kind: `ckpt`, or `safetensors`.
        crc: append MindSpore's CRC to a `.ckpt`.
        links: ranks that hold the same have links to one file, instead of a file each.
        texts: the small files.

    Raises:
        UnsupportedError: the format cannot hold a tensor.
    """
    files: dict[int, OutputFile] = {}
    for content in contents:
        first, *others = content.ranks
        file = _file(content, rank_file(first, kind), kind, crc)
        names = [rank_file(rank, kind) for rank in others]
        files[first] = replace(file, links=tuple(names)) if links else file
        files |= {} if links else {rank: replace(file, name=name) for rank, name in zip(others, names, strict=True)}
    return FileLayout(kind, tuple(files[rank] for rank in sorted(files)), texts)


def _file(content: Content, name: str, kind: str, crc: bool) -> OutputFile:
    if kind == CKPT:
        file = ckpt.lay_out(name, content.tensors, crc)
    else:
        check_mindspore(content.tensors)
        file = safetensors.lay_out(name, content.tensors, {"format": "ms"})
    names = dict(zip(content.keys, (tensor.name for tensor in content.tensors), strict=True))
    keys = {name: key for key, name in names.items()}
    return replace(file, extents={keys[name]: extents for name, extents in file.extents.items()}, names=names)
