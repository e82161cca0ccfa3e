"""Where every output byte goes. Pure arithmetic over the plan; no file is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UnsupportedError
from ..tensors.refs import OutputFile, TensorSpec
from ..text import quote
from . import ckpt, safetensors, shards
from . import torch_writer as torch_layout

CKPT, MS_SAFETENSORS, HF_SAFETENSORS, PEFT, TORCH = "ckpt", "safetensors", "hf", "peft", "torch"

#: The one file of an adapter, as PEFT names it.
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class FileLayout:
    """All files of the destination.

    Attributes:
        format: `ckpt`, `safetensors` (MindSpore's), `hf`, `peft` (an adapter) or `torch`.
        files: the files that hold tensors.
        texts: file name → content of the small files written whole (indices, config).
    """

    format: str
    files: tuple[OutputFile, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values()))


def lay_out(
    tensors: Sequence[TensorSpec],
    kind: str,
    name: str,
    max_shard_size: int,
    crc: bool,
    torch_root: str | None = None,
) -> FileLayout:
    """Lay tensors out in files of format `kind`; `name` is the file's name where that is one file.

    `torch_root` is the key under which a torch file holds them, `None` for no such nesting.

    Raises:
        UnsupportedError: the format cannot hold a tensor.
    """
    if kind == CKPT:
        return FileLayout(kind, (ckpt.lay_out(name, tensors, crc),))
    if kind == TORCH:
        return FileLayout(kind, (torch_layout.lay_out(name, tensors, torch_root),))
    if kind == PEFT:
        return FileLayout(kind, (safetensors.lay_out(ADAPTER, tensors, {"format": "pt"}),))
    groups = shards.split(tensors, max_shard_size)
    if kind == HF_SAFETENSORS:
        return _sharded(
            kind, groups, shards.hf_shard_name, {"format": "pt"}, shards.HF_INDEX if len(groups) > 1 else None
        )
    _check_mindspore(tensors)
    return _sharded(kind, groups, shards.ms_shard_name, {"format": "ms"}, shards.MS_MAP)


def _sharded(
    kind: str,
    groups: Sequence[Sequence[TensorSpec]],
    shard_name: Callable[[int, int], str],
    metadata: Mapping[str, str],
    index: str | None,
) -> FileLayout:
    files = tuple(
        safetensors.lay_out(shard_name(number, len(groups)), group, metadata) for number, group in enumerate(groups, 1)
    )
    weight_map = {name: file.name for file in files for name in file.extents}
    total = sum(tensor.nbytes for group in groups for tensor in group)
    return FileLayout(kind, files, {index: shards.index_bytes(total, weight_map)} if index else {})


def _check_mindspore(tensors: Sequence[TensorSpec]) -> None:
    """MindSpore refuses a whole safetensors file for one dtype that it does not know."""
    refused = [tensor for tensor in tensors if tensor.dtype.mindspore is None]
    if refused:
        first = refused[0]
        raise UnsupportedError(
            f"{len(refused)} tensors have a dtype that MindSpore cannot load, the first is {quote(first.name)} "
            f"({first.dtype}): use --format hf to keep them"
        )
