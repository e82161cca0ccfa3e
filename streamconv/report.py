"""What a plan and a run say: lines for people, values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from msgspec import Struct

from .engine.budget import Budget, least_limit
from .engine.progress import Tally
from .formats.layout import CKPT, HF_SAFETENSORS, FileLayout
from .planning.mapping import TensorMapping
from .planning.options import options_that_matter
from .planning.outputs import Output
from .prepared import NOT_COMPARED, Prepared, marked_notes, marked_warnings
from .rules.family import spell
from .tensors.dtypes import FLOAT, DType
from .text import counted, first_few, format_size, in_python, quote, setting

_DTYPE = attrgetter("dtype")


class Report(Struct, frozen=True, kw_only=True):
    """What a run did; `print` it for people.

    Attributes:
        prepared: what was decided before.
        budget: how the memory limit was divided.
        tally: what was counted.
        seconds: from the first check to the rename.
        peak_bytes: the most that was resident (`VmHWM`).
        waiting: of one of several processes that share the work: what is to be done before the result is complete.
        is_shared: whether what was resumed is the work of other processes.
        nodes: what every node of a cluster did: host, workers, tasks, bytes, seconds, peak_bytes.
    """

    prepared: Prepared
    budget: Budget
    tally: Tally
    seconds: float
    peak_bytes: int
    waiting: str = ""
    is_shared: bool = False
    nodes: Sequence[Mapping[str, object]] = ()

    @property
    def read_bytes(self) -> int:
        """Bytes of the source that this run read."""
        return self.tally.read

    @property
    def written_bytes(self) -> int:
        """Bytes that this run wrote, headers and indices included."""
        return (self.tally.done if self.waiting else self.prepared.layout.total) - self.tally.resumed

    @property
    def resumed_bytes(self) -> int:
        """Bytes of tensors that interrupted runs had written."""
        return self.tally.resumed

    @property
    def overflowed(self) -> Mapping[str, int]:
        """Output tensor -> how many of its finite values became infinite in the cast."""
        return self.tally.overflowed

    def to_json(self) -> dict[str, object]:
        """Return the report as plain values: the plan's, without its tensors, and what was measured."""
        values = plan_values(self.prepared)
        del values["tensors"]
        return {
            **values,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "resumed_bytes": self.resumed_bytes,
            "overflowed": dict(self.overflowed),
            "workers": self.budget.workers,
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
            "complete": not self.waiting,
            **({"nodes": list(self.nodes)} if self.nodes else {}),
        }

    def __repr__(self) -> str:
        size = format_size(self.tally.total)
        return f"<Report {quote(self.prepared.destination.path)}: {size} in {self.seconds:.1f} s>"

    def __str__(self) -> str:
        return in_python(describe_run(self))

    def _lines(self) -> Iterator[str]:
        path, tensors = quote(self.prepared.destination.path), counted(self.prepared.mapping.tensors, "tensor")
        if self.waiting:
            yield (
                f"wrote {format_size(self.tally.done - self.tally.resumed)} in {self.seconds:.1f} s; "
                f"peak memory {format_size(self.peak_bytes)} of {format_size(self.budget.memory_limit)}"
            )
            yield f"{path} is not complete: {self.waiting}"
            return
        if self.resumed_bytes == self.tally.total > 0 and not self.is_shared:
            yield f"{path} is already complete: {tensors}, {format_size(self.resumed_bytes)}"
            return
        source = "by other processes" if self.is_shared else "from an interrupted run"
        resumed = f", after {format_size(self.resumed_bytes)} {source}" if self.resumed_bytes else ""
        rate = f"{format_size(self.written_bytes / self.seconds)}/s" if self.seconds else "-"
        yield (
            f"wrote {tensors}, {format_size(self.written_bytes)}{resumed}, to {path} in {self.seconds:.1f} s ({rate}); "
            f"peak memory {format_size(self.peak_bytes)} of {format_size(self.budget.memory_limit)}"
        )
        if self.nodes:
            yield _of_nodes(self.nodes)
        if self.prepared.verify:
            copies = "; all copies of slices are the same" if self.prepared.catalog.has_copies else ""
            yield f"verified: read back from disk, byte-for-byte identical to the source{copies}"
        elif self.prepared.catalog.has_copies:
            yield f"note: {NOT_COMPARED}"
        if self.overflowed:
            yield (
                f"{counted(sum(self.overflowed.values()), 'value')} overflowed to infinity in "
                f"{counted(len(self.overflowed), 'tensor')}: {first_few(list(self.overflowed), show=quote)}"
            )
        yield from (f"warning: {text}" for text in marked_warnings(self.prepared))


