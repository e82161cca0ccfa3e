"""LoRA adapters: PEFT's names on the one side, any of MindFormers' four spellings on the other.

`A` is [rank, in] and `B` [out, rank] on both sides, so nothing moves. The adapters' table comes from the model's own:
every projection that keeps its layout may have one, in any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...rules.family import Config, Option, Options
from ...rules.statements import Drop, Rule, Statement, Tied
from ...rules.transforms import Identity
from .decoder import TRAINING_STATE

Table = Callable[[Config, Options], Sequence[Statement]]

_PEFT = "base_model.model."
_SPELLINGS = {
    "lora_a": (".lora_a", ".lora_b"),
    "lora_A.weight": (".lora_A.weight", ".lora_B.weight"),
    "mindpet_delta_lora_a": (".mindpet_delta_lora_a", ".mindpet_delta_lora_b"),
    "tk_delta_lora_a": (".tk_delta_lora_a", ".tk_delta_lora_b"),
}

OPTIONS = (
    Option(
        "is_lora",
        (False, True, "drop"),
        "a model, or its LoRA adapters alone; in reverse also the model without the adapters beside it (drop)",
        decides=False,
        told=True,
    ),
    Option("lora_names", tuple(_SPELLINGS), "how MindFormers spells the adapters' A; B alike", decides=False),
)

#: The number that scales an adapter, which no tensor tells.
NUMBERS = {"lora_alpha": "lora_alpha"}


def with_adapters(table: Table) -> Table:
    """The model's table, or that of its adapters."""

    def rules(config: Config, options: Options) -> Sequence[Statement]:
        model = table(config, options)
        if options["is_lora"] is False:
            return model
        suffixes = _SPELLINGS[str(options["lora_names"])]
        adapters = list(_adapters(model, suffixes))
        if options["is_lora"] == "drop":
            names = tuple(name for rule in adapters for name in rule.patterns("ms"))
            return [*model, Drop("an adapter", ms=names)]
        base = tuple(name for statement in model for name in _names(statement))
        return [*adapters, Drop("the model's own; an adapter has none of it", ms=base), *TRAINING_STATE]

    return rules


def _adapters(model: Sequence[Statement], suffixes: tuple[str, str]) -> Iterator[Rule]:
    for rule in model:
        if not (isinstance(rule, Rule) and _takes_adapter(rule)):
            continue
        hf, ms = (rule.patterns(side)[0].removesuffix(".weight") for side in ("hf", "ms"))
        rows, columns = str(rule.shape).split(", ")
        yield Rule(
            tuple(f"{_PEFT}{hf}.lora_{part}.weight" for part in "AB"),
            tuple(ms + suffix for suffix in suffixes),
            (f"rank, {columns}", f"{rows}, rank"),
            optional=True,
            scattered=True,
        )


def _takes_adapter(rule: Rule) -> bool:
    """Whether the rule is a projection of a layer with one name and the same layout on both sides."""
    one_name = isinstance(rule.layout, Identity) and all(len(rule.patterns(side)) == 1 for side in ("hf", "ms"))
    matrix = isinstance(rule.shape, str) and rule.shape.count(",") == 1
    return one_name and matrix and "layer" in rule.holes("hf") and rule.patterns("hf")[0].endswith(".weight")


def _names(statement: Statement) -> tuple[str, ...]:
    match statement:
        case Rule():
            return statement.patterns("ms")
        case Tied():
            return (statement.ms,)
        case Drop():
            return statement.ms
    return ()
