"""No model: every tensor keeps its name and layout; only the format changes, and the dtype if asked."""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Rule, Statement


def rules(config: Config, options: Options) -> list[Statement]:
    """Keep every name and every tensor."""
    return [Rule("{name:*}", "{name:*}")]


FAMILY = Family(
    name="raw",
    title="any checkpoint: names and layouts unchanged, only format and dtype change",
    rules=rules,
    drops_training_state=False,
)