def _of_nodes(nodes: Sequence[Mapping[str, object]]) -> str:
    """Say how many nodes worked, and what the largest of them took."""
    peak = max(int(str(node["peak_bytes"])) for node in nodes)
    tasks = sum(int(str(node["tasks"])) for node in nodes)
    many = f"on {counted(len(nodes), 'node')}: {counted(tasks, 'part')}"
    return f"{many}; peak memory of a node's workers {format_size(peak)}"


def describe_run(report: Report) -> str:
    """Return the report for people; settings in it are marked as in messages (`text.setting`)."""
    return "\n".join(report._lines())


def describe(prepared: Prepared) -> str:
    """Return the plan for people; settings in it are marked as in messages (`text.setting`)."""
    return "\n".join(f"{label:8} {text}" for label, text in _entries(prepared))


def _entries(prepared: Prepared) -> Iterator[tuple[str, str]]:
    mapping, layout, catalog = prepared.mapping, prepared.layout, prepared.catalog
    options = "".join(f", {name}={spell(value)}" for name, value in _shown_options(prepared))
    yield "model", f"{mapping.family} (from {prepared.family_source}){options}"
    yield (
        "source",
        f"{quote(catalog.path)}: {catalog.format}, "
        + _amount(len(catalog), len(catalog.files), catalog.nbytes, map(_DTYPE, catalog.values())),
    )
    yield (
        "dest",
        f"{quote(prepared.destination.path)}: {layout.format}, "
        + _amount(mapping.tensors, len(layout.files), layout.total, _dtypes(mapping)),
    )
    if mapping.ranks:
        yield "ranks", _ranks(mapping, layout)
    yield "dtype", str(mapping.dtype or "unchanged")
    yield from _exceptions(mapping)
    yield "memory", _memory(prepared.budget)
    yield "io", f"source {prepared.reading}; result {prepared.writing}"
    if layout.format != CKPT and not mapping.ranks:
        yield "shards", f"at most {prepared.settings.max_shard_size:,} bytes each"
    if mapping.dropped:
        yield "dropped", f"{len(mapping.dropped)}: {_with_reasons(mapping.dropped)}"
    if catalog.ignored:
        yield "ignored", _with_reasons(catalog.ignored)
    if copies := prepared.companions.copies:
        yield "copied", f"{counted(len(copies), 'file')} next to the weights: {first_few(list(copies), show=quote)}"
    if left := prepared.companions.left:
        yield "left", f"{len(left)} left behind: {_with_reasons(left)}"
    yield from (("warning", text) for text in marked_warnings(prepared))
    yield from (("note", text) for text in marked_notes(prepared))
    if layout.format == HF_SAFETENSORS and prepared.config.path is None:
        needs = "no config.json will be written, but transformers needs one"
        yield "note", f"{needs}; pass {setting('config', 'FILE')}"


def _shown_options(prepared: Prepared) -> Iterator[tuple[str, bool | int | str]]:
    """The options that were given, and those whose other values would give another table."""
    options = prepared.mapping.options
    matter = options_that_matter(prepared.family, prepared.config.for_rules, options)
    yield from ((name, value) for name, value in options.items() if name in matter or name in prepared.given_options)


def _amount(tensors: int, files: int, nbytes: int, dtypes: Iterable[DType]) -> str:
    names = ", ".join(f"{count} {dtype}" for dtype, count in Counter(dtypes).most_common())
    return f"{counted(tensors, 'tensor')} in {counted(files, 'file')}, {format_size(nbytes)}, {names}"


