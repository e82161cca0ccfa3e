"""No renaming: every tensor keeps its name and layout; only the format, and the dtype if asked, change."""

from __future__ import annotations

from ..rules import Rule, Statement
from .base import Config, Family, Options


def rules(config: Config, options: Options) -> list[Statement]:
    """The table."""
    return [Rule("{name:*}", "{name:*}")]


FAMILY = Family(
    name="raw",
    title="any checkpoint, names and layout as they are: change format and dtype only",
    rules=rules,
)
