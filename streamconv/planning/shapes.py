"""Learn the model's sizes from the shapes of the source's tensors, and check every shape against them."""

from __future__ import annotations

from collections.abc import Sequence

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
    for application in matches.applications:
        rule = application.rule
        is_stack = table.side is Side.MS and isinstance(rule.transform, Identity) and rule.stacked(Side.HF)
        unstacked = slice(1 if is_stack else 0, None)
        for index, spec in enumerate(_visible_shapes(rule, table.side)):
            for ref in application.stack(index).values() if spec is not None else ():
                try:
                    table.sizes.fit(ref.shape[unstacked], spec or "")
                except ShapeConflictError as conflict:
                    findings.append(f"{quote(ref.name)}: {conflict}")
    return findings


def _visible_shapes(rule: Rule, side: Side) -> Sequence[str | None]:
    """Return the symbolic shapes of the source's tensors, as far as the table states them."""
    if side is Side.HF or isinstance(rule.transform, Identity):
        return rule.shapes()
    return (rule.ms_shape,) * len(rule.patterns(Side.MS))
