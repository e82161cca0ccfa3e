"""Blocks of files digested and compared: what a worker does of a verification. The digests come with the task."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ..checks.against_manifest import FileBlocks, read_digests
from ..output.paths import ResultPaths
from .kinds import IsStopped, OnWork, StoppedError

#: The kind of this job, for the driver.
KIND = "verify"


class BlocksJob:
    """Ranges of blocks of a result's files.

    A task has `ranges`, each a file's name, its size, the number of the first block and the digests of all of them. Its
    result is `differs`: the name and the number of the first block with another digest, or `None`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._paths = ResultPaths(Path(arguments["path"]), arguments["is_file"])

    def run(self, task: Mapping[str, Any], progress: OnWork, is_stopped: IsStopped) -> dict[str, Any]:
        """Read all ranges, up to the first block that differs."""
        done, ranges = 0, task["ranges"]
        files = [
            FileBlocks(self._paths.file(name), size, range(first, first + len(digests)))
            for name, size, first, digests in ranges
        ]
        with closing(read_digests(files)) as read:
            for at, number, length, digest in read:
                name, _, first, digests = ranges[at]
                if digest != digests[number - first]:
                    return {"differs": [name, number]}
                done += length
                progress(done, done, name)
                if is_stopped():
                    raise StoppedError
        return {"differs": None}
