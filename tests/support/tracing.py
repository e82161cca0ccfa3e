"""What a call allocates at most."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes allocated at a time while `call` runs; NumPy reports its arrays to tracemalloc.

    The least of three: what other threads of the tests allocate meanwhile is counted too.
    """
    call()
    return min(_traced(call) for _ in range(3))


def _traced(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
