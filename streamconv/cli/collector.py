"""Python's garbage collector, which finds nothing in a plan: a million objects that all stay, none in a cycle."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# To look again and again for objects that do not stay takes a fifth of a plan's time.
_COLLECTED_AFTER = 100_000, 20, 20


def let_be() -> None:
    """Have it look seldom; only for a process that is ours."""
    gc.set_threshold(*_COLLECTED_AFTER)


@contextmanager
def paused() -> Iterator[None]:
    """Have it look at nothing that is made in the block, neither then nor later, in a process that is ours."""
    # Of the three, later Pythons have no use for the last.
    if gc.get_threshold()[0] != _COLLECTED_AFTER[0]:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
