"""Learn the model's sizes from the shapes of the source's tensors, and check every shape against them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..rules.sizes import ShapeConflictError
from ..rules.statements import Rule, Side
from ..rules.table import Table
from ..rules.transforms import Identity
from ..text import quote
from .matching import Matches


def learn_shapes(matches: Matches, table: Table) -> list[str]:
    """Learn sizes from all shapes that no transform hides: HF's, and in reverse those that are only renamed.

    Returns:
        A finding for each tensor whose shape conflicts with the sizes.
    """
    while True:
        known = table.sizes.known
        findings = _fit_shapes(matches, table)
        if table.sizes.known == known:
            return findings


def _fit_shapes(matches: Matches, table: Table) -> list[str]:
    findings = []
    of_rules: dict[int, _Visible] = {}
    for application in matches.applications:
        visible = of_rules.get(application.number)
        if visible is None:
            visible = of_rules[application.number] = _Visible.of(application.rule, table.side)
        for index, spec in visible.specs:
            for ref in application.stack(index).values():
                try:
                    table.sizes.fit(ref.shape[visible.axes], spec)
                except ShapeConflictError as conflict:
                    findings.append(f"{quote(ref.name)}: {conflict}")
    return findings


class _Visible(Struct, frozen=True):
    """What a rule states of the shapes of the source's tensors.

    Attributes:
        axes: which of a tensor's axes it states.
        specs: the patterns whose shapes it states, each with its symbols.
    """

    axes: slice
    specs: Sequence[tuple[int, str]]

    @classmethod
    def of(cls, rule: Rule, side: Side) -> _Visible:
        is_stack = side is Side.MS and isinstance(rule.transform, Identity) and rule.stacked(Side.HF)
        specs = [(index, spec) for index, spec in enumerate(_visible_shapes(rule, side)) if spec is not None]
        return cls(slice(1 if is_stack else 0, None), specs)


def _visible_shapes(rule: Rule, side: Side) -> Sequence[str | None]:
    """Return the symbolic shapes of the source's tensors, as far as the table states them."""
    if side is Side.HF or isinstance(rule.transform, Identity):
        return rule.shapes()
    return (rule.ms_shape,) * len(rule.patterns(Side.MS))
