"""How much memory the header that is read next may take, and the limit that would do if it needs more."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ..errors import BudgetError, SourceError
from ..text import format_size, setting

#: The safetensors library (0.8) and MindSpore (2.10) both refuse a longer header; no other format has a maximum.
MAX_HEADER = 100_000_000

# Bytes of header for a tensor, at least for one with a name of a model.
_LEAST_OF_TENSOR = 140
# What the allocator keeps of what a byte of header took (measured with one of 140,000 tensors).
_KEPT = 13


class HeaderRoom(Struct, frozen=True):
    """How many bytes of headers may be parsed: as objects they take many times their bytes in memory.

    Attributes:
        nbytes: bytes that a header may have.
        memory_limit: bytes of resident memory that `nbytes` was derived from; `None` where memory is not limited, and
            `nbytes` is the most that a format allows.
        resident: bytes of that memory in use before the header is parsed.
        cost: bytes of memory that each byte of a header takes as objects.
        later: bytes of memory that will be needed besides, once all headers are read.
        per_tensor: of these, bytes for each tensor that a header lists.
    """

    nbytes: int = MAX_HEADER
    memory_limit: int | None = None
    resident: int = 0
    cost: int = 1
    later: int = 0
    per_tensor: int = 0

    def less(self, nbytes: int) -> HeaderRoom:
        """Return what is left of the room after `nbytes` bytes of another header."""
        return replace(self, nbytes=max(0, self.nbytes - nbytes), resident=self.resident + nbytes * self.cost)

    def share(self, of: int) -> HeaderRoom:
        """Return an equal share of the room, one `of` so many; all of it where memory is not limited."""
        return self if self.memory_limit is None else replace(self, nbytes=self.nbytes // of)

    def check(self, needed: int, what: str) -> None:
        """Refuse headers that need more room.

        Args:
            needed: bytes of header.
            what: the subject of the message, such as `the header of x.safetensors`.

        Raises:
            BudgetError: the memory limit does not allow them; the hint names the smallest limit that does.
            SourceError: memory is not limited, and they are longer than any checkpoint's.
        """
        if needed <= self.nbytes:
            return
        if self.memory_limit is None:
            raise SourceError(
                f"{what} is too large: it counts as {needed} bytes of header, and {self.nbytes} are allowed"
            )
        least = self.least(needed, self.resident, needed // _LEAST_OF_TENSOR)
        raise BudgetError(
            f"{what} needs {format_size(needed * self.cost)} of memory, and the limit of "
            f"{format_size(self.memory_limit)} leaves {format_size(self.nbytes * self.cost)} for it",
            limit_hint(least),
            least,
        )

    def least(self, needed: int, resident: int, tensors: int) -> int:
        """Return the smallest memory limit for a header, and for what comes after it.

        Args:
            needed: bytes of the header.
            resident: bytes of memory in use before it is parsed.
            tensors: how many tensors have to be planned.
        """
        planned = needed * min(_KEPT, self.cost) + tensors * self.per_tensor + self.later
        return resident + max(needed * self.cost, planned)


def limit_hint(least: int) -> str:
    """Return the hint to give so many bytes of memory."""
    return f"give {setting('max_mem', f'{-(-least >> 20)}M')} or more"
