"""What the files of the ranks hold, tensor by tensor: in numbers, for there are hundreds of thousands of slices."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from msgspec import Struct, field

from ..errors import SourceError, UnsupportedError
from ..formats import files
from ..formats.directory import FORMATS
from ..formats.header_room import HeaderRoom
from ..formats.rank_slices import file_rank
from ..formats.safetensors import Known
from ..tensors.dtypes import DType
from ..tensors.extents import SourceFile
from ..tensors.refs import TensorRef
from ..tensors.slices import COLUMNS
from ..text import quote
from .joining import Row, joined
from .rank_folders import RankFile


class Held(Struct):
    """What ranks hold under one name.

    Attributes:
        rank: the first of them.
        dtype, shape: of what it holds.
        table: rows of rank, number of the file, offset and length, rank by rank.
        others: other shapes and dtypes, with the first rank that has them.
    """

    rank: int
    dtype: DType
    shape: tuple[int, ...]
    table: array[int] = field(default_factory=lambda: array("q"))
    others: dict[tuple[tuple[int, ...], DType], int] = field(default_factory=dict)

    def by_rank(self) -> Iterator[tuple[int, list[Row]]]:
        """Yield the rows of each rank that holds it, in the order of the ranks."""
        columns = (self.table[number::COLUMNS] for number in range(COLUMNS))
        rows = zip(*columns, strict=True)
        yield from ((rank, list(mine)) for rank, mine in groupby(rows, key=itemgetter(0)))


_Place = tuple["array[int]", int, int]


def whole(name: str, held: Iterable[Held], files: Sequence[SourceFile]) -> TensorRef:
    """Return a tensor that every rank which has it holds whole; `held` are of one shape and dtype."""
    first, *others = held
    rows = [rows for _, rows in sorted(chain.from_iterable(one.by_rank() for one in (first, *others)))]
    return joined(name, first.dtype, first.shape, (1,) * len(first.shape), {0: rows}, files)


class Holdings(Struct):
    """What the files of the ranks hold.

    Attributes:
        format: of all files.
        files: the files; rows of tables have their numbers.
        ranks: whose file each is.
        tensors: name → pipeline stage → what its ranks hold, in the order of the files.
        ignored: why other things in the files are not read.
        warnings: what speaks against the content of files.
    """

    format: str = ""
    files: list[SourceFile] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    tensors: dict[str, dict[int, Held]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _last: tuple[Mapping[str, TensorRef], int, list[_Place]] | None = None

    def add(self, rank: int, stage: int, file: SourceFile, refs: Mapping[str, TensorRef]) -> None:
        """Take note of what a rank's file holds.

        Args:
            rank, stage: whose file it is.
            file: the file.
            refs: what it holds; the same object as for the file before where offsets are the same.
        """
        number = len(self.files)
        self.files.append(file)
        self.ranks.append(rank)
        if self._last is None or self._last[0] is not refs or self._last[1] != stage:
            self._last = refs, stage, [*self._tables(rank, stage, refs.values())]
        for table, offset, length in self._last[2]:
            table.extend((rank, number, offset, length))

    def _tables(self, rank: int, stage: int, refs: Iterable[TensorRef]) -> Iterator[_Place]:
        """Yield every extent with the table that its row belongs into."""
        for ref in refs:
            by_stage = self.tensors.setdefault(ref.name, {})
            held = by_stage.get(stage)
            if held is None:
                held = by_stage[stage] = Held(rank, ref.dtype, ref.shape)
            elif (ref.shape, ref.dtype) != (held.shape, held.dtype):
                held.others.setdefault((ref.shape, ref.dtype), rank)
            yield from ((held.table, extent.offset, extent.length) for extent in ref.extents)


def read(
    ranks: Sequence[RankFile], directory: Path, stage_of: Callable[[int], int], header_room: Callable[[], HeaderRoom]
) -> Holdings:
    """Read the headers of all files.

    Args:
        ranks: the files, in the order of their ranks.
        directory: where they are named from.
        stage_of: the pipeline stage of a rank.
        header_room: gives the room for the next header.

    Raises:
        SourceError: one is broken, or files are of several formats.
        BudgetError: a header is longer than `header_room` allows.
    """
    found = Holdings()
    first: dict[str, Path] = {}
    with closing(files.read_all([(path, FORMATS[path.suffix]) for _, path in ranks], header_room, Known())) as shards:
        for rank, path in ranks:
            with _named(rank, path):
                shard = next(shards)
            found.add(rank, stage_of(rank), shard.file, shard.tensors)
            first.setdefault(shard.format, path)
            folder = path.relative_to(directory).parent
            found.ignored.update((str(folder / key), why) for key, why in shard.ignored.items())
            found.warnings += shard.warnings
    _refuse_mixed(first)
    found.format = next(iter(first))
    return found


@contextmanager
def _named(rank: int, path: Path) -> Iterator[None]:
    """Name the rank in errors of its file, whose name may be that of every rank's."""
    try:
        yield
    except (SourceError, UnsupportedError) as error:
        if file_rank(path.name) is None:
            error.add(f"it is the file of rank {rank}: {quote(path)}")
        raise


def _refuse_mixed(first: Mapping[str, Path]) -> None:
    if len(first) > 1:
        mixed = ", ".join(f"{quote(path)} ({format_})" for format_, path in first.items())
        raise SourceError(
            f"the ranks hold files of several formats: {mixed}",
            "move those of one training to a directory of their own",
        )
