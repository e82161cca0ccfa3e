"""LoRA adapters: PEFT's names on one side, any of MindFormers' four spellings on the other.

`A` is [rank, in] and `B` [out, rank] on both sides, so no transform is needed. The adapters' table is derived from the
model's: every projection that is not transformed may have an adapter, in any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...rules.family import Config, Option, Options
from ...rules.statements import Drop, Rule, Side, Statement
from ...rules.training_state import TRAINING_STATE
from ...rules.transforms import Identity

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
        "the model (false), only its LoRA adapters (true), or in reverse the model without its adapters (drop)",
        infer_from_names=True,
    ),
    Option(
        "lora_names",
        tuple(_SPELLINGS),
        "how MindFormers spells A in the adapters' names; B follows",
    ),
)

#: The number that scales an adapter; no tensor holds it.
MANUAL_SIZES = {"lora_alpha": "lora_alpha"}


def with_adapters(table: Table) -> Table:
    """Return rules for a model or for its adapters, by the options `is_lora` and `lora_names`."""

    def rules(config: Config, options: Options) -> Sequence[Statement]:
        model = table(config, options)
        if options["is_lora"] is False:
            return model
        suffixes = _SPELLINGS[str(options["lora_names"])]
        adapters = list(_adapters(model, suffixes))
        if options["is_lora"] == "drop":
            return [*model, Drop("an adapter", ms=_names(adapters))]
        return [*adapters, Drop("the model's own; an adapter has none of it", ms=_names([*model, *TRAINING_STATE]))]

    return rules


def _adapters(model: Sequence[Statement], suffixes: tuple[str, str]) -> Iterator[Rule]:
    for rule in model:
        if not (isinstance(rule, Rule) and _takes_adapter(rule)):
            continue
        hf, ms = (rule.patterns(side)[0].removesuffix(".weight") for side in Side)
        rows, columns = str(rule.shape).split(", ")
        yield Rule(
            tuple(f"{_PEFT}{hf}.lora_{part}.weight" for part in "AB"),
            tuple(ms + suffix for suffix in suffixes),
            (f"rank, {columns}", f"{rows}, rank"),
            optional=True,
            any_layer=True,
        )


def _takes_adapter(rule: Rule) -> bool:
    """Return whether the rule is for a layer's projection with one name on each side, not transformed."""
    one_name = isinstance(rule.transform, Identity) and all(len(rule.patterns(side)) == 1 for side in Side)
    matrix = isinstance(rule.shape, str) and rule.shape.count(",") == 1
    (hf, *_) = rule.patterns(Side.HF)
    return one_name and matrix and "layer" in rule.holes(Side.HF) and hf.endswith(".weight")


def _names(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return MindFormers' patterns of these statements."""
    return tuple(pattern for statement in statements for pattern in statement.patterns(Side.MS))
