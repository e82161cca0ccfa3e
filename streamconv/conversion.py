"""A plan, and how it is run: resume or begin → build → prove → put in place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from .engine import workers
from .engine.budget import Budget
from .engine.copies import check_copies
from .engine.open_files import check_unchanged
from .engine.progress import OnProgress, Tally
from .engine.same_bytes import check_same_bytes
from .errors import DestinationError, SourceChangedError, StreamconvError, VerificationError, storing
from .output import built_files, fingerprint, manifest
from .output.companion_writer import write_companions
from .output.links import make_links
from .output.recorder import Recorder
from .output.staging import Staging
from .output.trial import offers_links
from .output.writer import FileSink
from .parts import left
from .parts.cutting import Part
from .planning.outputs import Output
from .prepared import Prepared, decide_budget, paths_read
from .report import Report, describe, plan_values
from .storage import disk
from .storage.memory import peak_bytes
from .tensors.refs import OutputFile
from .text import format_size, in_python, quote, setting
from .version import VERSION

#: Errors after which nothing that was built is trusted.
_MAKES_WORTHLESS = (SourceChangedError, VerificationError)

Spread = Callable[[Sequence[Part], int, Callable[[], None]], int]
"""Has others convert parts, of a plan of which so many bytes are durable; returns the bytes of the source they read.

