"""The tensors of an iteration that MindFormers 2.x saved, from the slices that metadata.json names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

from msgspec import Struct, field

from ..errors import SourceError
from ..formats import files
from ..formats.header_room import HeaderRoom
from ..formats.headers import DOWNLOAD_AGAIN
from ..formats.rank_slices import is_optimizer
from ..formats.safetensors import Known
from ..tensors.extents import SourceFile
from ..tensors.refs import TensorRef
from ..text import quote
from . import metadata
from .holdings import Held, whole
from .iterations import METADATA, Iteration
from .joining import Row, joined
from .metadata import ShardedTensor


class OfIteration(Struct):
    """The tensors of an iteration, and what stands against them.

    Attributes:
        tensors: by name, in the order of the metadata.
        files: those that were read.
        findings: slices that are not as the metadata says.
        lost: tensor → in which files its slices should be that are not there.
        unlisted: names of tensors in files that the metadata does not list.
        absent: files that the metadata names and that are not there.
        optimizer: how many tensors belong to the optimizer, and are not read.
        warnings: what speaks against the content of files.
    """

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    optimizer: int = 0
    warnings: list[str] = field(default_factory=list)


def read(iteration: Iteration, header_room: Callable[[], HeaderRoom]) -> OfIteration:
    """Read metadata.json, and the headers of all files that it names.

    Raises:
        SourceError: one is broken, or the metadata contradicts itself.
        BudgetError: one is longer than `header_room` allows.
        UnsupportedError: a dtype that streamconv does not know, or interleaved slices.
    """
    try:
        stated = metadata.read(iteration.directory / METADATA, header_room())
    except SourceError as error:
        error.add("", DOWNLOAD_AGAIN)
        raise
    wanted = {name: tensor for name, tensor in stated.items() if not all(map(is_optimizer, _file_names(tensor)))}
    found = OfIteration(optimizer=len(stated) - len(wanted))
    work = _Work(found, wanted)
    named = sorted({name for tensor in wanted.values() for name in _file_names(tensor)})
    found.absent += [name for name in named if name not in iteration.names]
    there = [name for name in named if name in iteration.names]
    paths = [(iteration.directory / name, "safetensors") for name in there]
    with closing(files.read_all(paths, header_room, Known())) as shards:
        for file_name, shard in zip(there, shards, strict=True):
            found.warnings += shard.warnings
            work.add(file_name, shard.file, shard.tensors.values())
    work.finish()
    return found


def _file_names(tensor: ShardedTensor) -> set[str]:
    return {holder.file_name for holders in tensor.holders for holder in holders}


class _Work(Struct):
    found: OfIteration
    tensors: Mapping[str, ShardedTensor]
    rows: dict[str, dict[int, list[list[Row]]]] = field(default_factory=dict)
    others: dict[str, Held] = field(default_factory=dict)
    numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            for number, holders in enumerate(tensor.holders):
                for file_name, rank in holders:
                    self.ranks[file_name] = rank
                    if self.numbers.setdefault(file_name, {}).setdefault(name, number) != number:
                        self.found.findings.append(
                            f"{quote(name)}: two of its slices are said to be in {quote(file_name)}, "
                            f"the file of rank {rank}"
                        )

    def add(self, file_name: str, file: SourceFile, refs: Iterable[TensorRef]) -> None:
        """Take note of the slices in a file; its name stands in the metadata."""
        rank, numbers = self.ranks[file_name], self.numbers.pop(file_name)
        position = len(self.found.files)
        self.found.files.append(file)
        for ref in refs:
            rows = [(rank, position, extent.offset, extent.length) for extent in ref.extents]
            number = numbers.pop(ref.name, None)
            if number is None:
                self._add_unlisted(ref, rank, rows)
            elif self._fits(ref, file_name, rank):
                self.rows.setdefault(ref.name, {}).setdefault(number, []).append(rows)
        self.found.findings += [
            f"{quote(name)}: slice {number} is said to be in {quote(file_name)}, the file of rank {rank}, "
            "and is not there"
            for name, number in numbers.items()
        ]

    def _fits(self, ref: TensorRef, file_name: str, rank: int) -> bool:
        stated = self.tensors[ref.name]
        if (ref.shape, ref.dtype) == (stated.slice_shape, stated.dtype):
            return True
        self.found.findings.append(
            f"{quote(ref.name)} is {list(ref.shape)} {ref.dtype} in {quote(file_name)}, the file of rank {rank}, "
            f"and {list(stated.slice_shape)} {stated.dtype} by {METADATA}"
        )
        return False

    def _add_unlisted(self, ref: TensorRef, rank: int, rows: Iterable[Row]) -> None:
        held = self.others.setdefault(ref.name, Held(rank, ref.dtype, ref.shape))
        if (held.shape, held.dtype) != (ref.shape, ref.dtype) or ref.name in self.tensors:
            self.found.findings.append(
                f"{quote(ref.name)} is in the file of rank {rank}, {list(ref.shape)} {ref.dtype}, "
                f"and {METADATA} does not say so"
            )
        for row in rows:
            held.table.extend(row)

    def finish(self) -> None:
        """Put all tensors together."""
        for name, tensor in self.tensors.items():
            copies = self.rows.pop(name, {})
            missing = [number for number in range(len(tensor.holders)) if number not in copies]
            if missing:
                self.found.lost[name] = [tensor.holders[number][0].file_name for number in missing]
            else:
                self.found.tensors[name] = joined(
                    name, tensor.dtype, tensor.slice_shape, tensor.divisions, copies, self.found.files
                )
        for name, held in self.others.items():
            self.found.tensors[name] = whole(name, [held], self.found.files)
            self.found.unlisted.append(name)
