"""What a plan and a run say of themselves: lines for people, values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .engine.budget import Budget, least_limit
from .engine.progress import Tally
from .families.registry import spell
from .formats.layout import CKPT, HF_SAFETENSORS
from .planning.plan import Plan
from .prepared import Prepared
from .tensors.dtypes import FLOAT
from .text import counted, format_size, quote

_SHOWN = 12


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        prepared: what was planned.
        budget: how memory was divided.
        tally: bytes read and written, by earlier runs too; per tensor, finite values that became infinite.
        seconds: from the first check to the rename.
        peak: the most that was resident, in bytes.
    """

    prepared: Prepared
    budget: Budget
    tally: Tally
    seconds: float
    peak: int

    def to_json(self) -> dict[str, object]:
        """The report as plain values: the plan's, without its tensors, and what was measured."""
        values = plan_values(self.prepared)
        del values["tensors"]
        return {
            **values,
            "read_bytes": self.tally.read,
            "written_bytes": self.prepared.layout.total - self.tally.resumed,
            "resumed_bytes": self.tally.resumed,
            "overflowed": dict(self.tally.overflowed),
            "workers": self.budget.workers,
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak,
        }

    def __str__(self) -> str:
        resumed = self.tally.resumed
        if resumed == self.tally.total:
            what = f"{counted(len(self.prepared.plan.outputs), 'tensor')}, {format_size(resumed)}"
            return f"{quote(self.prepared.destination.path)} is complete: an earlier run wrote all of it, {what}"
        written = self.prepared.layout.total - resumed
        rate = format_size(written / self.seconds) if self.seconds else "-"
        before = f" after the {format_size(resumed)} of an earlier run" if resumed else ""
        lines = [
            f"wrote {counted(len(self.prepared.plan.outputs), 'tensor')}, {format_size(written)}{before}, to "
            f"{quote(self.prepared.destination.path)} in {self.seconds:.1f} s ({rate}/s); "
            f"peak memory {format_size(self.peak)} of {format_size(self.budget.memory_limit)}"
        ]
        if self.prepared.verify:
            lines.append("read back from the disk and compared with the source, byte for byte: the same")
        if self.tally.overflowed:
            lines.append(
                f"{sum(self.tally.overflowed.values())} finite values became infinite, in "
                f"{counted(len(self.tally.overflowed), 'tensor')}: {_some(list(self.tally.overflowed), show=quote)}"
            )
        return "\n".join(lines)


def describe(prepared: Prepared) -> list[str]:
    """The plan for people."""
    plan, layout, catalog = prepared.plan, prepared.layout, prepared.catalog
    options = ", ".join(f"{k}={spell(v)}" for k, v in plan.options.items())
    lines = [
        f"model    {plan.family} (from {prepared.recognised})" + (f", {options}" if options else ""),
        f"source   {quote(catalog.path)}: {catalog.format}, {counted(len(catalog), 'tensor')} in "
        f"{counted(len(catalog.files), 'file')}, "
        f"{format_size(catalog.nbytes)}, {_dtypes(ref.dtype.name for ref in catalog.values())}",
        f"dest     {quote(prepared.destination.path)}: {layout.format}, {counted(len(plan.outputs), 'tensor')} in "
        f"{counted(len(layout.files), 'file')}, {format_size(layout.total)}, "
        f"{_dtypes(o.dtype.name for o in plan.outputs)}",
        f"dtype    {plan.dtype or 'as it is'}",
        *_exceptions(plan),
        _memory(prepared),
    ]
    if layout.format != CKPT:
        lines.append(f"shards   at most {prepared.max_shard_size:,} bytes each")
    if plan.dropped:
        lines.append(
            f"dropped  {len(plan.dropped)}: {_some([f'{quote(n)} ({why})' for n, why in plan.dropped.items()])}"
        )
    if catalog.ignored:
        lines.append(f"ignored  {_some([f'{quote(n)} ({why})' for n, why in catalog.ignored.items()])}")
    if layout.format == HF_SAFETENSORS and prepared.config.path is None:
        lines.append("note     no config.json goes along, and transformers needs one: give --config FILE")
    return lines


def _exceptions(plan: Plan) -> Iterator[str]:
    """Where the dtype is another than the one asked, or than the source's."""
    kept = [o.name for o in plan.outputs if plan.dtype and o.dtype.kind == FLOAT and o.dtype != plan.dtype]
    if kept:
        yield f"fp32     {counted(len(kept), 'tensor')} that the model keeps in float32: {_some(kept, 3, quote)}"
    if plan.dequantised:
        yield f"fp8      {counted(plan.dequantised, 'weight')} times their scales, rounded to BF16 first"


def _memory(prepared: Prepared) -> str:
    budget = prepared.budget
    return (
        f"memory   {format_size(budget.memory_limit)} allowed: {format_size(budget.base)} for interpreter and plan, "
        f"{counted(budget.workers, 'worker')} with {format_size(budget.region_bytes)} for a window "
        f"and {format_size(budget.region_bytes)} for a box"
    )


def tensor_lines(prepared: Prepared) -> Iterator[str]:
    """One line a tensor: name, dtype, shape, and what it is made from."""
    for o in prepared.plan.outputs:
        yield f"{quote(o.name)}  {o.dtype}  {list(o.view.shape)}  <- {_some(o.sources, 3, quote)}"


def plan_values(prepared: Prepared) -> dict[str, object]:
    """The plan for programs."""
    plan, layout, catalog, budget = prepared.plan, prepared.layout, prepared.catalog, prepared.budget
    return {
        "model": plan.family,
        "recognised": prepared.recognised,
        "direction": plan.direction.value,
        "options": dict(plan.options),
        "dtype": plan.dtype and plan.dtype.name,
        "dequantised": plan.dequantised,
        "format": layout.format,
        "source": str(catalog.path),
        "dest": str(prepared.destination.path),
        "source_bytes": catalog.nbytes,
        "total_bytes": layout.total,
        "max_mem": budget.memory_limit,
        "max_shard_size": prepared.max_shard_size,
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


def _dtypes(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def _some(items: Sequence[str], most: int = _SHOWN, show: Callable[[str], str] = str) -> str:
    shown = ", ".join(map(show, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
