"""Which worker gets which task: stretches of neighbours first, then what slower workers have left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence


class _Stretch:
    """Tasks that follow each other, and their bytes."""

    def __init__(self, numbers: Sequence[int], sizes: Mapping[int, int]) -> None:
        self._numbers, self._sizes = deque(numbers), sizes
        self.nbytes = sum(sizes[number] for number in numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def first(self) -> int:
        return self._counted(self._numbers.popleft())

    def last(self) -> int:
        return self._counted(self._numbers.pop())

    def _counted(self, number: int) -> int:
        self.nbytes -= self._sizes[number]
        return number


class HandingOut:
    """The tasks that no worker has, and who gets which. A worker is any name.

    Each of the first workers has a stretch of neighbours, about as many bytes for each; whoever has none left, or
    came later, takes from the end of the stretch that is the longest. A task that a worker did not finish is given
    out again before all others, and to another worker where there is one.

    Args:
        sizes: task → its bytes, in the order in which neighbours follow each other.
        workers: those that are there.
    """

    def __init__(self, sizes: Mapping[int, int], workers: Sequence[str]) -> None:
        self._sizes = sizes
        self._present = set(workers)
        self._stretches = dict(zip(workers, map(self._stretch, _divided(sizes, len(workers))), strict=True))
        self._again: list[int] = []
        self._failed: dict[int, set[str]] = {}
        if not workers:
            self._stretches[""] = self._stretch(list(sizes))

    def take(self, worker: str) -> int | None:
        """Return the next task for a worker; `None` if there is none for it now."""
        self._present.add(worker)
        for number in self._again:
            if worker not in self._failed[number] or self._present <= self._failed[number]:
                self._again.remove(number)
                return number
        own = self._stretches.get(worker)
        if own:
            return own.first()
        longest = max(self._stretches.values(), key=lambda stretch: (stretch.nbytes, len(stretch)))
        return longest.last() if longest else None

    def give_back(self, number: int, worker: str) -> None:
        """Take back a task that a worker did not finish."""
        self._failed.setdefault(number, set()).add(worker)
        self._again.append(number)

    def keep(self, workers: Iterable[str]) -> None:
        """Note which workers are there now; others take from the stretches of those that have gone."""
        self._present = set(workers)

    def _stretch(self, numbers: Sequence[int]) -> _Stretch:
        return _Stretch(numbers, self._sizes)


def _divided(sizes: Mapping[int, int], count: int) -> list[list[int]]:
    """Return the tasks in `count` stretches of about as many bytes."""
    total, before = sum(sizes.values()) or 1, 0
    parts: list[list[int]] = [[] for _ in range(count)]
    for number, nbytes in sizes.items() if count else ():
        middle = before + nbytes / 2
        parts[min(count - 1, int(count * middle / total))].append(number)
        before += nbytes
    return parts
