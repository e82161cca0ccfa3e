"""Where every output byte goes: arithmetic over the plan, without touching a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct, field

from ..errors import UnsupportedError
from ..tensors.refs import OutputFile, TensorSpec, total_bytes
from ..text import counted, quote, setting
from . import ckpt, safetensors, shards, torch_writer

CKPT, MS_SAFETENSORS, HF_SAFETENSORS, PEFT, TORCH = "ckpt", "safetensors", "hf", "peft", "torch"

#: The one file of an adapter, as PEFT names it.
ADAPTER = "adapter_model.safetensors"


class FileLayout(Struct, frozen=True):
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
        """The bytes of all files, those of links not counted."""
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values()))

    @property
    def linked(self) -> int:
        """The bytes that files would have which are links to others."""
        return sum(file.size * len(file.links) for file in self.files)

    @property
    def names(self) -> Iterator[str]:
        """The names of all files."""
        yield from (name for file in self.files for name in (file.name, *file.links))
        yield from self.texts

    @property
    def in_folders(self) -> list[str]:
        """The names of the files that lie in folders of the destination."""
        return [name for name in self.names if "/" in name]


def lay_out(
    tensors: Sequence[TensorSpec],
    kind: str,
    name: str,
    max_shard_size: int,
    crc: bool,
    torch_root: str | None = None,
) -> FileLayout:
    """Lay tensors out in files.

    Args:
        tensors: what the files hold, in this order.
        kind: the format, as `FileLayout.format` has it.
        name: the file's name, for a format of one file.
        max_shard_size: bytes of tensor data in a shard at the most.
        crc: append MindSpore's CRC to a `.ckpt`.
        torch_root: the key under which a torch file holds the tensors; `None` for the top level.

    Raises:
        UnsupportedError: the format cannot hold a tensor.
    """
    if kind == CKPT:
        return FileLayout(kind, (ckpt.lay_out(name, tensors, crc),))
    if kind == TORCH:
        return FileLayout(kind, (torch_writer.lay_out(name, tensors, torch_root),))
    if kind == PEFT:
        return FileLayout(kind, (safetensors.lay_out(ADAPTER, tensors, {"format": "pt"}),))
    groups = shards.split(tensors, max_shard_size)
    if kind == HF_SAFETENSORS:
        return _sharded(
            kind, groups, shards.hf_shard_name, {"format": "pt"}, shards.HF_INDEX if len(groups) > 1 else None
        )
    check_mindspore(tensors)
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
    total = sum(map(total_bytes, groups))
    return FileLayout(kind, files, {index: shards.index_bytes(total, weight_map)} if index else {})


def check_mindspore(tensors: Sequence[TensorSpec]) -> None:
    """Refuse dtypes that MindSpore does not know: it would refuse the whole file."""
    refused = [tensor for tensor in tensors if tensor.dtype.mindspore is None]
    if refused:
        first = refused[0]
        raise UnsupportedError(
            f"{counted(len(refused), 'tensor')} of a dtype that MindSpore cannot load, first {quote(first.name)} "
            f"({first.dtype})",
            f"keep all tensors as they are, in a directory, with {setting('model', 'raw')} {setting('format', 'hf')}",
        )
