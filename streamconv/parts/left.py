"""What is durable of a plan, by the journal of the run and those of its parts, and which parts have something left."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import storing
from ..output import built_files
from ..output.journal import DoneBoxes, Journal
from ..output.recorder import Recorder
from ..prepared import Prepared
from . import leases
from .cutting import Part, cut_parts
from .scopes import Scopes


def recorder(planned: Prepared, journal: Journal) -> Recorder:
    """Return what is durable, and the journal to continue; what others recorded on their own is in it then.

    Raises:
        StorageError: the journals cannot be read or written.
    """
    paths, files = planned.destination.paths, planned.layout.files
    leases.absorb(paths.parts, journal)
    done = DoneBoxes(planned.mapping.outputs, files)
    with storing(paths.journal, "cannot read"):
        lost = done.load(journal.records(), lambda file: built_files.is_there(paths, file))
    if lost:
        journal.append([["lost", number] for number in lost])
    return Recorder(journal, done, {file.name: number for number, file in enumerate(files)})


def parts_left(planned: Prepared, durable: Recorder) -> Sequence[Part]:
    """Return the parts that have something left to be written, or all where they are compared too."""
    parts = cut_parts(planned.mapping, planned.layout)
    if planned.verify or not durable.durable_bytes:
        return parts
    scopes = Scopes(planned.mapping, planned.layout)
    return [part for part in parts if any(durable.left(n, box) for n, box in scopes.of(part).boxes())]
