"""What tests share, and no test: makers of checkpoints, oracles, and ways to run the program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
#: Files that MindSpore 2.10 wrote, described by samples.json.
FIXTURES = TESTS / "fixtures" / "mindspore"


@contextmanager
def found_in_the_tree() -> Iterator[None]:
    """In the block the tree is on the path, behind all that is installed: for the benchmarks, which are not."""
    before = list(sys.path)
    sys.path.append(str(ROOT))
    try:
        yield
    finally:
        sys.path[:] = before
