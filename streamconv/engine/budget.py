"""The budget: the memory limit, and what each worker may hold of it.

Resident memory is what counts (`VmHWM`): the interpreter, the plan, and for each worker one window of a source and
one box of an output. All of it is known before the first byte is read, so a limit that is too low is refused, with
the smallest that works.
"""

from __future__ import annotations

import mmap

from msgspec import Struct

from ..errors import BudgetError
from ..formats.header_room import HeaderRoom, limit_hint
from ..storage.limits import address_space_left
from ..storage.memory import available_bytes, cores, resident_bytes
from ..storage.regions import SLACK
from ..text import format_size
from ..units import BLOCK
from . import kernels

MIB = 1 << 20

#: The memory limit where none is given: at most this, and at most a quarter of what is available.
DEFAULT_LIMIT = 2 << 30

#: Per worker: a window and a box of at least this many bytes each, so that a transpose of 2-byte elements has runs of
#: a page (2,048 x 2,048 elements) on both sides.
MIN_REGION = 8 * MIB

#: The same where no tensor is transposed, and runs are long in smaller boxes too: a worker has less only where the
#: limit leaves no more.
SMALL_REGION = 2 * MIB

#: Larger regions bring nothing: runs are long enough, and smaller boxes let reading and writing overlap.
MAX_REGION = 128 * MIB

#: Per worker, besides window and box: its stack, the casts' scratch, one read of a block for its digest.
WORKER_OVERHEAD = kernels.SCRATCH_BYTES + 2 * SLACK + 2 * MIB

#: Once: what the interpreter and the allocator take while running, beyond what is resident after planning.
RESERVE = 4 * MIB

#: Per tensor written: its lines of the manifest while that is put together, where its bytes go, and what is on record.
TENSOR_OVERHEAD = 640

#: Per block written: its digest, its CRC, whether an earlier run finished it, and its place in the order of work.
BLOCK_OVERHEAD = 96

#: Per tensor read: its place in the tables of work, while these are sorted.
SOURCE_OVERHEAD = 160

#: Per tensor of the source: what planning may add to its reference.
PLAN_OVERHEAD = 1 << 10

_PER_TENSOR = PLAN_OVERHEAD + TENSOR_OVERHEAD + SOURCE_OVERHEAD
_MOST_WORKERS = 16
_JITTER = 4 * MIB
_OBJECTS_PER_BYTE = 20


class Budget(Struct, frozen=True):
    """How the allowed memory is divided.

    Attributes:
        memory_limit: bytes of resident memory allowed.
        base: bytes resident before the conversion starts: interpreter, plan, reserve.
        workers: threads that convert.
        region_bytes: bytes of each worker's window, and again of its output box.
        least_region: the fewest that would do.
    """

    memory_limit: int
    base: int
    workers: int
    region_bytes: int
    least_region: int = MIN_REGION


def divide(
    memory_limit: int,
    workers: int | None,
    tensors: int,
    sources: int = 0,
    blocks: int = 0,
    *,
    resident: int | None = None,
    least_region: int = MIN_REGION,
) -> Budget:
    """Divide the memory limit among workers.

    Args:
        memory_limit: bytes of resident memory allowed.
        workers: threads asked for; `None` for as many as cores and memory allow.
        tensors, sources: how many tensors are written, and how many are read for that.
        blocks: how many blocks of 16 MiB are written.
        resident: bytes resident now; measured where absent.
        least_region: bytes that each worker's window, and again its box, has to have.

    Raises:
        BudgetError: the limit is too low for the workers asked for, or for one; the hint names one that works.
    """
    base = (resident_bytes() if resident is None else resident) + RESERVE
    base += tensors * TENSOR_OVERHEAD + sources * SOURCE_OVERHEAD + blocks * BLOCK_OVERHEAD
    if memory_limit < base + (workers or 1) * _worker(least_region):
        least = least_limit(base, workers or 1, least_region)
        many = f" with {workers} workers" if workers and workers > 1 else ""
        raise _too_low(
            memory_limit,
            f"this conversion{many} needs {format_size(least)}, "
            f"of which {format_size(base)} are for this process so far and the plan",
            least,
        )
    count = workers or _default_workers(memory_limit - base)
    region = min(MAX_REGION, ((memory_limit - base) // count - WORKER_OVERHEAD) // 2)
    return Budget(memory_limit, base, count, region // mmap.PAGESIZE * mmap.PAGESIZE, least_region)


def _default_workers(room: int) -> int:
    """Return how many workers `room` bytes are for: two a core, one of which reads or writes while the other converts.

    More than one a core only where each can make a whole block at once: parts of one have to wait for each other.
    """
    with_blocks = min(2 * cores(), room // _worker(BLOCK))
    return min(_MOST_WORKERS, max(1, with_blocks, min(cores(), room // _worker(MIN_REGION))))


def least_limit(base: int, workers: int = 1, region: int = MIN_REGION) -> int:
    """Return the smallest memory limit to recommend: whole MiB, with room for what differs from run to run."""
    return -(-(base + workers * _worker(region) + _JITTER) // MIB) * MIB


def default_limit() -> int:
    """Return a quarter of the bytes that the host and its container have available, at most 2 GiB.

    Where the process has a limit of its own, as in a batch system, also at most half of what that leaves: memory that
    is asked for counts there, whether or not it becomes resident.
    """
    left = address_space_left()
    most = DEFAULT_LIMIT if left is None else min(DEFAULT_LIMIT, resident_bytes() + left // 2)
    return min(most, available_bytes() // 4)


def header_room(memory_limit: int, tensors: int | None = None) -> HeaderRoom:
    """Return how many bytes of a header may be parsed now within `memory_limit` bytes; at least 1 MiB.

    Args:
        memory_limit: bytes of resident memory allowed.
        tensors: how many the checkpoint has, where that is known and the header lists none.
    """
    resident = resident_bytes()
    nbytes = max(MIB, (memory_limit - resident) // _OBJECTS_PER_BYTE)
    later = RESERVE + _worker(MIN_REGION) + _JITTER + (tensors or 0) * _PER_TENSOR
    per_tensor = _PER_TENSOR if tensors is None else 0
    return HeaderRoom(nbytes, memory_limit, resident + _JITTER, _OBJECTS_PER_BYTE, later, per_tensor)


def check_planning(memory_limit: int, tensors: int) -> None:
    """Refuse to plan so many tensors where that alone would need more than the memory limit.

    Raises:
        BudgetError: it would; the hint names a limit that works.
    """
    needed = resident_bytes() + RESERVE + tensors * PLAN_OVERHEAD
    if needed > memory_limit and tensors * PLAN_OVERHEAD > MIB:
        least = least_limit(needed + tensors * (_PER_TENSOR - PLAN_OVERHEAD))
        raise _too_low(memory_limit, f"planning {tensors} tensors alone needs {format_size(needed)}", least)


def _too_low(memory_limit: int, why: str, least: int) -> BudgetError:
    left, hint = address_space_left(), limit_hint(least)
    if left is not None and left < least - resident_bytes():
        hint = f"raise the limit on the process's memory (ulimit -v or -d), and {hint}"
    return BudgetError(f"a memory limit of {format_size(memory_limit)} is too low: {why}", hint, least)


def _worker(region: int) -> int:
    return 2 * region + WORKER_OVERHEAD