It calls what it is given last now and then: that says in the journal that this process is still alive.
"""


class JoinedError(DestinationError):
    """Another process put the parts together."""


_log = logging.getLogger("streamconv")


class Plan(Prepared, frozen=True):
    """A conversion planned to the last byte, and not started. `print` it, look at it, `run` it."""

    @property
    def outputs(self) -> Sequence[Output]:
        """The tensors to be written, in order: `name`, `dtype`, `view.shape`, `sources`."""
        return self.mapping.outputs

    @property
    def files(self) -> Sequence[OutputFile]:
        """The files that will hold tensors: `name`, `size`."""
        return self.layout.files

    @property
    def dropped(self) -> Mapping[str, str]:
        """Source tensor -> why it is not written."""
        return self.mapping.dropped

    def __str__(self) -> str:
        return in_python(describe(self))

    def to_json(self) -> dict[str, object]:
        """Return everything the plan says as plain values."""
        return plan_values(self)

    def check_destination(self) -> None:
        """Refuse a destination that `run` would refuse; what an interrupted run left there is looked at by `run` alone.

        Raises:
            DestinationError: it exists and may not be replaced, is the source, or holds it.
            UsageError: it has no parent directory.
            StorageError: the system cannot stat it.
        """
        journal = self.destination.paths.journal
        with storing(journal, "cannot stat"):
            has_begun = disk.exists(journal)
        if not has_begun:
            self.destination.check(self.catalog, self.overwrite, paths_read(self))

    def run(self, progress: OnProgress | None = None) -> Report:
        """Convert, resuming what an interrupted run of the same conversion made durable.

        Args:
            progress: called a few times a second. An exception that it raises stops the run, which can be resumed.

        Raises:
            StreamconvError: see its subclasses; nothing new stands under the final name.
        """
        return self._convert(progress)

    def _convert(
        self,
        progress: OnProgress | None,
        spread: Spread | None = None,
        *,
        is_compared: bool = False,
        is_joining: bool = False,
    ) -> Report:
        started = time.monotonic()
        # What the caller allocated since the plan was made counts too.
        budget = decide_budget(self.mapping, self.layout, self.budget.memory_limit, self.workers)
        _log.debug("reading: %s, writing: %s, budget: %s", self.reading, self.writing, budget)
        with Staging(self.destination.paths, self._fingerprint(), self.restart) as staging:
            if is_joining and not staging.is_shared():
                raise JoinedError(f"{quote(self.destination.path)} was put together by another process")
            if staging.is_finished() and not self.restart:
                staging.finish_cleanup()
                total = self.mapping.nbytes
                tally = Tally(total=total, done=total, resumed=total)
            else:
                tally = self._run(staging, budget, progress, spread, is_compared)
        seconds = time.monotonic() - started
        return Report(prepared=self, budget=budget, tally=tally, seconds=seconds, peak_bytes=peak_bytes())

    def _fingerprint(self) -> fingerprint.Fingerprint:
        return fingerprint.describe(self.settings, self.mapping, self.layout, self.catalog)

    def _run(
        self,
        staging: Staging,
        budget: Budget,
        progress: OnProgress | None,
        spread: Spread | None,
        is_compared: bool,
    ) -> Tally:
        """Check → build → prove → put in place."""
        names = [file.name for file in self.layout.files]
        self._check(staging, budget)
        if self.verify:
            check_copies(self.copied_refs, budget, self.reading.access, progress)
        journal = staging.begin(names)
        recorder = left.recorder(self, journal)
        resumed, read = recorder.durable_bytes, 0
        self._check_copies()
        _log.debug("resuming after %d of %d bytes", resumed, self.mapping.nbytes)
        try:
            if spread is not None:
                built_files.make_files(staging.paths, self.layout.files, journal)
                read = spread(left.parts_left(self, recorder), resumed, staging.hold)
                recorder = left.recorder(self, journal)
            tally, digests = self._build(recorder, budget, progress)
            tally.resumed, tally.read = resumed, tally.read + read
            if self.verify:
                self._prove(staging, budget, progress, is_compared or spread is not None)
            check_unchanged(self.catalog.files)
            # Hours may have passed: what came to lie at the destination since then is not ours to replace either.
            self.destination.check(self.catalog, self.overwrite, paths_read(self))
            staging.commit(self._manifest(digests, tally))
        except BaseException as error:
            safe = recorder.durable_bytes if spread is None else left.recorder(self, journal).durable_bytes
            staging.is_worth_keeping = safe > 0 and not isinstance(error, _MAKES_WORTHLESS)
            if isinstance(error, StreamconvError):
                error.add(self._what_is_left(staging, safe))
            raise
        return tally

    def _check(self, staging: Staging, budget: Budget) -> None:
        """Refuse what may not be written, and a source whose tensors are not what the plan takes them for."""
        staging.check_same()
        self.destination.check(self.catalog, self.overwrite, paths_read(self))
        self.destination.check_free_space(
            self.layout.total - built_files.allocated(self.destination.paths, self.layout.files)
        )
        for check in self.mapping.checks:
            check_same_bytes(check, budget, self.reading.access)

    def _share(self) -> bool:
        """Make the files, the journal, and the place for the journals of parts; return whether all is complete."""
        names, paths = [file.name for file in self.layout.files], self.destination.paths
        with Staging(paths, self._fingerprint()) as staging:
            if staging.is_finished():
                staging.finish_cleanup()
                return True
            if staging.is_shared():
                staging.check_same(f"to discard it, run the whole conversion with {setting('restart', True)}")
                return False
            self._check(staging, self.budget)
            journal = staging.begin(names)
            left.recorder(self, journal)
            built_files.make_files(staging.paths, self.layout.files, journal)
            journal.append([["shared", self.asked]])
            staging.is_worth_keeping = True
        return False

    def _check_copies(self) -> None:
        """Refuse a result that has no space where the file system has no links, so that files are copied."""
        paths, copies = self.destination.paths, self.layout.linked
        if not copies:
            return
        with storing(paths.path.parent):
            has_links = offers_links(paths)
        if not has_links:
            self.destination.check_free_space(
                self.layout.total + copies - built_files.allocated(self.destination.paths, self.layout.files)
            )

    def _manifest(self, digests: Mapping[str, Sequence[str]], tally: Tally) -> bytes:
        names = (*self.companions.texts, *self.companions.copies)
        return manifest.write(
            self.settings, self.mapping, self.layout, digests, tally.overflowed, names, version=VERSION
        )

    def _build(
        self, recorder: Recorder, budget: Budget, progress: OnProgress | None
    ) -> tuple[Tally, Mapping[str, list[str]]]:
        """All files, durable, with the digests of their blocks."""
        sink = FileSink(self.layout, self.destination.paths.built, recorder, self.writing.access)
        tally = Tally(
            total=self.mapping.nbytes,
            done=recorder.durable_bytes,
            resumed=recorder.durable_bytes,
            overflowed=dict(recorder.overflowed),
        )
        try:
            with recorder.recording(sink.sync, budget.workers):
                workers.run(self.mapping, sink, budget, self.reading.access, progress, record=recorder, tally=tally)
            digests = sink.finish()
        finally:
            sink.close()
        make_links(self.layout.files, self.destination.paths.built)
        if not self.destination.paths.is_file:
            texts = {**self.layout.texts, **self.companions.texts}
            write_companions(self.destination.paths.partial, texts, self.companions.copies, [*self.layout.in_folders])
        return tally, digests

    def _prove(self, staging: Staging, budget: Budget, progress: OnProgress | None, is_compared: bool) -> None:
        """Read what was built from the disk, not out of the page cache, and compare it with the source.

        Args:
            staging: where it is.
            budget: how memory is divided.
            progress: called now and then.
            is_compared: who wrote the parts compared them already.
        """
        from . import proving

        built_files.drop_cache(staging.paths, self.layout.files)
        try:
            if is_compared:
                proving.compare_frames(self, self.destination.paths.built)
            else:
                proving.compare(self, self.destination.paths.built, budget, proving.verifying(progress))
        except VerificationError as error:
            raise proving.not_kept(error) from None

    def _what_is_left(self, staging: Staging, safe: int) -> str:
        """A note for whoever reads why a run ended early."""
        if staging.is_in_place:
            return f"{quote(staging.paths.path)} is complete nevertheless; run the same conversion again to clean up"
        if not staging.is_worth_keeping:
            return "no partial output was kept"
        saved = f"{format_size(safe)} of {format_size(self.mapping.nbytes)} saved in {quote(staging.paths.partial)}"
        return f"{saved}; run the same conversion again to resume, or add {setting('restart', True)} to start over"


def run_spread(planned: Plan, spread: Spread, progress: OnProgress | None = None) -> Report:
    """Convert with the help of others: they convert the parts, and this process puts them together.

    Args:
        planned: the conversion.
        spread: has them do it.
        progress: called while the parts are put together.

    Raises:
        StreamconvError: as `Plan.run`.
    """
    return planned._convert(progress, spread)


def begin_shared(planned: Plan) -> bool:
    """Make the place where processes write that share the parts of a plan, unless another one did.

    Returns:
        Whether the result is complete and in place: nothing is left to be done.

    Raises:
        InUseError: another process is at it, or converts all of it.
        StreamconvError: as `Plan.run`.
    """
    return planned._share()


def join_shared(planned: Plan, progress: OnProgress | None = None, *, is_compared: bool = True) -> Report:
    """Put a result together whose parts are complete.

    Args:
        planned: the plan.
        progress: called now and then.
        is_compared: the parts are compared with the source, if that is asked for; else the result is.

    Raises:
        InUseError: another process is at it, or still converts a part.
        JoinedError: another process did it.
        StreamconvError: as `Plan.run`.
    """
    return planned._convert(progress, is_compared=is_compared, is_joining=True)
