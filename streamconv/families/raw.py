"""No model: every tensor keeps its name and layout; only the format changes, and the dtype if asked."""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Rule, Statement

#: The option that keeps quantised tensors as they are, and the value that does.
QUANTISED, KEEP = "quantised", "keep"


def rules(config: Config, options: Options) -> list[Statement]:
    """Keep every name and every tensor."""
    return [Rule("{name:*}", "{name:*}")]


FAMILY = Family(
    name="raw",
    title="any checkpoint: names and layouts unchanged, only format and dtype change",
    rules=rules,
    options=(
        Option(
            QUANTISED,
            ("dequantise", KEEP),
            "weights that are quantised become BF16, or stay as they are, with their scales and config",
            is_preference=True,
        ),
    ),
    drops_training_state=False,
)