def _dtypes(mapping: TensorMapping) -> Iterable[DType]:
    """Return the dtype of every tensor, that of slices once."""
    outputs = mapping.outputs
    return {output.tensor: output.dtype for output in outputs}.values() if mapping.ranks else map(_DTYPE, outputs)


def _ranks(mapping: TensorMapping, layout: FileLayout) -> str:
    """Say what the files of the ranks hold."""
    slices = len({o.name for o in mapping.outputs if o.slice_of})
    cut = len({o.slice_of for o in mapping.outputs if o.slice_of})
    links = sum(len(file.links) for file in layout.files)
    linked = f", {counted(links, 'link')} to them" if links else ""
    files = counted(len(layout.files), "file")
    return f"{mapping.ranks}: {counted(cut, 'tensor')} cut into {counted(slices, 'slice')}; {files}{linked}"


def _exceptions(mapping: TensorMapping) -> Iterator[tuple[str, str]]:
    """Where the dtype is not the one asked for, or not the source's."""
    outputs = mapping.outputs if mapping.dtype else ()
    kept = list(dict.fromkeys(o.tensor for o in outputs if o.dtype.kind == FLOAT and o.dtype != mapping.dtype))
    if kept:
        yield "fp32", f"{counted(len(kept), 'tensor')} that the model keeps in float32: {first_few(kept, 3, quote)}"
    for how, count in mapping.dequantised.items():
        yield "codes", f"{counted(count, 'weight')} to BF16: {how}"


def _memory(budget: Budget) -> str:
    region = format_size(budget.region_bytes)
    return (
        f"limit {format_size(budget.memory_limit)}: baseline {format_size(budget.base)} + "
        f"{counted(budget.workers, 'worker')} x ({region} input + {region} output)"
    )


def _with_reasons(reasons: Mapping[str, str]) -> str:
    return first_few([f"{quote(name)} ({why})" for name, why in reasons.items()])


def tensor_lines(outputs: Iterable[Output]) -> Iterator[str]:
    """Yield a line for each tensor: name, dtype, shape, and what it is made from."""
    kinds: dict[tuple[DType, tuple[int, ...]], str] = {}
    for output in outputs:
        name, sources, kind = quote(output.name), output.sources, (output.dtype, output.view.shape)
        shown = kinds.get(kind) or kinds.setdefault(kind, f"{output.dtype}  {list(output.view.shape)}")
        made_from = name if sources == (output.name,) else first_few(sources, 3, quote)
        yield f"{name}  {shown}  <- {made_from}"


def plan_values(prepared: Prepared) -> dict[str, object]:
    """Return the plan for programs."""
    mapping, layout, catalog, budget = prepared.mapping, prepared.layout, prepared.catalog, prepared.budget
    return {
        **prepared.settings.to_json(),
        "family_source": in_python(prepared.family_source),
        "dequantised": dict(mapping.dequantised),
        "source": str(catalog.path),
        "dest": str(prepared.destination.path),
        "source_bytes": catalog.nbytes,
        "total_bytes": layout.total,
        "max_mem": budget.memory_limit,
        "minimum_mem": least_limit(budget.base, region=budget.least_region),
        "io": {"reading": str(prepared.reading), "writing": str(prepared.writing)},
        "digest": mapping.digest,
        "files": {file.name: file.size for file in layout.files},
        **({"linked": {name: file.name for file in layout.files for name in file.links}} if mapping.ranks else {}),
        "dropped": dict(mapping.dropped),
        "ignored": dict(catalog.ignored),
        "copied": list(prepared.companions.copies),
        "left": dict(prepared.companions.left),
        "warnings": list(prepared.warnings),
        "notes": list(prepared.notes),
        "tensors": [
            {"name": o.name, "dtype": o.dtype.name, "shape": list(o.view.shape), "sources": list(o.sources)}
            for o in mapping.outputs
        ],
    }
