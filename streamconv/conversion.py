"""A conversion that is planned, and how it is run: resume or begin → build → prove → put in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from .checks import against_manifest as verify
from .checks import sample as sampling
from .checks.against_source import CompareSink, chosen_boxes
from .configs import model_config as configs
from .configs import peft as adapters
from .engine import budget as memory
from .engine import workers as engine
from .engine.progress import OnProgress, Progress, Tally
from .engine.reader import check_unchanged
from .engine.same_bytes import check_same_bytes
from .errors import SourceChangedError, StreamconvError, VerificationError, reading, storing
from .output import fingerprint, manifest
from .output.journal import DoneBoxes
from .output.recorder import Recorder
from .output.staging import Partial
from .output.writer import FileSink
from .prepared import Prepared
from .report import Report, describe, plan_values
from .rules.statements import TIED, Direction
from .storage import access, disk
from .storage.access import Access
from .text import format_size, quote

#: Errors after which nothing that was built is trusted.
_MAKES_WORTHLESS = (SourceChangedError, VerificationError)

_NAME = "streamconv"


class Conversion(Prepared):
    """A conversion that is planned to the last byte, and not begun. `print` it, look at it, `run` it."""

    def __str__(self) -> str:
        return "\n".join(describe(self))

    def to_json(self) -> dict[str, object]:
        """Everything the plan says, as plain values."""
        return plan_values(self)

    def check(self) -> None:
        """What can be wrong although the plan is made.

        Raises:
            BudgetError: the memory budget is too small.
            UsageError: nothing tells how an adapter is scaled.
        """
        self.budget  # noqa: B018 - raises
        if self.plan.is_adapter and self.plan.direction is Direction.REVERSE:
            self._adapter_config()

    def run(self, on_progress: OnProgress | None = None) -> Report:
        """Convert.

        What an earlier run of the same conversion made durable is not done again.

        Raises:
            StreamconvError: see its subclasses; nothing new is left under the final name.
        """
        started = time.monotonic()
        budget = self.budget
        conversion = fingerprint.describe(self.plan, self.layout, self.catalog, self.max_shard_size, version(_NAME))
        with Partial(self.destination.path, self.destination.single, conversion, self.restart) as partial:
            if partial.is_finished() and not self.restart:
                partial.finish_cleanup()
                tally = Tally(self.plan.nbytes, self.plan.nbytes, self.plan.nbytes)
            else:
                tally = self._run(partial, budget, on_progress)
        return Report(self, budget, tally, time.monotonic() - started, memory.peak_bytes())

    def _run(self, partial: Partial, budget: memory.Budget, on_progress: OnProgress | None) -> Tally:
        """Check → build → prove → put in place."""
        partial.check_same()
        self.destination.check(self.catalog, self.overwrite)
        names = [file.name for file in self.layout.files]
        self.destination.check_room(self.layout.total - partial.allocated(names))
        for check in self.plan.checks:
            check_same_bytes(check, budget, self._access)
        recorder = self._recorder(partial, names)
        try:
            tally, digests = self._build(partial.place, recorder, budget, on_progress)
            if self.verify:
                self._prove(partial, budget, on_progress)
            check_unchanged(self.catalog.files)
            # Hours may have passed: what came to lie at the destination meanwhile is not ours to replace either.
            self.destination.check(self.catalog, self.overwrite)
            record = manifest.write(
                self.plan, self.layout, self.max_shard_size, digests, tally.overflowed, version(_NAME)
            )
            partial.commit(record)
        except BaseException as error:
            partial.is_worth_keeping = recorder.durable_bytes > 0 and not isinstance(error, _MAKES_WORTHLESS)
            if isinstance(error, StreamconvError):
                error.add(self._what_is_left(partial, recorder.durable_bytes))
            raise
        return tally

    def _prove(self, partial: Partial, budget: memory.Budget, on_progress: OnProgress | None) -> None:
        """Read what was built from the disk, not out of the page cache, and compare it with the source."""

        def verifying(progress: Progress) -> None:
            if on_progress:
                on_progress(replace(progress, file=f"verifying {progress.file}"))

        partial.forget([file.name for file in self.layout.files])
        try:
            self._compare(partial.place, budget, verifying)
        except VerificationError as error:
            error.add("the storage did not keep what was written to it: check the device, and convert again")
            raise

    def _recorder(self, partial: Partial, names: list[str]) -> Recorder:
        """What earlier runs left, and the journal to go on with."""
        journal = partial.begin(names)
        ledger = DoneBoxes(self.plan.outputs, self.layout.files)
        with storing(partial.journal_path, "cannot read"):
            ledger.load(journal.records(), lambda file: partial.has_file(file.name, file.size))
        return Recorder(journal, ledger, {name: number for number, name in enumerate(names)})

    def _build(
        self,
        place: Path,
        recorder: Recorder,
        budget: memory.Budget,
        on_progress: OnProgress | None,
    ) -> tuple[Tally, Mapping[str, list[str]]]:
        """All files, durable, with the digests of their blocks."""
        direct = access.for_writing(self.io, place.parent).access is Access.DIRECT
        sink = FileSink(self.layout, place, self.destination.single, recorder, direct)
        tally = Tally(
            self.plan.nbytes, recorder.durable_bytes, recorder.durable_bytes, overflowed=dict(recorder.overflowed)
        )
        try:
            with recorder.recording(sink.sync):
                engine.run(self.plan, sink, budget, self._access, on_progress, record=recorder, tally=tally)
            digests = sink.finish()
        finally:
            sink.close()
        if not self.destination.single:
            self._write_companions(place)
        return tally, digests

    @cached_property
    def _access(self) -> Access:
        """How windows come from the source: found out once, for that looks into its files."""
        return access.for_reading(self.io, self.catalog.files).access

    def _what_is_left(self, partial: Partial, safe: int) -> str:
        if partial.is_in_place:
            return f"{quote(partial.path)} is complete all the same: give the command again, and the rest is tidied up"
        if not partial.is_worth_keeping:
            return "nothing is left of it"
        return (
            f"{format_size(safe)} of {format_size(self.plan.nbytes)} are safe in {quote(partial.place)}: "
            "the same command goes on from there, and with --restart it begins anew"
        )

    def _write_companions(self, place: Path) -> None:
        """Indices, the mended config, tokenizer and generation files."""
        with storing(place, "cannot write into"):
            for name, data in {**self.layout.texts, **self._configs()}.items():
                disk.write_synced(place / name, data)
            for path in configs.companions(self.config, self.catalog.directory):
                disk.copy_synced(path, place / path.name)

    def _configs(self) -> Mapping[str, bytes]:
        """The config of what is written: a model's, or an adapter's."""
        if not self.plan.is_adapter:
            return {configs.CONFIG: self._mended_config()} if self.config.is_copied else {}
        if self.plan.direction is Direction.REVERSE:
            return {adapters.CONFIG: self._adapter_config()}
        beside = self.catalog.directory / adapters.CONFIG
        with reading(beside):
            return {adapters.CONFIG: disk.read_file(beside, configs.LIMIT)} if disk.is_file(beside) else {}

    def _adapter_config(self) -> bytes:
        alpha = self.plan.options.get(adapters.ALPHA)
        return adapters.peft_config(
            [output.spec for output in self.plan.outputs], self.config, self.catalog.directory, alpha
        )

    def _mended_config(self) -> bytes:
        settled = {**self.family.settled(self.plan.options), **({TIED: False} if self.plan.untied else {})}
        return configs.updated(self.config, self.plan.held_dtype, bool(self.plan.dequantised), settled)

    def compare(self, on_progress: OnProgress | None = None, sample: sampling.Sample | None = None) -> verify.Verified:
        """Convert again in memory, all or a sample, and compare every byte with the destination.

        Raises:
            VerificationError: a byte differs.
        """
        return self._compare(self.destination.path, self.budget, on_progress, sample)

    def _compare(
        self,
        path: Path,
        budget: memory.Budget,
        on_progress: OnProgress | None,
        sample: sampling.Sample | None = None,
    ) -> verify.Verified:
        sink = CompareSink(self.layout, path)
        try:
            chosen = chosen_boxes(self.layout, sample) if sample else None
            tally = engine.run(self.plan, sink, budget, self._access, on_progress, chosen=chosen)
            if sample is None:
                sink.finish()
        finally:
            sink.close()
        files = len(self.layout.files) + len(self.layout.texts)
        return verify.Verified(files, len(self.plan.outputs), tally.done, self.plan.nbytes)
