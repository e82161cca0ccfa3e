"""What a plan and a run say of themselves: lines for people, values for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .engine import Tally
from .errors import quote
from .families import spell
from .memory import Budget, least_limit
from .units import format_size

if TYPE_CHECKING:
    from .convert import Conversion

_SHOWN = 12


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        conversion: what was planned.
        budget: how memory was divided.
        tally: bytes read and written; per tensor, finite values that became infinite.
        seconds: from the first check to the rename.
        peak: the most that was resident, in bytes.
    """

    conversion: Conversion
    budget: Budget
    tally: Tally
    seconds: float
    peak: int

    def to_json(self) -> dict[str, object]:
        """The report as plain values: the plan's, without its tensors, and what was measured."""
        values = plan_values(self.conversion)
        del values["tensors"]
        return {
            **values,
            "read_bytes": self.tally.read,
            "written_bytes": self.conversion.layout.total,
            "overflowed": dict(self.tally.overflowed),
            "workers": self.budget.workers,
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak,
        }

    def __str__(self) -> str:
        written = self.conversion.layout.total
        rate = format_size(written / self.seconds) if self.seconds else "-"
        lines = [
            f"wrote {len(self.conversion.plan.outputs)} tensors, {format_size(written)}, to "
            f"{quote(self.conversion.destination.path)} in {self.seconds:.1f} s ({rate}/s); "
            f"peak memory {format_size(self.peak)} of {format_size(self.budget.limit)}"
        ]
        if self.tally.overflowed:
            lines.append(
                f"{sum(self.tally.overflowed.values())} finite values became infinite, in "
                f"{len(self.tally.overflowed)} tensors: {_some(list(self.tally.overflowed))}"
            )
        return "\n".join(lines)


def describe(conversion: Conversion) -> list[str]:
    """The plan for people."""
    plan, layout, catalog = conversion.plan, conversion.layout, conversion.catalog
    options = ", ".join(f"{k}={spell(v)}" for k, v in plan.options.items())
    lines = [
        f"model    {plan.family} (from {conversion.recognised})" + (f", {options}" if options else ""),
        f"source   {quote(catalog.path)}: {catalog.format}, {len(catalog)} tensors in {len(catalog.files)} files, "
        f"{format_size(catalog.nbytes)}, {_dtypes(ref.dtype.name for ref in catalog.values())}",
        f"dest     {quote(conversion.destination.path)}: {layout.format}, {len(plan.outputs)} tensors in "
        f"{len(layout.files)} files, {format_size(layout.total)}, {_dtypes(o.dtype.name for o in plan.outputs)}",
        f"dtype    {plan.dtype or 'as it is'}",
        _memory(conversion),
    ]
    if plan.dropped:
        lines.append(
            f"dropped  {len(plan.dropped)}: {_some([f'{quote(n)} ({why})' for n, why in plan.dropped.items()])}"
        )
    if catalog.ignored:
        lines.append(f"ignored  {_some([f'{quote(n)} ({why})' for n, why in catalog.ignored.items()])}")
    return lines


def _memory(conversion: Conversion) -> str:
    budget = conversion.budget
    return (
        f"memory   {format_size(budget.limit)} allowed: {format_size(budget.base)} for interpreter and plan, "
        f"{budget.workers} worker{'s' if budget.workers > 1 else ''} with {format_size(budget.region)} for a window "
        f"and {format_size(budget.region)} for a box; shards of {format_size(conversion.max_shard_size)} at the most"
    )


def tensor_lines(conversion: Conversion) -> list[str]:
    """One line a tensor: name, dtype, shape, and what it is made from."""
    return [
        f"{quote(o.name)}  {o.dtype}  {list(o.view.shape)}  <- {_some([quote(s) for s in o.sources], 3)}"
        for o in conversion.plan.outputs
    ]


def plan_values(conversion: Conversion) -> dict[str, object]:
    """The plan for programs."""
    plan, layout, catalog, budget = conversion.plan, conversion.layout, conversion.catalog, conversion.budget
    return {
        "model": plan.family,
        "recognised": conversion.recognised,
        "direction": plan.direction.value,
        "options": dict(plan.options),
        "dtype": plan.dtype and plan.dtype.name,
        "format": layout.format,
        "source": str(catalog.path),
        "dest": str(conversion.destination.path),
        "source_bytes": catalog.nbytes,
        "total_bytes": layout.total,
        "max_mem": budget.limit,
        "max_shard_size": conversion.max_shard_size,
        "minimum_mem": least_limit(budget.base),
        "digest": plan.digest,
        "files": {file.name: file.size for file in layout.files},
        "dropped": dict(plan.dropped),
        "ignored": dict(catalog.ignored),
        "tensors": [
            {"name": o.name, "dtype": o.dtype.name, "shape": list(o.view.shape), "sources": list(o.sources)}
            for o in plan.outputs
        ],
    }


def _dtypes(names: object) -> str:
    counted = Counter(names)  # type: ignore[call-overload]
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())


def _some(items: list[str], most: int = _SHOWN) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
