"""Convert parts of a plan on this host, one after the other; others convert the rest, and one puts them together.

open      the journal of the run: is it the same conversion, of the same source?
convert   take the part's lease → what is left of it? → build → compare → done
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from ..checks.against_source import CompareSink, sharing_memory
from ..engine import workers
from ..engine.budget import Budget
from ..engine.open_files import check_unchanged
from ..engine.progress import OnProgress, Tally
from ..engine.tasks import Unrecorded
from ..errors import DestinationError, SourceChangedError, StorageError, VerificationError, storing
from ..output import built_files, fingerprint
from ..output.journal import DoneBoxes, Journal, heading
from ..output.paths import ResultPaths
from ..output.recorder import Recorder
from ..output.writer import FileSink
from ..prepared import Prepared
from ..proving import io_of, not_kept, verifying
from ..storage import disk
from ..tensors.grids import Box, box_shape
from ..tensors.refs import OutputFile
from ..text import first_few, quote, setting
from ..units import BLOCK
from . import leases
from .cutting import Part, cut_parts
from .leases import Lease
from .scopes import PartScope, Scopes


class PartDone(NamedTuple):
    """What converting a part took: bytes of output written now, and bytes of the source read."""

    written: int
    read: int


class PartWork:
    """Converts parts of a plan.

    Args:
        planned: the plan.
        budget: how memory is divided here.

    Attributes:
        parts: all parts of the plan.

    Raises:
        DestinationError: the run is of another conversion.
        SourceChangedError: the source is another one here than where the run was begun.
        StorageError: the journal cannot be read, or files are gone that it speaks of.
    """

    def __init__(self, planned: Prepared, budget: Budget) -> None:
        self._planned, self._budget = planned, budget
        self._paths, self._files = planned.destination.paths, planned.layout.files
        self._numbers = {file.name: number for number, file in enumerate(self._files)}
        self._scopes = Scopes(planned.mapping, planned.layout)
        self._done = DoneBoxes(planned.mapping.outputs, self._files)
        self.parts = cut_parts(planned.mapping, planned.layout)
        with storing(self._paths.journal, "cannot open"):
            descriptor = disk.open_file(self._paths.journal, os.O_RDONLY | disk.NO_FOLLOW)
        try:
            with storing(self._paths.journal, "cannot read"):
                journal = Journal(self._paths.journal, descriptor)
                self._check_same(heading(journal.records()).conversion)
                self._load(journal.records())
        finally:
            disk.close_quietly(descriptor)

    def _check_same(self, begun: fingerprint.Fingerprint) -> None:
        planned = self._planned
        here = fingerprint.describe(planned.settings, planned.mapping, planned.layout, planned.catalog)
        if not (different := "; ".join(fingerprint.differences(begun, here))):
            return
        if begun.get("plan") == here["plan"]:
            raise SourceChangedError(
                f"the source is not the same here as where the conversion was begun: {different}",
                "every process has to see the same files, unchanged; if the source was replaced, run the whole "
                f"conversion once with {setting('restart', True)}",
            )
        raise DestinationError(
            f"{quote(self._paths.partial)} holds a different unfinished conversion: {different}",
            f"to resume it, repeat its source and options; to discard it, run it once with {setting('restart', True)}",
        )

    def _load(self, records: Iterable[object]) -> None:
        """Take over what is durable.

        Raises:
            StorageError: a file is gone.
        """
        if lost := self._done.load(records, lambda file: built_files.is_there(self._paths, file)):
            raise self._lost([self._files[number] for number in lost])

    def _check_files(self, scope: PartScope) -> None:
        """Refuse to work on files that are gone: who makes them again has to note that what was in them is lost."""
        mine = [file for file in self._files if scope.blocks(file.name)]
        if lost := [file for file in mine if not built_files.is_there(self._paths, file)]:
            raise self._lost(lost)

    def _lost(self, files: Sequence[OutputFile]) -> StorageError:
        names = first_few([file.name for file in files], show=quote)
        return StorageError(
            f"{quote(self._paths.partial)} no longer holds all that was written to it: {names} is gone, or has "
            "another size",
            "run the whole conversion once, which writes again what is lost",
        )

    def nbytes(self, part: Part) -> int:
        """Return the bytes of tensors in a part."""
        return self._scopes.of(part).nbytes

    def unfinished(self) -> list[int]:
        """Return the numbers of the parts that are not complete, by all that is on record now.

        Raises:
            StorageError: the journals cannot be read.
        """
        every = self._not_done(self._planned.verify)
        return [part.number for part in every if self._planned.verify or self._has_left(part)]

    def unwritten(self) -> list[int]:
        """Return the numbers of the parts that are not complete, compared with the source or not.

        Raises:
            StorageError: the journals cannot be read.
        """
        return [part.number for part in self._not_done(False) if self._has_left(part)]

    def _not_done(self, compared: bool) -> list[Part]:
        """Return the parts of which no lease says that they are."""
        return [part for part in self.parts if not leases.is_done(self._paths.parts, part.number, compared)]

    def _has_left(self, part: Part) -> bool:
        """Return whether the journal of the run leaves something of a part to be written."""
        return any(self._done.left(n, box) for n, box in self._scopes.of(part).boxes())

    def convert(self, number: int, progress: OnProgress | None = None) -> PartDone:
        """Convert a part, from where earlier leases of it ended.

        Args:
            number: which part.
            progress: called now and then. An exception that it raises stops the work, which can be resumed.

        Raises:
            DestinationError: the part was given to another process in the meantime.
            StreamconvError: as `Plan.run`.
        """
        planned = self._planned
        if leases.is_done(self._paths.parts, number, planned.verify):
            return PartDone(0, 0)
        with leases.taken(self._paths.parts, number) as lease:
            self._load(lease.records)
            scope = self._scopes.of(self.parts[number])
            self._check_files(scope)
            done = self._build(lease, scope, progress)
            if planned.verify:
                self._prove(number, scope, progress)
            check_unchanged(planned.catalog.files)
            lease.journal.append([["done", planned.verify]])
        return done

    def _build(self, lease: Lease, scope: PartScope, progress: OnProgress | None) -> PartDone:
        planned = self._planned
        recorder = Recorder(lease.journal, self._done, self._numbers, scope)
        left = sum(_nbytes(planned, n, part) for n, box in scope.boxes() for part in self._done.left(n, box))
        tally = Tally(total=scope.nbytes, done=scope.nbytes - left, resumed=scope.nbytes - left)
        sink = FileSink(planned.layout, self._paths.built, recorder, planned.writing.access)
        try:
            with recorder.recording(sink.sync, self._budget.workers):
                workers.run(
                    planned.mapping, sink, self._budget, planned.reading.access, progress, record=recorder, tally=tally
                )
        finally:
            sink.close()
        return PartDone(left, tally.read)

    @cached_property
    def _comparison(self) -> PartComparison:
        """Made only where parts are compared: it has places of tensors of its own."""
        return PartComparison(self._planned, self._paths.built, self._budget)

    def _prove(self, number: int, scope: PartScope, progress: OnProgress | None) -> None:
        """Read the part from the disk, not out of the page cache, and compare it with the source."""
        for file in self._files:
            if blocks := scope.blocks(file.name):
                built_files.drop_range(self._paths, file, blocks.start * BLOCK, len(blocks) * BLOCK)
        try:
            self._comparison.compare(number, verifying(progress))
        except VerificationError as error:
            raise not_kept(error) from None


class PartComparison:
    """Compares parts of a result with what the source gives.

    Args:
        planned: the plan.
        paths: where the result is.
        budget: how memory is divided here.
    """

    def __init__(self, planned: Prepared, paths: ResultPaths, budget: Budget) -> None:
        self._planned, self._paths = planned, paths
        self._budget, self._way = sharing_memory(budget, io_of(planned))
        self._scopes = Scopes(planned.mapping, planned.layout)
        self._parts = cut_parts(planned.mapping, planned.layout)

    def compare(self, number: int, progress: OnProgress | None = None) -> None:
        """Convert a part again in memory, and compare every byte of it, but for headers and checksums.

        Raises:
            VerificationError: a byte differs.
            SourceError: a file cannot be read.
        """
        planned, scope = self._planned, self._scopes.of(self._parts[number])
        sink = CompareSink(planned.layout, self._paths, self._way, scope.blocks)
        try:
            workers.run(
                *(planned.mapping, sink, self._budget, planned.reading.access, progress),
                record=Within(scope),
                tally=Tally(total=scope.nbytes),
            )
        finally:
            sink.close()


class Within(Unrecorded):
    """All that a part has, nothing of it done (`engine.tasks.Record`)."""

    is_empty = False

    def __init__(self, scope: PartScope) -> None:
        self._scope = scope

    def outputs(self, count: int) -> Iterable[int]:
        return self._scope.outputs

    def left(self, number: int, box: Box) -> Iterable[Box]:
        return self._scope.clip(number, box)


def _nbytes(planned: Prepared, number: int, box: Box) -> int:
    return math.prod(box_shape(box)) * planned.mapping.outputs[number].dtype.itemsize
