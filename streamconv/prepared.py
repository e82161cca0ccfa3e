"""All that is decided before a conversion begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .configs.model_config import ModelConfig
from .engine.boxes import is_scattered
from .engine.budget import Budget, divide
from .families.registry import Family
from .formats.layout import FileLayout
from .output.blocks import BLOCK
from .output.destination import Destination
from .planning.outputs import Output
from .planning.plan import Plan
from .tensors.refs import Catalog


@dataclass(frozen=True)
class Prepared:
    """All that is decided before a conversion begins.

    Attributes:
        catalog: the source's tensors.
        destination: where the result goes.
        config: the config.json in use.
        family: the model family, and `recognised` whence that is known.
        plan: every output tensor, every dropped one.
        layout: every output file to the byte.
        limit: bytes of memory allowed.
        max_shard_size: bytes of an output shard at the most.
        workers: threads asked for, `None` for as many as fit.
        io: `auto`, `map`, `read` or `direct`.
        overwrite: whether a checkpoint at the destination is replaced.
        restart: whether what an earlier run left is thrown away.
        verify: whether the result is compared with the source before it gets its name.
    """

    catalog: Catalog
    destination: Destination
    config: ModelConfig
    family: Family
    recognised: str
    plan: Plan
    layout: FileLayout
    limit: int
    max_shard_size: int
    workers: int | None
    io: str
    overwrite: bool
    restart: bool
    verify: bool

    @property
    def budget(self) -> Budget:
        """How the memory is divided, from what is resident now.

        Among fewer workers than could be, where only then what is transposed can be moved in long runs: thousands of
        short ones for a box take longer than a second worker saves.

        Raises:
            BudgetError: it is too small.
        """
        most = self._divided(self.workers)
        if self.workers is not None:
            return most
        every = (most, *(self._divided(count) for count in range(most.workers - 1, 0, -1)))
        return next((budget for budget in every if not self._is_scattered(budget.region_bytes)), most)

    def _divided(self, workers: int | None) -> Budget:
        return divide(self.limit, workers, len(self.plan.outputs), self._sources, self.layout.total // BLOCK)

    def _is_scattered(self, region: int) -> bool:
        return any(is_scattered(output.view, output.widest, region) for output in self._kinds)

    @cached_property
    def _kinds(self) -> Sequence[Output]:
        """One output of every shape."""
        return list({(output.view.shape, output.dtype): output for output in self.plan.outputs}.values())

    @cached_property
    def _sources(self) -> int:
        return sum(len(output.sources) for output in self.plan.outputs)
