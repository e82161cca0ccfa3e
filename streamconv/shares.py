"""One conversion by N equal processes that know nothing of each other: each converts a share of the parts.

    begin    one process makes DEST.partial, and all share its journal
    convert  the parts of this share, each under a lease
    join     the last to end, or `streamconv finish`, puts the result together

All that they know of each other is on disk: so any scheduler will do, in any order, at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from msgspec.structs import replace

from .arguments import PlanOptions, as_path
from .conversion import JoinedError, Plan, begin_shared, join_shared
from .engine.progress import OnProgress, Progress, Tally
from .errors import DestinationError, StreamconvError, UsageError, storing
from .output import format_choice
from .output.journal import Journal, heading
from .output.lock import InUseError, JournalLock
from .output.paths import ResultPaths
from .parts import register, share
from .parts.cutting import Part
from .parts.share import Share
from .parts.work import PartWork
from .paths import PathLike
from .plans import plan
from .prepared import decide_budget
from .report import Report
from .storage import disk
from .storage.memory import peak_bytes
from .text import format_size, quote, setting

#: Seconds to wait for the process that makes the place where all of them write.
_PATIENCE = 60.0
_PAUSE = 0.2

_BY_ANOTHER = "another process is putting it together"


def convert_share(planned: Plan, mine: Share, progress: OnProgress | None = None) -> Report:
    """Convert one share of a plan; put the result together if all others are complete.

    Args:
        planned: the conversion; every process has to plan the same.
        mine: which share.
        progress: called a few times a second. An exception that it raises stops the work, which can be resumed.

    Raises:
        DestinationError: a part was given to another process, which has the same share; or all of it is.
        StreamconvError: as `Plan.run`.
    """
    started = time.monotonic()
    budget = decide_budget(planned.mapping, planned.layout, planned.budget.memory_limit, planned.workers)
    paths = planned.destination.paths
    lock = _shared_journal(paths, planned)
    if lock is None:
        tally = Tally(total=planned.mapping.nbytes, done=planned.mapping.nbytes, resumed=planned.mapping.nbytes)
        seconds = time.monotonic() - started
        return Report(prepared=planned, budget=budget, tally=tally, seconds=seconds, peak_bytes=peak_bytes())
    with lock:
        _check_same_wishes(planned, lock.heading.arguments or {})
        work = PartWork(planned, budget)
        tally = _converted(work, mine, paths, progress)
        missing = register.missing(paths.parts, mine.of) or share.holding(work.unfinished(), mine.of, len(work.parts))
        has_locks = lock.has_locks
    seconds = time.monotonic() - started
    report = Report(prepared=planned, budget=budget, tally=tally, seconds=seconds, peak_bytes=peak_bytes())
    if missing:
        return replace(report, waiting=f"{share.named(missing, mine.of)} not done; the last to end puts it together")
    if not (has_locks or register.take_join(paths.parts)):
        return replace(report, waiting=_BY_ANOTHER)
    try:
        return _joined(planned, report, progress)
    except BaseException:
        if not has_locks:
            register.leave_join(paths.parts)
        raise


def _check_same_wishes(planned: Plan, asked: Mapping[str, object]) -> None:
    """Refuse a process that asks for another end than the one that made the journal: one of them would not get it."""
    for name in ("verify", "overwrite"):
        if bool(asked.get(name)) != getattr(planned, name):
            given = "with" if asked.get(name) else "without"
            raise UsageError(
                f"the other parts of {quote(planned.destination.path)} are converted {given} {setting(name, True)}",
                "give all of them the same options",
            )


def _converted(work: PartWork, mine: Share, paths: ResultPaths, progress: OnProgress | None) -> Tally:
    """Convert all parts of a share, and note that they are."""
    parts = mine.parts(work.parts)
    tally = Tally(total=sum(map(work.nbytes, parts)))
    try:
        for part in parts:
            register.note(paths.parts, mine, has_ended=False)
            _convert(work, part, tally, progress)
        register.note(paths.parts, mine, has_ended=True)
    except StreamconvError as error:
        saved = f"at least {format_size(tally.done)} of the {format_size(tally.total)} of this part"
        error.add(f"{saved} are saved in {quote(paths.partial)}", "run the same part again to resume it")
        raise
    return tally


def _convert(work: PartWork, part: Part, tally: Tally, progress: OnProgress | None) -> None:
    before, resumed, total = tally.done, tally.resumed, tally.total

    def report(event: Progress) -> None:
        if progress:
            progress(replace(event, done=before + event.done, total=total, resumed=resumed + event.resumed))

    found = work.convert(part.number, report)
    tally.done += work.nbytes(part)
    tally.resumed += work.nbytes(part) - found.written
    tally.read += found.read


def _shared_journal(paths: ResultPaths, planned: Plan) -> JournalLock | None:
    """Hold the journal together with the others, once one of them made it; `None` where the result is complete."""
    until = time.monotonic() + _PATIENCE
    while True:
        with suppress(InUseError):
            if begin_shared(planned):
                return None
        lock = JournalLock(paths)
        try:
            with storing(paths.journal, "cannot open"), suppress(FileNotFoundError):
                lock.claim(shared=True)
                if lock.heading.arguments is not None:
                    return lock
        except InUseError:
            if time.monotonic() > until:
                lock.release()
                raise
        lock.release()
        time.sleep(_PAUSE)


def _joined(planned: Plan, report: Report, progress: OnProgress | None) -> Report:
    """Put the result together, and return the report of all of it; who wrote what is counted in `report`."""
    paths = planned.destination.paths
    joined, until = None, time.monotonic() + _PATIENCE
    while joined is None and disk.exists(paths.journal) and time.monotonic() < until:
        # Another may hold the journal, who is at work on it, or about to end and does not know of our parts.
        try:
            joined = join_shared(planned, progress)
        except InUseError:
            time.sleep(_PAUSE)
        except JoinedError:
            break
    if joined is None and disk.exists(paths.journal):
        return replace(report, waiting=_BY_ANOTHER)
    mine, its = report.tally, joined.tally if joined else Tally(total=planned.mapping.nbytes)
    tally = Tally(
        total=its.total,
        done=its.total,
        resumed=its.total - (mine.done - mine.resumed),
        read=mine.read + its.read,
        overflowed=its.overflowed,
    )
    seconds, peak = report.seconds + (joined.seconds if joined else 0), peak_bytes()
    return replace(joined or report, tally=tally, seconds=seconds, peak_bytes=peak, is_shared=True)


def finish(
    dest: PathLike,
    *,
    max_mem: str | int | None = None,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> Report:
    """Put a result together whose parts were converted by processes with `part`.

    Args:
        dest: the result, as it was given to them.
        max_mem: resident memory allowed, in bytes or as a size such as `"16G"`.
        workers: threads, as for `plan`.
        progress: called a few times a second.

    Raises:
        DestinationError: parts are not complete, or a process is still at work.
        UsageError: nothing was begun there, or not by such processes.
        StreamconvError: as `Plan.run`.
    """
    path = as_path(dest, "dest")
    asked = dict(_recorded(format_choice.destination(path).paths))
    source, _ = cast(str, asked.pop("source")), asked.pop("dest")
    planned = plan(source, path, **cast(PlanOptions, {**asked, "max_mem": max_mem, "workers": workers}))
    work = PartWork(planned, planned.budget)
    left = sum(work.nbytes(work.parts[number]) for number in work.unwritten())
    if left:
        raise DestinationError(
            f"{quote(path)} cannot be put together: {format_size(left)} of {format_size(planned.mapping.nbytes)} are "
            "not converted yet",
            f"run again the processes with {setting('part', 'I/N')} that did not end well; or convert the rest here: "
            f"repeat the conversion without {setting('part')}",
        )
    # What the parts say of being compared is gone where a process died that was putting them together.
    is_compared = not (planned.verify and work.unfinished())
    return replace(join_shared(planned, progress, is_compared=is_compared), is_shared=True)


def _recorded(paths: ResultPaths) -> Mapping[str, object]:
    """Return what `plan` was called with by the processes that share a journal."""
    path = quote(paths.path)
    with storing(paths.journal, "cannot open"):
        if not disk.exists(paths.journal):
            what = "is complete" if disk.exists(paths.path) else "does not exist"
            raise UsageError(f"nothing unfinished lies at {path}, which {what}", "check the path")
        descriptor = disk.open_file(paths.journal, os.O_RDONLY | disk.NO_FOLLOW)
        try:
            found = heading(Journal(paths.journal, descriptor).records()).arguments
        finally:
            disk.close_quietly(descriptor)
    if found is None:
        raise UsageError(
            f"{path} was begun by a single run, not by processes with {setting('part')}",
            "repeat that run, which resumes it",
        )
    return found
