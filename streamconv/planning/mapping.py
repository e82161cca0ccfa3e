"""The plan: every output tensor as a view, every source tensor accounted for. Names, shapes and dtypes only, no bytes.

match the source's names to the table  →  learn the model's numbers from names and shapes  →  apply the layouts
→  all that is unknown, misshapen or missing in one error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, islice

from ..errors import SourceError, StreamconvError, UnsupportedError, UsageError
from ..families.registry import Config, Family, Options, spell
from ..rules.matcher import Matcher
from ..rules.sizes import Ranges, ShapeConflictError, Sizes
from ..rules.statements import Direction, Rule, Statement
from ..rules.transforms import Identity
from ..tensors.dtypes import BF16, DType
from ..tensors.refs import Catalog, TensorRef
from ..tensors.view_nodes import View
from ..text import quote
from . import fp8_scales as scales
from . import matching
from .matching import Matches
from .outputs import Alike, Builder, Output, SameBytes

_LISTED = 200
_COUNTED = 100_000
_NO_CONFIG = " No config.json was found: it tells what names do not (a tied head, say); give it with --config FILE"


class EmptyMappingError(UnsupportedError):
    """There is nothing to write."""


@dataclass(frozen=True)
class TensorMapping:
    """What a conversion will do.

    Attributes:
        family, options, direction, dtype: what was asked, resolved.
        outputs: every tensor to be written, in the order of the family's table.
        dropped: source tensor → why it is not written.
        checks: tensors whose bytes have to agree.
        dequantised: how many source tensors are FP8 times block scales.
        untied: the config says that the head is the embedding, and the source has another one.
    """

    family: str
    options: Options
    direction: Direction
    dtype: DType | None
    outputs: tuple[Output, ...]
    dropped: Mapping[str, str]
    checks: tuple[SameBytes, ...] = ()
    dequantised: int = 0
    untied: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors to be written."""
        return sum(output.spec.nbytes for output in self.outputs)

    @property
    def held_dtype(self) -> DType | None:
        """What the checkpoint's config has to say of its dtype, `None` where that is what it was."""
        return self.dtype or (BF16 if self.dequantised else None)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter that is converted, not a model."""
        return self.options.get("is_lora") is True

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the output but for the source's bytes; not over the source's files."""
        options = sorted((name, spell(value)) for name, value in self.options.items())
        asked = [[self.family, self.direction.value, self.dtype and self.dtype.name], [*options]]
        return _sha256(chain(asked, self._effect()))

    @cached_property
    def effect(self) -> str:
        """SHA-256 over what is written and what is dropped: two choices of options may come to the same."""
        return _sha256(self._effect())

    def _effect(self) -> Iterator[list[object]]:
        yield [*sorted(self.dropped.items())]
        for output in self.outputs:
            yield [output.name, output.dtype.name, output.view.shape, output.sources, _structure(output.view)]


def _sha256(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, separators=(",", ":")).encode())
    return digest.hexdigest()


def map_tensors(
    catalog: Catalog,
    family: Family,
    config: Config,
    options: Options,
    direction: Direction,
    dtype: DType | None,
    alike: Alike = lambda one, other: True,
) -> TensorMapping:
    """Plan the conversion of all tensors of a catalog; `alike` tells whether two of them begin with the same bytes.

    Raises:
        UnsupportedError: a tensor is unknown, misshapen, or cannot be cast; all of them are listed.
        SourceError: a tensor is missing; all of them are listed.
        UsageError: the layout needs a number that neither config nor shapes tell.
    """
    statements, side = family.rules(config, options), "hf" if direction is Direction.FORWARD else "ms"
    sizes = family.sized(config, options)
    ranges, paired = Ranges(family.ranges, sizes), scales.pair(catalog, config)
    matches = matching.match_names(catalog, statements, side, ranges, paired)
    if matches.unknown:
        _check_direction([name for name in catalog if not paired.is_scale(name)], statements, side, ranges)
    matching.learn_counts(matches, side, ranges, sizes)
    wrong = [*matching.unknown(matches, statements, side, ranges), *matching.strayed(matches, ranges), *paired.surplus]
    wrong += _learn_shapes(matches, direction, sizes)
    absent = list(islice(matching.missing(matches, statements, side, ranges, sizes), _COUNTED))
    _raise(wrong, [*paired.missing, *absent], "" if config else _NO_CONFIG)

    build = Builder(direction, dtype, sizes, ranges, paired, statements, alike)
    outputs = build.outputs(matches, catalog)
    _raise([*build.findings, *_twice(outputs)], [])
    if not outputs:
        raise EmptyMappingError("the source holds nothing that this choice of options would write")
    dropped = {**matches.dropped, **build.dropped}
    return TensorMapping(
        family.name,
        options,
        direction,
        dtype,
        tuple(outputs),
        dropped,
        tuple(build.checks),
        dequantised=len(paired.of.keys() - dropped.keys()),
        untied=build.untied,
    )


def _check_direction(names: Sequence[str], statements: Sequence[Statement], side: str, ranges: Ranges) -> None:
    """Say so where most names are those of the other side: --reverse forgotten, or one too many.

    Raises:
        UsageError: they are.
    """
    mine, other = (Matcher(statements, one, ranges) for one in (side, "ms" if side == "hf" else "hf"))
    strange = [name for name in names if mine.match(name) is None]
    if 2 * len(strange) > len(names) and all(other.match(name) for name in strange):
        world, hint = ("MindSpore", "add --reverse") if side == "hf" else ("HuggingFace", "leave --reverse away")
        raise UsageError(f"the source holds {world}'s names ({quote(strange[0])}): to convert it, {hint}")


def _learn_shapes(matches: Matches, direction: Direction, sizes: Sizes) -> list[str]:
    """Check, and learn from, all shapes that no layout hides: HF's own, and in reverse those of plain renames."""
    while True:
        known = sizes.known
        findings = _fit_shapes(matches, direction, sizes)
        if sizes.known == known:
            return findings


def _fit_shapes(matches: Matches, direction: Direction, sizes: Sizes) -> list[str]:
    findings = []
    for application in matches.applications:
        rule = application.rule
        is_stack = direction is Direction.REVERSE and isinstance(rule.layout, Identity) and rule.stacked("hf")
        unstacked = slice(1 if is_stack else 0, None)
        for index, spec in enumerate(_visible_shapes(rule, direction)):
            for ref in application.stack(index).values() if spec is not None else ():
                try:
                    sizes.fit(ref.shape[unstacked], spec or "")
                except ShapeConflictError as conflict:
                    findings.append(f"{quote(ref.name)}: {conflict}")
    return findings


def _visible_shapes(rule: Rule, direction: Direction) -> Sequence[str | None]:
    """The symbolic shapes of the source's tensors, as far as the table states them."""
    if direction is Direction.FORWARD or isinstance(rule.layout, Identity):
        return rule.shapes()
    return (rule.ms_shape,) * len(rule.patterns("ms"))


def _structure(value: object) -> object:
    """A view as plain values: its operations, their numbers, and its leaves but for the files they lie in."""
    match value:
        case View():
            return [type(value).__name__, *(_structure(getattr(value, field.name)) for field in fields(value))]
        case TensorRef():
            return [value.name, value.dtype.name, value.shape]
        case DType():
            return value.name
        case tuple():
            return [_structure(item) for item in value]
    return value


def _twice(outputs: Iterable[Output]) -> Iterator[str]:
    """Findings: names that would be written twice."""
    seen: dict[str, Output] = {}
    for output in outputs:
        if output.name in seen:
            yield f"{quote(output.name)} would be written twice: from {seen[output.name].sources} and {output.sources}"
        seen[output.name] = output


def _raise(wrong: Sequence[str], absent: Sequence[str], hint: str = "") -> None:
    """One error for all findings, if there are any; `hint` is what to think of beside the usual."""
    findings = [*wrong, *absent]
    if not findings:
        return
    kind: type[StreamconvError] = UnsupportedError if wrong else SourceError
    shown = [
        *findings[:_LISTED],
        *([f"… and {len(findings) - _LISTED} more"] if len(findings) > _LISTED else []),
    ]
    count = "1 tensor does" if len(findings) == 1 else f"{len(findings)} tensors do"
    if len(absent) == _COUNTED:
        count = f"at least {count}"
    raise kind(
        "\n  ".join([f"{count} not fit the model:", *shown])
        + f"\nnothing was written; is this the right --model, and is the source complete?{hint}"
    )
